"""What this process computes on, how it computes there, and why it sees no GPU; no device is ever part of a trial's key."""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

Matmul = Literal["ieee", "tf32"]

_DRIVER = Path("/proc/driver/nvidia/version")
# Which workspaces cuBLAS takes; torch reads once, at the first product on a GPU, whether it is one with which products repeat.
_WORKSPACE, _REPEATING = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
CPU_IS_MEANT = "resources.gpu: 0 says that the CPU is meant"


def device() -> torch.device:
    """Return the GPU that torch sees first, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu(index: int) -> torch.device:
    """Return the GPU that this process numbers *index*."""
    return torch.device("cuda", index)


def visible_gpus() -> int:
    """Return how many GPUs torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def forget_peak_memory() -> None:
    """Begin anew to look for the most memory that is allocated on each GPU; a CPU's nobody watches."""
    for index in range(visible_gpus()):
        torch.accelerator.reset_peak_memory_stats(index)


def peak_memory() -> tuple[int, ...]:
    """Return the most bytes that this process had allocated on each GPU since :func:`forget_peak_memory`; empty without any."""
    return tuple(torch.accelerator.max_memory_allocated(index) for index in range(visible_gpus()))


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none, or it does not say."""
    try:
        # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …"
        found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", _DRIVER.read_text(encoding="utf-8").partition("Module")[2])
    except OSError:
        found = None
    if found:
        return found[0]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def torch_build() -> str:
    """Return which torch this is and what it was built for: ``torch 2.13.0+cu130 (CUDA 13.0)``."""
    cuda, rocm = torch.version.cuda, torch.version.hip
    made_for = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "the CPU only"
    return f"torch {torch.__version__} ({made_for})"


def why_unseen() -> str:
    """Return why torch sees fewer GPUs than there are said to be, and what mends it, as half a sentence."""
    version = driver()
    found = f"{torch_build()}, {f'NVIDIA driver {version}' if version else 'no NVIDIA driver found'}"
    if not torch.version.cuda and not torch.version.hip:
        cure = "install a torch that is built for GPUs (https://pytorch.org/get-started/locally)"
    elif version:
        cure = "a newer driver, or a torch for an older CUDA; CUDA_VISIBLE_DEVICES may hide some"
    else:
        cure = "load the driver, or give the container its GPUs (docker run --gpus all)"
    return f"{found}; {cure}; {CPU_IS_MEANT}"


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


@contextmanager
def repeatable(on: torch.device) -> Iterator[None]:
    """Let an accelerator compute the same bits each time while the block runs; a CPU does anyway.

    Sums are taken in one order instead of by atomics (``torch.use_deterministic_algorithms``), attention by kernels that can. What
    the process was told before holds again afterwards. Where it multiplied on a GPU before ``CUBLAS_WORKSPACE_CONFIG`` was set,
    torch refuses; the block then runs without, and a warning says so.

    Args:
        on: the device that is computed on.
    """
    if on.type == "cpu":
        yield
        return
    with ExitStack() as undo:
        if _WORKSPACE not in os.environ:
            os.environ[_WORKSPACE] = _REPEATING
            undo.callback(os.environ.pop, _WORKSPACE, None)
        before = torch.are_deterministic_algorithms_enabled()
        undo.callback(
            torch.use_deterministic_algorithms, before, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
        )
        # without a fill of all memory that is to be written anyway
        settings: Any = torch.utils.deterministic
        undo.callback(setattr, settings, "fill_uninitialized_memory", settings.fill_uninitialized_memory)
        settings.fill_uninitialized_memory = False
        # the gradient of cuDNN's attention has no order
        attention: Any = torch.backends.cuda
        undo.callback(attention.enable_cudnn_sdp, attention.cudnn_sdp_enabled())
        attention.enable_cudnn_sdp(False)
        torch.use_deterministic_algorithms(True)
        if not _multiplies(on):
            torch.use_deterministic_algorithms(before)
            warnings.warn(
                f"this process multiplied on a GPU before {_WORKSPACE} was set, so bits may not repeat; set it to {_REPEATING} "
                "before Python starts",
                RuntimeWarning,
                stacklevel=3,
            )
        yield


def _multiplies(on: torch.device) -> bool:
    """Tell whether torch multiplies on a GPU as it was told to: it looks at the environment once in a process."""
    one = torch.ones(1, 1, device=on)
    try:
        one @ one
    except RuntimeError as error:
        if _WORKSPACE in str(error):
            return False
        raise
    return True
