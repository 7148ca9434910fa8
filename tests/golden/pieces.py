"""What our editors compute on the way, under the names the published run's tensors were recorded with.

A *group* is ``edit3.u`` or ``final.matrix_P``; a piece is one tensor of it, by parameter ("" where there is only one).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from raysweep.config.schema import EditorSpec
from raysweep.editors.build import build_editor
from raysweep.editors.locate import keys
from raysweep.models import ledger as weight_ledger
from raysweep.models.ledger import Ledger
from raysweep.models.patches import LowRank
from tests.golden.recorded import Variant

Pieces = dict[str, dict[str, Tensor]]
Stats = list[dict[str, float]]


def replay(variant: Variant, spec: EditorSpec, *, rehearse: bool = False) -> tuple[Pieces, Stats]:
    """Edit every record; return every piece that was recorded of a weight editor, and each edit's statistics.

    Args:
        variant: the run.
        spec: our editor for it.
        rehearse: keep the memory of a throwaway edit of the last record (quirk Q17).
    """
    lm, artifacts = variant.lm, variant.artifacts()
    found: Pieces = defaultdict(dict)
    editor: Any = build_editor(spec)
    inner, wrapped = getattr(editor, "inner", editor), hasattr(editor, "inner")
    ledger, stats, state = Ledger(lm), Stats(), editor.begin(lm, artifacts)
    if rehearse:
        state["inner"] = inner.edit(
            lm, variant.records[-1:], state["inner"], artifacts=artifacts, rng=torch.Generator()
        ).state
    group, base = "", inner.edit

    def watched(model: Any, batch: Any, memory: Any, **given: Any) -> Any:
        step = base(model, batch, memory, **given)
        _note(found, group, lm, batch, step, wrapped=wrapped)
        return step

    inner.edit = watched
    try:
        for i, record in enumerate(variant.records):
            group = f"edit{i}"
            step = editor.edit(lm, [record], state, artifacts=artifacts, rng=torch.Generator())
            ledger.apply(step.patch)
            state = step.state
            stats.append(dict(step.stats))
            if wrapped:
                found[f"{group}.after_simie"] |= ledger.tensors()
            elif isinstance(state, dict):
                cache = torch.stack([state[str(layer)] for layer in spec.config.layers])
                found[f"{group}.cache_c_after"][""] = cache
            if wrapped and isinstance(state["inner"], dict):
                cache = torch.stack([state["inner"][str(layer)] for layer in spec.config.layers])
                found[f"{group}.cache_c_after"][""] = cache
    finally:
        inner.edit = base
        ledger.restore()
    if wrapped:
        for name in state["matrices"]:
            source = lm.layout.input_of(name.rpartition(".")[0])
            found["final.matrix_P"][name] = state["inputs"][source]["gram"]
    return dict(found), stats


def _note(found: Pieces, group: str, lm: Any, batch: Any, step: Any, *, wrapped: bool) -> None:
    """Note what the base editor proposes, on the model as it found it."""
    for name, delta in step.patch.deltas.items():
        change = weight_ledger.to_stored_layout(lm, name, delta.dense().float())
        found[f"{group}.after_base"][name] = lm.weight(name).detach() + change
        found[f"{group}.upd"][name] = change
        if isinstance(delta, LowRank) and delta.left.shape[1] == 1:
            found[f"{group}.u"][""], found[f"{group}.v"][""] = delta.right[0], delta.left[:, 0]
            found[f"{group}.adj_k"][name], found[f"{group}.resid"][name] = delta.right.T, delta.left
    if wrapped:
        modules = [n.removesuffix(".weight") for n in step.patch.deltas]
        for module, columns in keys.all_token_keys(lm, batch, modules).items():
            found[f"{group}.simie_keys"][f"{module}.weight"] = columns.T
