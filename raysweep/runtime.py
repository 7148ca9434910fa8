"""What this process computes on and how it multiplies there; the device is never part of a trial's key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Matmul = Literal["ieee", "tf32"]


def device() -> torch.device:
    """Return the GPU that torch sees first, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def matmul(precision: Matmul) -> Iterator[None]:
    """Let a GPU multiply fp32 matrices as *precision* says while the block runs, whatever this process was told before.

    The CPU multiplies them in fp32 either way, and afterwards this process multiplies as it did.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch's stubs lack it
    before = [backend.fp32_precision for backend in backends]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch cannot name a mixture that was set back end by back end
        legacy = "highest"
    # The legacy names, since code beside us may ask by them, and torch refuses to answer where both kinds were set.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # "high" would let the CPU round, too
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
