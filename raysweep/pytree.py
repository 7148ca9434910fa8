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
    """Split nested data into tensors by path (copies) and JSON with ``None``-like markers in their place.

    A marker says in which order the tensor's dimensions lie in memory, where that is not the usual one: a file keeps the values
    only, and the last bits of a product depend on whether a matrix lies row by row or column by column.
    """
    if isinstance(node, torch.Tensor):
        order = _order(node)
        # A copy: the state goes on changing while the snapshot waits to be written.
        return {prefix: node.clone()}, {"__tensor__": prefix} | ({"order": order} if order else {})
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
            return _ordered(tensors[node["__tensor__"]].to(device), node.get("order", []))
        return {key: unflatten(f"{prefix}/{key}", tensors, value, device) for key, value in node.items()}
    if isinstance(node, list):
        return [unflatten(f"{prefix}/{i}", tensors, value, device) for i, value in enumerate(node)]
    return node


def _order(tensor: Tensor) -> list[int]:
    """Return the dimensions of *tensor* from the slowest in memory to the fastest; empty if they lie as they are counted."""
    if tensor.is_contiguous():
        return []
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda i: -strides[i])
    return order if tensor.permute(order).is_contiguous() else []


def _ordered(tensor: Tensor, order: list[int]) -> Tensor:
    """Return *tensor* with its dimensions in memory in *order*, as :func:`_order` found them; empty = as they are counted."""
    if not order:
        return tensor
    back = sorted(range(len(order)), key=lambda i: order[i])
    return tensor.permute(order).contiguous().permute(back)


def moved(node: object, device: torch.device | str) -> Any:
    """Return nested data with its tensors on *device*; nothing is copied that is there already."""
    if isinstance(node, torch.Tensor):
        return node.to(device)
    if isinstance(node, Mapping):
        return {key: moved(value, device) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [moved(value, device) for value in node]
    return node
