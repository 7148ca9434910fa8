"""A model over two devices is edited, asked and restored as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.config.schema import EditorSpec, ModelSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.evals.free import Asked, write
from raysweep.evals.scoring import score
from raysweep.models import tokens
from raysweep.models.forward import fused
from raysweep.models.lm import LanguageModel
from raysweep.models.sources import load as loading
from raysweep.models.spread import shares, spread
from raysweep.pytree import flatten
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
from raysweep.testing.sham_device import ShamDevice, device
from raysweep.tune.deps import ModelPool
from raysweep.workspace import Workspace
from tests.contracts.test_editors import CONFIGS, SIMIE, label
from tests.gpu.agree import agree
from tests.gpu.test_editors import LATER, exam, first_edit, tolerance

CLOSED = {"lam": 0.1, "mode": "init", "backend": "closed64"}
WRAPS: list[tuple[str, dict[str, Any]]] = [("simie", SIMIE[0]), ("simie", SIMIE[2]), ("simie", CLOSED)]
SPECS = [
    *(EditorSpec(name=name, config=CONFIGS[name]) for name in ("rome", "memit", "alphaedit", "oracle")),
    EditorSpec(name="ft", config={**CONFIGS["ft"], "layers": [0, 1], "norm_constraint": 0.01}),
    EditorSpec(name="alphaedit", config={**CONFIGS["alphaedit"], "pre": 1}, wrap=(WrapSpec(name="simie", config=SIMIE[0]),)),
    *(EditorSpec(name="memit", config=CONFIGS["memit"], wrap=(WrapSpec(name=n, config=c),)) for n, c in WRAPS),
    EditorSpec(name="rome", config=CONFIGS["rome"], wrap=(WrapSpec(name="prune", config={"base": "2"}),)),
]  # fmt: skip


def over(count: int, family: str = "llama") -> LanguageModel:
    """Return the tiny model over so many devices, its first block on the first of them, the other two on the last."""
    lm = tiny_lm(family)
    spread(lm.module, lm.layout, [device(i) for i in range(count)], [0, count - 1, count - 1])
    return lm


def places(lm: LanguageModel) -> list[int]:
    return [lm.weight(f"{lm.layout.mlp_out.format(i)}.weight").device.index for i in range(lm.n_blocks)]


@pytest.mark.parametrize("spec", SPECS, ids=label)
def test_one_edit_is_that_of_one_device(spec: EditorSpec) -> None:
    with ShamDevice():
        one, two = over(1), over(2)
        assert (places(one), places(two)) == ([0, 0, 0], [0, 1, 1])
        results = [first_edit(lm, build_editor(spec), exam(lm, spec)) for lm in (one, two)]
    agree(*results, tolerance(spec))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_written_freely_is_that_of_one_device(family: str) -> None:
    """Keys and values lie where their block does, also once some rows have ended."""
    with ShamDevice():
        lms = [over(count, family) for count in (1, 2)]
        asked = [Asked(tuple(tokens.encode(lms[0], record.prompt)), i) for i, record in enumerate(toy_records(4))]
        # what one row says third ends it
        third = write(lms[0], asked, most=3)[0].ids[-1]
        for lm in lms:
            lm.tokenizer.eos_token_id = third
        one, two = ([w.ids for w in write(lm, asked, most=12)] for lm in lms)
    assert one == two
    assert len({len(ids) for ids in one}) > 1


@pytest.mark.parametrize(
    ("name", "family"), [("memit", "llama"), ("ft", "llama"), ("rome", "qwen2"), ("memit", "gpt2")]
)
def test_a_run_its_answers_and_what_is_restored_are_those_of_one_device(name: str, family: str) -> None:
    spec, results = EditorSpec(name=name, config=CONFIGS[name]), []
    with ShamDevice():
        for count in (1, 2):
            lm = over(count, family)
            have = Exam(build=lambda: build_editor(spec), lm=lm, fresh=lambda lm=lm: lm)
            pool = ModelPool(lambda spec, told, lm=lm: lm)
            assert pool.get(ModelSpec()) is lm
            before = {name: tensor.cpu().clone() for name, tensor in lm.module.state_dict().items()}
            ledger, state = have.run(lm, have.build(), stop=2)
            scored = score(lm, [p for r in have.records[:3] for p in r.probes])
            answers = [(s.answers, s.logprob) for s in scored]
            results.append((ledger.tensors(), ledger.total_deltas(), flatten("state", state)[0], answers))
            assert {d.device for d in ledger.total_deltas().values()} == {lm.device}
            assert pool.restore(), "the blocks' own way of taking inputs is no hook"
            assert all(torch.equal(t.cpu(), before[n]) for n, t in lm.module.state_dict().items())
    agree(*results, LATER)


def test_only_blocks_on_the_first_device_are_run_by_their_parameters() -> None:
    with ShamDevice():
        one, two = over(1), over(2)
        assert [fused.supports(lm, 0, end) for lm in (one, two) for end in (1, 2, None)] == [True] * 4 + [False] * 2


def test_a_model_is_loaded_to_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [p for r in toy_records(2) for p in r.probes]
    here = loading.load(ModelSpec(), Workspace(tmp_path))
    expected = [s.logprob for s in score(here, probes)]
    monkeypatch.setattr(loading, "devices", lambda count: [device(i) for i in range(count)])
    with ShamDevice():
        there = loading.load(ModelSpec(devices=2), Workspace(tmp_path))
        assert sorted(set(places(there))) == [0, 1]
        agree(expected, [s.logprob for s in score(there, probes)], LATER)
    assert (there.device, there.identity) == (device(0), here.identity)


def test_blocks_follow_each_other_and_devices_hold_about_as_much() -> None:
    lm = tiny_lm("llama")
    assert shares(lm.module, lm.layout, 1) == [0, 0, 0]
    # Embedding, norm and head, more than half of this model, are on the first of them and fill its share.
    assert shares(lm.module, lm.layout, 2) == [1, 1, 1]
    assert shares(lm.module, lm.layout, 4) == [2, 3, 3]
