"""SimIE as a wrapper: what λ is, what its back ends share, what a view of the closed form is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, TextSpec, WrapSpec
from raysweep.config.sweep import load_search_space
from raysweep.editors.build import build_editor
from raysweep.editors.linalg import ridge
from raysweep.editors.locate import keys, second_moments
from raysweep.editors.wrappers.simie.closed_form import ClosedFormSimIE
from raysweep.editors.wrappers.simie.common import BaseSimIE
from raysweep.editors.wrappers.simie.config import CANDIDATES, Energy, SimIEConfig
from raysweep.errors import ArtifactError, SpecError
from raysweep.models.ledger import Ledger
from raysweep.pytree import flatten
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import same, tiny_lm, toy_records
from raysweep.workspace import Workspace

FT = {"layers": [0, 1], "steps": 3, "lr": 5e-3}


def built(config: dict[str, Any], editor: str = "ft", inner: dict[str, Any] | None = None) -> Any:
    wrap = (WrapSpec(name="simie", config=config),)
    return build_editor(EditorSpec(name=editor, config=FT if inner is None else inner, wrap=wrap))


def exam(config: dict[str, Any], family: str = "llama", **options: Any) -> Exam:
    return Exam(
        build=lambda: built(config, **options), lm=tiny_lm(family, bos=True), fresh=lambda: tiny_lm(family, bos=True)
    )


def stats_of(exam: Exam, order: list[int] | None = None) -> list[dict[str, float]]:
    editor = exam.build()
    artifacts = exam.artifacts(editor, exam.lm)
    state, ledger, found = editor.begin(exam.lm, artifacts), Ledger(exam.lm), []
    for i in order or range(3):
        step = editor.edit(exam.lm, [exam.records[i]], state, artifacts=artifacts, rng=torch.Generator())
        ledger.apply(step.patch)
        state = step.state
        found.append(dict(step.stats))
    ledger.restore()
    return found


def test_lambda_is_a_number_or_a_multiple_of_the_mean_energy() -> None:
    assert SimIEConfig.model_validate({"lam": 3}).lam == 3.0
    given = SimIEConfig.model_validate({"lam": {"energy": 0.1}})
    assert given.lam == Energy(energy=0.1)
    assert SimIEConfig.model_validate(json.loads(given.model_dump_json())) == given


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), "much", {"energy": 0}, {"energie": 1.0}, {}, [1.0]])
def test_any_other_lambda_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SimIEConfig.model_validate({"lam": wrong})
    assert len(caught.value.errors()) == (2 if wrong == {"energie": 1.0} else 1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mean_energy_is_that_of_every_token_of_the_text(family: str) -> None:
    lm = tiny_lm(family, bos=True)
    module = lm.layout.mlp_out.format(1)
    records = toy_records(5)
    texts = [f"{r.prompt} {r.target}" for r in records]
    request = second_moments.energy_request(lm, module, TextSpec(tokens=0))
    ((_, meta),) = second_moments.build_energy(lm, [request], iter(texts))
    columns = keys.all_token_keys(lm, records, [module])[module].double()
    assert meta["tokens"] == columns.shape[1]
    assert meta["energy"] == pytest.approx(float(columns.square().sum(0).mean()), rel=1e-6)
    with pytest.raises(ArtifactError, match="over 0 tokens"):
        second_moments.build_energy(lm, [request], iter([]))


@pytest.mark.parametrize("backend", ["woodbury64", "chol64", "svd", "ref_fp32_lu"])
def test_lambda_in_units_of_energy_equals_its_absolute_value(backend: str) -> None:
    relative = exam({"lam": {"energy": 0.5}, "backend": backend}, inner={**FT, "layers": [1]})
    used = {k: v for k, v in stats_of(relative)[0].items() if k.startswith("simie_lambda/")}
    ((_, lam),) = used.items()
    energy = relative.artifacts(relative.build(), relative.lm)
    assert lam == 0.5 * next(a for n, a in energy.items() if n.startswith("energy/")).meta["energy"]
    a, _ = relative.run(relative.lm, relative.build())
    tensors = a.tensors()
    a.restore()
    b, _ = relative.run(relative.lm, built({"lam": lam, "backend": backend}, inner={**FT, "layers": [1]}))
    assert all(torch.equal(tensors[n], t) for n, t in b.tensors().items())
    b.restore()


def test_an_update_that_does_not_stand_is_made_anew_for_its_input_alone() -> None:
    subject = exam({"lam": 0.5})
    editor = subject.build()
    ledger, state = subject.run(subject.lm, editor, stop=1)
    assert isinstance(state, dict)
    spoilt, sound = state["inputs"]
    memory = {k: -1e9 * v if k == "inverse" else v for k, v in state["inputs"][spoilt].items()}
    memory["rows"] = [1e9 * r for r in memory["rows"]]
    bad = {**state, "inputs": {**state["inputs"], spoilt: memory}}
    right, mended = (
        editor.edit(subject.lm, [subject.records[1]], s, artifacts={}, rng=torch.Generator()) for s in (state, bad)
    )
    ledger.restore()
    assert {s: m["age"] for s, m in mended.state["inputs"].items()} == {spoilt: 0, sound: 2}
    for name, delta in right.patch.deltas.items():
        torch.testing.assert_close(mended.patch.deltas[name].dense(), delta.dense(), rtol=1e-6, atol=1e-9)
    # a new inverse tells its drift, whichever update it is
    assert len([k for k in mended.stats if k.startswith("simie_drift/")]) == 1
    assert not [k for k in right.stats if k.startswith("simie_drift/")]


def test_lambda_in_units_of_energy_does_not_depend_on_the_order_of_the_edits() -> None:
    subject = exam({"lam": {"energy": 0.5}, "mode": "init"})
    first, second = (stats_of(subject, order) for order in ([0, 1, 2], [2, 0, 1]))
    used = [{(k, v) for s in run for k, v in s.items() if k.startswith("simie_lambda/")} for run in (first, second)]
    assert used[0] == used[1]
    assert len({k for k, _ in used[0]}) == len(used[0]) == 2  # one λ per input, the same at every edit


SWEEP = """\
sweep: units
base:
  data: {name: world, size: 4}
  protocol: {rounds: [0, 4]}
