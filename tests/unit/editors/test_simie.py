"""SimIE as a wrapper: what λ is, what its back ends share, what a view of the closed form is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, TextSpec, WrapSpec
from raysweep.config.sweep import open_sweep
from raysweep.editors import keys, moments
from raysweep.editors.build import build_editor
from raysweep.editors.wrappers.simie import Energy, SimIEConfig
from raysweep.errors import ArtifactError
from raysweep.models.patching import Ledger
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
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
    request = moments.energy_request(lm, module, TextSpec(tokens=0))
    ((_, meta),) = moments.build_energy(lm, [request], iter(texts))
    columns = keys.all_token_keys(lm, records, [module])[module].double()
    assert meta["tokens"] == columns.shape[1]
    assert meta["energy"] == pytest.approx(float(columns.square().sum(0).mean()), rel=1e-6)
    with pytest.raises(ArtifactError, match="over 0 tokens"):
        moments.build_energy(lm, [request], iter([]))


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
    found = plan(open_sweep("units.yaml", workspace), workspace).trials
    assert [t.trial.editor.wrap[0].config["lam"] for t in found] == [{"energy": x} for x in (0.1, 0.01, 1.0)]
    assert all(t.trial.editor.wrap[0].config["text"]["digest"] for t in found)
