"""Nested states and proposals ↔ tensors by path and plain JSON: what a snapshot, or a message to another process, holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysweep.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


def flatten(prefix: str, node: object) -> tuple[dict[str, Tensor], object]:
    """Split nested data into tensors by path (copies) and JSON with ``None``-like markers in their place."""
    if isinstance(node, torch.Tensor):
        # A copy: the state goes on changing while the snapshot waits to be written.
        return {prefix: node.clone()}, {"__tensor__": prefix}
    if isinstance(node, Mapping):
        tensors: dict[str, Tensor] = {}
        plain: dict[str, object] = {}
        for key, value in node.items():
            tensors_below, plain[str(key)] = flatten(f"{prefix}/{key}", value)
            tensors |= tensors_below
        return tensors, plain
    if isinstance(node, list | tuple):
        pairs = [flatten(f"{prefix}/{i}", value) for i, value in enumerate(node)]
        return {k: v for t, _ in pairs for k, v in t.items()}, [p for _, p in pairs]
    return {}, node


def unflatten(prefix: str, tensors: Mapping[str, Tensor], node: object, device: torch.device) -> Any:
    """Undo :func:`flatten`, with the tensors on *device*."""
    if isinstance(node, Mapping):
        if "__tensor__" in node:
            return tensors[node["__tensor__"]].to(device)
        return {key: unflatten(f"{prefix}/{key}", tensors, value, device) for key, value in node.items()}
    if isinstance(node, list):
        return [unflatten(f"{prefix}/{i}", tensors, value, device) for i, value in enumerate(node)]
    return node


def moved(node: object, device: torch.device | str) -> Any:
    """Return nested data with its tensors on *device*; nothing is copied that is there already."""
    if isinstance(node, torch.Tensor):
        return node.to(device)
    if isinstance(node, Mapping):
        return {key: moved(value, device) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [moved(value, device) for value in node]
    return node