arms:
  fixed: {editor: ft, wrap: {name: simie, lam: {energy: 0.1}}}
  swept: {editor: ft, wrap: simie, space: {wrap.simie.lam.energy: {grid: [0.01, 1]}}}
"""


def test_lambda_in_units_of_energy_is_written_and_swept_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "units.yaml").write_text(SWEEP)
    workspace = Workspace(tmp_path)
    found = plan(load_search_space("units.yaml", workspace), workspace).trials
    assert [t.trial.editor.wrap[0].config.lam for t in found] == [Energy(energy=x) for x in (0.1, 0.01, 1.0)]
    assert all(t.trial.editor.wrap[0].config.text.digest for t in found)


VALUE = {"steps": 4, "lr": 0.5, "weight_decay": 0.001}
INNER: dict[str, tuple[str, dict[str, Any]]] = {
    "ft": ("ft", FT),
    "rome": ("rome", {"layers": [1], "value": VALUE, "moments": {"damping": 1e-2}}),
    "memit": ("memit", {"layers": [0, 1], "value": VALUE, "moment_weight": 1.0}),
    "alphaedit": ("alphaedit", {"layers": [0, 1], "value": VALUE, "threshold": 0.01, "ridge": 0.01}),
    "alphaedit-pre1": ("alphaedit", {"layers": [0, 1], "value": VALUE, "threshold": 0.01, "ridge": 0.01, "pre": 1}),
    "mend": ("mend", {"layers": [1, 2], "rank": 4, "edit_lr": -1e-4, "train": {"steps": 2, "batch": 2}}),
}
CLOSED = {"mode": "init", "backend": "closed64"}


def closed_and_recursive(
    exam: Exam, recursive: Exam, edits: int
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], Any]]:
    """Yield after each edit the total changes of the closed form and of the recursion, and the closed form's state."""
    lm, editors = exam.lm, (exam.build(), recursive.build())
    artifacts = exam.artifacts(editors[0], lm)
    states = [e.begin(lm, artifacts) for e in editors]
    ledgers = Ledger(lm), Ledger(recursive.lm)
    for i in range(edits):
        for j, subject in enumerate((exam, recursive)):
            rng = torch.Generator().manual_seed(i)
            step = editors[j].edit(subject.lm, [exam.records[i]], states[j], artifacts=artifacts, rng=rng)
            ledgers[j].apply(step.patch)
            states[j] = step.state
        view = editors[0].report_view(lm, ledgers[0].total_deltas, states[0]).patch.deltas
        assert all(not bool(total.any()) for total in ledgers[0].total_deltas().values())
        yield {n: d.dense().float() for n, d in view.items()}, ledgers[1].total_deltas(), states[0]
    for ledger in ledgers:
        ledger.restore()


