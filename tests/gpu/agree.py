"""What tests of this folder share: one piece of work on the CPU and on the device that pretends, and what equal means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

from torch import Tensor

from raysweep.models.lm import LanguageModel
from raysweep.testing.fixtures import tiny_lm
from raysweep.testing.sham_device import move


def models(family: str, *, bos: bool = False) -> tuple[LanguageModel, LanguageModel]:
    """Return a tiny model on the CPU and an equal one on the sham device."""
    ours, theirs = tiny_lm(family, bos=bos), tiny_lm(family, bos=bos)
    move(theirs.module)
    return ours, theirs


def furthest(first: object, second: object, path: str = "") -> tuple[float, str]:
    """Return by how much two nested values differ where they differ most, and where that is.

    Tensors differ by ``‖a − b‖ / max(‖a‖, 1e-12)``, single numbers by ``|a − b| / max(|a|, 1)``; whatever else is not equal
    differs by infinity.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return float("inf"), path
        a, b = first.detach().cpu().double(), second.detach().cpu().double()
        return float((a - b).norm() / a.norm().clamp_min(1e-12)), path
    if isinstance(first, float) and isinstance(second, float) and not isinstance(first, bool):
        return (0.0 if first != first and second != second else abs(first - second) / max(abs(first), 1.0)), path
    if is_dataclass(first) and type(first) is type(second):
        first, second = ({f.name: getattr(x, f.name) for f in fields(x)} for x in (first, second))  # type: ignore[arg-type]
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if set(first) != set(second):
            return float("inf"), f"{path}: {sorted(set(first) ^ set(second))}"
        return max((furthest(v, second[k], f"{path}/{k}") for k, v in first.items()), default=(0.0, path))
    if isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str):
        if len(first) != len(second):
            return float("inf"), f"{path}: {len(first)} and {len(second)}"
        pairs = enumerate(zip(first, second, strict=True))
        return max((furthest(a, b, f"{path}/{i}") for i, (a, b) in pairs), default=(0.0, path))
    return (0.0 if first == second else float("inf")), path


def agree(first: object, second: object, tolerance: float) -> None:
    """Require that two nested values differ nowhere by more than *tolerance* (see :func:`furthest`)."""
    far, where = furthest(first, second)
    assert far <= tolerance, f"they differ by {far:.3g} at {where}"
