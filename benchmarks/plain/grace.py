"""GRACE, plain: every update of a value runs the whole model and takes the logits of every position (docs/methods/grace.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain import common
from raysweep.editors.grace import GraceConfig
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


@dataclass
class Book:
    """Keys ``[d_in]``, values ``[d_out]``, radii, and per entry the target's ids and the number of prompt tokens."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    targets: list[tuple[list[int], int]] = field(default_factory=list)

    def add(self, key: Tensor, value: Tensor, radius: float, target: tuple[list[int], int]) -> int:
        """Append an entry; return its index."""
        self.keys.append(key)
        self.values.append(value)
        self.radii.append(radius)
        self.targets.append(target)
        return len(self.keys) - 1

    def same(self, i: int, target: tuple[list[int], int], *, ref: bool) -> bool:
        """Tell whether entry *i* has *target*; *ref*: the published rule (quirk Q18)."""
        return mean(self.targets[-1 - i]) == mean(target) if ref else self.targets[i][0] == target[0]


def mean(target: tuple[list[int], int]) -> float:
    """Return the mean of the published label vector."""
    ids, masked = target
    return float(torch.tensor([-100] * masked + ids).float().mean())


def edit(lm: LanguageModel, record: EditRecord, config: GraceConfig, book: Book, start: Tensor) -> None:
    """Write *record* into *book*; the model is left as it was.

    Args:
        lm: the model.
        record: the fact to write.
        config: hyper-parameters (``replace`` must be ``last``, ``start`` ``cold``).
        book: what was written before.
        start: ``[d_out]`` where a new value starts.
    """
    name = lm.layout.mlp_matrix(config.layer, config.matrix)
    asked = tokens.labelled_ids(lm, record.prompt, tokens.join(record.prompt, record.target))
    ids, mask = tokens.pad([asked.ids], lm.device)
    last, labels = asked.start - 1, torch.tensor(asked.labels, device=lm.device)
    entering, _, _ = common.through(lm, [asked.ids], name)
    chosen = place(book, entering[0, last], start, (list(asked.labels), asked.start), config)
    value = book.values[chosen].clone().requires_grad_(True)
    adam = torch.optim.Adam([value], lr=config.lr)

    def hook(_: Any, arguments: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, last] = value
        return output

    with common.hooked(lm, name, hook), torch.enable_grad():
        for _ in range(config.steps):
            adam.zero_grad()
            logits = common.logits(lm, ids, mask)[0]
            F.cross_entropy(logits[last:-1], labels).backward()  # type: ignore[no-untyped-call]
            adam.step()
    book.values[chosen] = value.detach()


def place(book: Book, query: Tensor, start: Tensor, target: tuple[list[int], int], config: GraceConfig) -> int:
    """Find or make the entry that *query* is written to; return its index."""
    if not book.keys:
        return book.add(query, start, config.radius, target)
    distances = [float((query - key).norm()) for key in book.keys]
    near = min(range(len(distances)), key=distances.__getitem__)
    distance = distances[near]
    known = not config.ref and distance <= 1e-4 * float(query.norm())
    if distance > config.radius + book.radii[near] and not known:
        return book.add(query, start, config.radius, target)
    if book.same(near, target, ref=config.ref):
        if distance > book.radii[near]:
            book.radii[near] = distance
            if config.expand == "moving_average":
                book.keys[near] = (book.keys[near] + query) / 2
        return near
    if known:
        book.values[near], book.targets[near] = start, target
        book.radii[near] = max(book.radii[near], distance)
        return near
    book.radii[near] = distance / 2 - (1e-5 if config.ref else min(1e-5, distance / 4))
    return book.add(query, start, distance / 2, target)
