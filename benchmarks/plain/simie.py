"""SimIE, plain: P in fp32 and, per edit, a general solve with ``d_out`` right-hand sides (docs/methods/simie.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.plain import common
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


@dataclass
class State:
    """Memory by weight: ``P [d_in, d_in]`` and, in ``init`` mode, the pristine weight as it is stored."""

    gram: dict[str, Tensor]
    pristine: dict[str, Tensor]


def begin(lm: LanguageModel, names: list[str], *, lam: float, init: bool) -> State:
    """Return ``P = λI`` for each weight of *names*."""
    grams = {n: lam * torch.eye(lm.logical(n).shape[1], device=lm.device) for n in names}
    return State(grams, {n: lm.weight(n).detach().clone() for n in names} if init else {})


def solve(gram: Tensor, change: Tensor, keys: Tensor) -> Tensor:
    """Return ``ΔW K Kᵀ P⁻¹`` by LU, for ``P`` that includes *keys* ``[d_in, k]``."""
    right = change @ keys @ keys.T
    found: Tensor = torch.linalg.solve(gram.T, right.T)
    return found.T


def edit(
    lm: LanguageModel, record: EditRecord, state: State, base: Callable[[LanguageModel, EditRecord], common.Changes]
) -> common.Changes:
    """Return the change that writes *record* on top of all edits so far; *state* is advanced, the model left as it was.

    Args:
        lm: the model as the last edit left it.
        record: the fact to write.
        state: from :func:`begin`.
        base: the editor.
    """
    names = list(state.gram)
    row = tokens.encode(lm, record.prompt + tokens.with_space(record.target))
    with common.put_back(lm, names) as before:
        with torch.no_grad():
            for name, tensor in state.pristine.items():
                lm.weight(name).copy_(tensor)
        modules = [n.rpartition(".")[0] for n in names]
        keys = [common.through(lm, [row], module)[0][0].T.float() for module in modules]
        proposed = base(lm, record)
    changes: common.Changes = {}
    for name, columns in zip(names, keys, strict=True):
        wanted = state.pristine.get(name, before[name]) + proposed[name] - before[name]
        logical = wanted.T if lm.transposed(name) else wanted
        state.gram[name] = state.gram[name] + columns @ columns.T
        changes[name] = common.stored(lm, name, solve(state.gram[name], logical, columns))
    return changes
