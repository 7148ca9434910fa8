"""Model-level acceptance tests for ROME, MEMIT, FT and SimIE on tiny random models of two families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.artifacts import Artifact
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.linalg import ridge
from raysweep.editors.locate import contexts, keys, target_value
from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import embedded_lm, same, tiny_lm, toy_records
from raysweep.world import WorldSpec, build_world, edit_records
from tests.golden.recorded import model

FAMILIES = ("gpt2", "llama")
VALUE = {"steps": 8, "lr": 0.5, "weight_decay": 1e-3}
CONFIGS: dict[str, dict[str, Any]] = {
    "rome": {"layers": [1], "value": VALUE, "moments": {"damping": 1e-2}},
    "memit": {"layers": [0, 1], "value": VALUE, "moment_weight": 0.1, "moments": {"damping": 1e-2}},
    "ft": {"layers": [1], "steps": 6, "lr": 1e-2, "objective": "target_new"},
}


def made(
    name: str, lm: LanguageModel, wrap: tuple[WrapSpec, ...] = (), **changes: Any
) -> tuple[Any, dict[str, Artifact]]:
    """Return an editor and its artifacts."""
    editor = build_editor(EditorSpec(name=name, config={**CONFIGS[name], **changes}, wrap=wrap))
    return editor, Exam(build=lambda: editor, lm=lm, fresh=lambda: lm).artifacts(editor, lm)


def edit(editor: Any, artifacts: dict[str, Artifact], lm: LanguageModel, record: EditRecord, state: Any = None) -> Any:
    return editor.edit(lm, [record], state, artifacts=artifacts, rng=torch.Generator())


def weights(lm: LanguageModel) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in lm.module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_rome_maps_the_subjects_key_to_the_value_found(family: str) -> None:
    """the value module's output is v* on the bare prompt, the change has rank one, nothing else moves."""
    lm, record = tiny_lm(family, bos=family == "llama"), toy_records(1)[0]
    editor, artifacts = made("rome", lm)
    texts = contexts.templates(editor.config.contexts, artifacts["contexts"])
    target = tokens.target(lm, record.prompt, tokens.with_added_space(record.target))
    task = target_value.value_task(lm, record.template, record.subject, target, texts)
    (value,) = target_value.optimise(lm, [task], layer=1, site="mlp", spec=editor.config.value)
    wanted = value.origin + value.shift
    before, ledger = weights(lm), Ledger(lm)
    step = edit(editor, artifacts, lm, record)
    (name,) = step.patch.deltas
    assert int(torch.linalg.matrix_rank(step.patch.deltas[name].dense(), rtol=1e-9)) == 1
    ledger.apply(step.patch)
    module = name.removesuffix(".weight")
    ids, mask = tokens.pad([tokens.encode(lm, record.prompt)], lm.device)
    with torch.no_grad(), hooks.capture(lm, [(module, "output")]) as seen:
        blocks.run(lm, ids=ids, mask=mask)
    at = tokens.subject_last(lm, record.template, record.subject)
    after = weights(lm)
    ledger.restore()
    assert float((seen[module, "output"][0, at] - wanted).norm() / wanted.norm()) < 1e-5
    assert float(value.shift.norm()) > 1e-2
    assert [n for n in before if not torch.equal(before[n], after[n])] == [name]


@pytest.mark.parametrize("family", FAMILIES)
def test_memit_comes_nearer_to_its_goal_at_each_layer(family: str) -> None:
    """the residual of the fixed goal shrinks layer by layer; taking the change back gives θ_0 bit for bit."""
    lm = tiny_lm(family, bos=family == "llama")
    editor, artifacts = made("memit", lm)
    before, ledger = weights(lm), Ledger(lm)
    for record in toy_records(3):
        step = edit(editor, artifacts, lm, record)
        residuals = [step.stats[f"residual/{layer}"] for layer in (0, 1)]
        assert residuals[0] > residuals[1] > 0
        ledger.apply(step.patch)
    assert not same(before, weights(lm))
    ledger.restore()
    assert same(before, weights(lm))


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
@pytest.mark.parametrize(("name", "stop"), [("tiny-gpt2", 1.0), ("tiny-llama", 1.0), ("embedded", 0.01)])
def test_fine_tuning_stays_near_its_start_and_stops_when_it_knows(name: str, stop: float, objective: str) -> None:
    """entries within ± ε of their start; no step once the loss is below the limit.

    The last norm of a random model keeps the loss above the published 0.01, so that limit is the shipped model's.
    """
    lm = embedded_lm() if name == "embedded" else model(name)
    records = edit_records(build_world(WorldSpec())) if name == "embedded" else toy_records(1)
    short = (replace(r, target=r.target if name == "embedded" else "the") for r in records)
    # one token: FT-L demands all at one place, which cannot know two
    record = next(r for r in short if len(tokens.encode_alone(lm, f" {r.target}")) == 1)

    def run(**changes: Any) -> Any:
        asked = {"layers": [2], "objective": objective, "ask_special": False, "lr": 0.02} | changes
        editor, artifacts = made("ft", lm, **asked)
        return edit(editor, artifacts, lm, record)

    (delta,) = run(norm_constraint=2e-3, steps=4).patch.deltas.values()
    assert float(delta.dense().abs().max()) == pytest.approx(2e-3, rel=1e-3)  # four steps of 0.02 would lead farther
    step = run(steps=60, stop_loss=stop)
    assert step.stats["loss"] < stop < step.stats["first_loss"]
    assert 1 < step.stats["steps"] < 60
    assert run(steps=int(step.stats["steps"]) - 1, stop_loss=stop).stats["loss"] >= stop
    (none,) = run(stop_loss=1e3).patch.deltas.values()
    assert not none.dense().any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rome", "memit", "ft"])
def test_one_accumulation_serves_every_ridge_and_horizon(name: str, family: str) -> None:
    """W_0 + A_T (λI + C_T)⁻¹ for λ and T of choice, from one pass over the pristine model, is what SimIE does."""
    lm, records = tiny_lm(family, bos=family == "llama"), toy_records(5)
    bare, artifacts = made(name, lm)
    names = [n for n in bare.edited_parameters(lm) if n.endswith(".weight")]
    modules = [n.removesuffix(".weight") for n in names]
    a = {n: torch.zeros(lm.logical(n).shape, dtype=torch.float64) for n in names}
    c = {n: torch.zeros(lm.logical(n).shape[1], lm.logical(n).shape[1], dtype=torch.float64) for n in names}
    sums: dict[int, Any] = {}
    for t, record in enumerate(records, 1):
        deltas = edit(bare, artifacts, lm, record).patch.deltas
        found = keys.all_token_keys(lm, [record], modules)
        for n, m in zip(names, modules, strict=True):
            k = found[m].double()
            a[n] = a[n] + deltas[n].times(k) @ k.T
            c[n] = c[n] + k @ k.T
        sums[t] = (dict(a), dict(c))
    for lam in (0.1, 1.0, 10.0):
        wrapped, _ = made(name, lm, (WrapSpec(name="simie", config={"lam": lam, "mode": "init"}),))
        ledger, state = Ledger(lm), wrapped.begin(lm, artifacts)
        for t, record in enumerate(records, 1):
            step = edit(wrapped, artifacts, lm, record, state)
            state = step.state
            ledger.apply(step.patch)
            if t in (1, 3, 5):
                for n in names:
                    closed = ridge.closed_form(sums[t][0][n], sums[t][1][n], lam)
                    assert float((ledger.total_deltas()[n] - closed).norm() / closed.norm()) < 2e-5, (lam, t, n)
        ledger.restore()
