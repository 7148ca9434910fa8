"""PRUNE around ROME against the published code, which prunes in place at its evaluation rounds (after edits 1 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.artifacts import Artifact, ArtifactRequest
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from tests.contracts.test_stops import trial_of
from tests.golden.recorded import Variant, edit_each, variants
from tests.golden.test_parity import check_answers

ALL = variants("prune")
ROUNDS = (1, 6)


def spec_of(variant: Variant, *, persist: bool = True) -> EditorSpec:
    spec = variant.spec()
    base = variant.name.rpartition("-log")[2].replace("_", ".")
    return EditorSpec(
        name=spec.name, config=spec.config, wrap=(WrapSpec(name="prune", config={"base": base, "persist": persist}),)
    )


def replay(variant: Variant) -> dict[str, dict[str, Tensor]]:
    """Return the weights after each edit (``edit3``) and after each round's pruning (``round1``)."""
    editor: Any = build_editor(spec_of(variant))
    weights = {}
    steps = edit_each(variant.lm, editor, variant.records, variant.artifacts())
    for number, (step, ledger) in enumerate(steps, 1):
        weights[f"edit{number - 1}"] = ledger.tensors()
        if number in ROUNDS:
            view = editor.report_view(variant.lm, ledger.total_deltas, step.state)
            ledger.apply(view.patch)
            weights[f"round{number}"] = ledger.tensors()
    return weights


class Recorded:
    """An artifact store that has what was recorded."""

    def __init__(self, variant: Variant) -> None:
        self.artifacts = variant.artifacts()

    def get_or_build(self, request: ArtifactRequest, build: Callable[[], Any]) -> Artifact:
        if request.kind == "answers":  # our own way of asking the pristine model once
            return Artifact("", *build())
        layer = request.sources.get("moments", request).inputs.get("layer")
        return self.artifacts[request.kind if layer is None else f"{request.kind}/{layer}"]


def study(variant: Variant, spec: EditorSpec) -> list[Any]:
    deps = Deps(
        load_model=lambda _: variant.lm,
        open_dataset=lambda _: variant.records,
        artifacts=Recorded(variant),  # type: ignore[arg-type]
        texts=lambda *_: iter(()),
    )
    return list(Lifelong().execute(trial_of(spec, ROUNDS), deps, None))


@pytest.mark.parametrize("name", ALL)
def test_pruned_weights_and_answers_are_the_published_ones(name: str) -> None:
    variant = Variant(name)
    found = replay(variant)
    (weight,) = found["edit0"]
    pristine = variant.lm.weight(weight).detach()
    pairs = {
        "round1": "prune_call0.after_1_edits",
        "edit5": "edit5.after_base",
        "round6": "prune_call1.after_6_edits",
    }
    for ours, theirs in pairs.items():
        mine, recorded = found[ours][weight], variant.tensors[f"{theirs}.{weight}"]
        relative = float((mine - recorded).norm() / (recorded - pristine).norm())
        absolute, noise = float((mine - recorded).abs().max()), 3 * variant.noise(theirs)
        assert relative <= 1e-4 or absolute <= noise, f"{theirs}: relative {relative:.1e}, absolute {absolute:.1e}"
    assert not torch.equal(found["edit5"][weight], found["round6"][weight]), "nothing was pruned"
    history = [found[f"round{i + 1}" if i + 1 in ROUNDS else f"edit{i}"] for i in range(6)]
    check_answers(variant, history)


@pytest.mark.parametrize("name", ALL)
def test_the_loop_prunes_where_the_published_one_does(name: str) -> None:
    variant = Variant(name)
    found = replay(variant)
    for done in study(variant, spec_of(variant)):
        for key, tensor in found[f"round{done.step}"].items():
            assert torch.equal(done.snapshot.tensors[f"weights/{key}"], tensor)


@pytest.mark.parametrize("name", ALL)
def test_by_default_only_the_reports_are_pruned(name: str) -> None:
    """FIX of quirk Q23: the trajectory is plain ROME's, and the first round's rows are those of the published loop."""
    variant = Variant(name)
    viewed, persisted = study(variant, spec_of(variant, persist=False)), study(variant, spec_of(variant))
    plain = study(variant, variant.spec())
    for ours, bare in zip(viewed, plain, strict=True):
        for key, tensor in bare.snapshot.tensors.items():
            assert torch.equal(ours.snapshot.tensors[key], tensor)
    answers = [
        [(r.record_id, r.probe_index, r.metric, r.value) for r in rounds[0].rows] for rounds in (viewed, persisted)
    ]
    assert answers[0] == answers[1]