@pytest.mark.parametrize("lam", [0.05, {"energy": 1e-3}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", sorted(INNER))
def test_the_closed_form_is_what_the_recursion_comes_to(name: str, family: str, lam: Any) -> None:
    """, at every step, below and above as many keys as their width."""
    editor, inner = INNER[name]
    first, second = (exam({"lam": lam, **c}, family, editor=editor, inner=inner) for c in (CLOSED, {"mode": "init"}))
    summed = set()
    for ours, theirs, state in closed_and_recursive(first, second, 6):
        assert set(ours) == set(theirs)
        for n, change in theirs.items():
            weight = first.lm.logical(n)
            assert float((ours[n] - change).norm() / (weight + change).norm()) < 1e-6
            assert float((ours[n] - change).norm() / change.norm()) < 1e-4
        summed |= {"gram" in kept for kept in state["inputs"].values()}
    assert summed == {False, True}


def test_the_state_of_the_closed_form_serves_every_lambda() -> None:
    subjects = [exam({"lam": lam, **CLOSED}) for lam in (0.01, {"energy": 2.0})]
    editors = [s.build() for s in subjects]
    runs = [s.run(s.lm, e) for s, e in zip(subjects, editors, strict=True)]
    assert same(flatten("state", runs[0][1]), flatten("state", runs[1][1]))
    before = flatten("state", runs[0][1])
    views = [editors[1].report_view(s.lm, dict, state) for s, (_, state) in zip(subjects, runs, strict=True)]
    assert views[0].stats == views[1].stats
    assert same(*({n: d.dense() for n, d in v.patch.deltas.items()} for v in views))
    assert same(before, flatten("state", runs[0][1]))
    other = editors[0].report_view(subjects[0].lm, dict, runs[0][1])
    norms = [sum(v for k, v in found.stats.items() if k.startswith("drift/")) for found in (other, views[0])]
    assert norms[0] > 1.5 * norms[1]


def test_what_the_closed_form_shares() -> None:
    def shared(config: dict[str, Any], **options: Any) -> Any:
        editor = built(config, **options)
        return editor.edit_dependencies()

    first = shared({"lam": 1, **CLOSED})
    assert first == shared({"lam": {"energy": 0.1}, **CLOSED})
    assert first["inner"]["config"]["steps"] == 3
    assert json.loads(json.dumps(first)) == first
    for other in ({"lam": 1, **CLOSED, "keys": "after"}, {"lam": 1, **CLOSED, "text": {"tokens": 9}}):
        assert shared(other) != first
    assert shared({"lam": 1, **CLOSED}, inner={**FT, "steps": 4}) != first
    assert shared({"lam": 1, "mode": "init"}) is None


def test_only_the_closed_form_is_a_view() -> None:
    closed, recursive = built(CLOSED), built({"mode": "init"})
    assert isinstance(closed, ClosedFormSimIE)
    assert isinstance(closed, BaseSimIE)
    assert closed.view_persists is False
    lm = tiny_lm("llama")
    assert recursive.report_view(lm, dict, recursive.begin(lm, {})) is None
    with pytest.raises(ValidationError, match="mode must be init"):
        SimIEConfig.model_validate({"backend": "closed64"})


def test_keys_too_large_for_the_ridge_are_an_error() -> None:
    normal = ridge.NormalEquations.dual(torch.tensor([[1.0, 0], [2.0, 0]]).double(), torch.eye(2).double())
    with pytest.raises(SpecError, match="λ = 1e-30 is too small beside keys of energy 4"):
        normal.solve(1e-30)
    assert bool(torch.isfinite(normal.solve(1.0)).all())


def test_what_prune_shares() -> None:
    def shared(config: dict[str, Any]) -> Any:
        spec = EditorSpec(name="ft", config=FT, wrap=(WrapSpec(name="prune", config=config),))
        return build_editor(spec).edit_dependencies()  # type: ignore[attr-defined]

    assert shared({"base": 2}) == shared({"base": "e"})
    assert "base" not in shared({"base": 2})["config"]
    assert shared({"base": 2, "persist": True}) is None


@pytest.mark.parametrize("edits", [1, 6])
def test_gcv_chooses_one_lambda_per_input_from_the_candidates(edits: int) -> None:
    subject = exam({"lam": "gcv", **CLOSED}, editor="mend", inner=INNER["mend"][1])
    editor = subject.build()
    ledger, state = subject.run(subject.lm, editor, stop=edits)
    ledger.restore()
    view = editor.report_view(subject.lm, dict, state)
    chosen = {k.partition("/")[2]: v for k, v in view.stats.items() if k.startswith("simie_lambda/")}
    assert set(chosen) == set(state["inputs"]) == {k[10:] for k in view.stats if k.startswith("simie_gcv/")}
    for source, lam in chosen.items():
        assert lam in [c * state["inputs"][source]["energy"] for c in CANDIDATES]
        fixed = (
            built({"lam": lam, **CLOSED}, "mend", INNER["mend"][1]).report_view(subject.lm, dict, state).patch.deltas
        )
        for name, delta in view.patch.deltas.items():
            if subject.lm.layout.input_of(name.rpartition(".")[0]) == source:
                assert torch.equal(delta.dense(), fixed[name].dense())
    with pytest.raises(ValidationError, match="backend must be closed64 for lam gcv"):
        SimIEConfig.model_validate({"lam": "gcv", "mode": "init"})
