"""What is given back of a trial answers as the trial's model did, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysweep.config.names import TrialName
from raysweep.config.schema import ProtocolSpec
from raysweep.errors import DamagedError, ModelError, NameUnknownError
from raysweep.exports import adapter, package, proof
from raysweep.exports.export import claimed, export
from raysweep.exports.forms import Form
from raysweep.exports.proof import Claim, prove
from raysweep.exports.trials import EditedTrial, attached, find_trial
from raysweep.models.layout import LAYOUTS
from raysweep.models.lm import LanguageModel
from raysweep.results.edited import read_edited, without_edited, write_edited
from raysweep.results.folder import Folder
from raysweep.results.tables import open_results
from raysweep.rows import EditedModel
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from raysweep.workspace import Workspace
from tests.unit.cli.test_cli_results import write
from tests.unit.studies.test_lifelong import deps, trial

PROMPTS = ["The pet of Ana is", "x"]  # of one token: a product with one vector, whose last bits depend on addresses


def edited_trial(family: str, *, rank: int = 1) -> EditedTrial:
    """Return a trial of *family* whose second block was changed by a product of *rank*."""
    lm = tiny_lm(family)
    name = f"{lm.layout.mlp_out.format(1)}.weight"
    weight = lm.weight(name).detach().clone()
    rng = torch.Generator().manual_seed(0)
    weight += 0.1 * torch.randn(len(weight), rank, generator=rng) @ torch.randn(rank, weight.shape[1], generator=rng)
    edited = EditedModel(tensors={f"weights/{name}": weight}, meta={"patch": "weights", "state": None})
    found = EditedTrial(TrialName("ft", {}, "k"), trial("ft", keep="edited"), edited, lm, Workspace(Path()))
    found.__dict__["records"] = toy_records(3)  # in place of a dataset
    return found


def test_plain_transformers_has_the_same_logits_of_every_family(tmp_path: Path) -> None:
    """Whole models of all layouts, and what lies over a model of two that store weights in two ways, in one fresh process."""
    forms = {name: [Form.MODEL] for name in LAYOUTS.names() if "dense_mlp" not in LAYOUTS.get(name).lacks}
    for name in ("gpt2", "llama"):
        forms[name] = list(Form)
    claims: list[Claim] = []
    with ExitStack() as stack:
        for name, wanted in forms.items():
            opened = edited_trial(name)
            pristine = Claim.of(opened.lm, PROMPTS, tmp_path)
            for form in wanted:
                folder = tmp_path / f"{name}-{form}"
                folder.mkdir()
                claim, rank = stack.enter_context(claimed(opened, folder, form, PROMPTS))
                assert rank == (form is Form.ADAPTER)
                assert not torch.equal(claim.logits[0], pristine.logits[0]), "the edit is seen"
                claims.append(claim)
        differences = prove(claims)
    for claim, difference in zip(claims, differences, strict=True):
        assert difference < 1e-5 if claim.adapter else difference == 0


@pytest.mark.parametrize(
    "editor", ["ft", "memit+simie", "memit+closed simie", "rome+prune", "oracle", "grace", "wise", "wise-merged"]
)
def test_what_is_kept_is_what_was_measured(editor: str, tmp_path: Path) -> None:
    lm, measured = tiny_lm("llama"), {}

    def observe(lm: LanguageModel, step: int) -> None:
        measured[step] = package.last_logits(lm, PROMPTS)

    one = trial(editor, rounds=(0, 2, 4), keep="edited")
    assert one.key == trial(editor, rounds=(0, 2, 4)).key
    *earlier, last = Lifelong().execute(one, replace(deps(tmp_path, lm), observe=observe), None)
    assert all(measured_round.edited is None for measured_round in earlier)
    assert last.edited is not None
    folder, before = Folder(tmp_path / "results"), fingerprint(lm)
    write_edited(folder, "k", 4, last.edited)
    kept = read_edited(folder, "k")
    assert kept is not None
    with attached(lm, one.editor, kept.tensors, kept.meta):
        assert torch.equal(package.last_logits(lm, PROMPTS), measured[4])
    assert same(fingerprint(lm), before)
    assert torch.equal(package.last_logits(lm, PROMPTS), measured[0])


def test_an_unedited_model_is_nothing_to_keep() -> None:
    with pytest.raises(ValueError, match="keep: edited needs a round after an edit"):
        ProtocolSpec(rounds=(0,), keep="edited")


def test_files_of_an_edited_model_are_checked(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert read_edited(folder, "k") is None
    assert without_edited(folder, ["k"]) == ["k"]
    tensor = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    write_edited(folder, "k", 2, EditedModel(tensors={"weights/w": tensor}, meta={"patch": "weights", "state": None}))
    assert without_edited(folder, ["k"]) == []
    read = read_edited(folder, "k")
    assert read is not None
    assert torch.equal(read.tensors["weights/w"], tensor)
    save_file({"weights/w": tensor + 1}, tmp_path / "k/edited.safetensors")
    with pytest.raises(DamagedError, match="is not as it was written"):
        read_edited(folder, "k")
    (tmp_path / "k/edited.safetensors").unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        read_edited(folder, "k")


def _shifted(answers: dict[str, torch.Tensor]) -> None:
    answers["logits/1"][0, 0] += 1e-4


def _nan(answers: dict[str, torch.Tensor]) -> None:
    answers["logits/0"][0, 0] = torch.nan


def _token(answers: dict[str, torch.Tensor]) -> None:
    answers["ids/0"][0] += 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(_shifted, "differ by 0.0001, allowed 0"), (_nan, "differ by nan"), (_token, "gives other tokens for 'The pet")],
)
def test_another_answer_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None], sentence: str, tmp_path: Path
) -> None:
    claim = Claim.of(tiny_lm("llama"), PROMPTS, tmp_path)
    answers = {f"ids/{i}": ids.clone() for i, ids in enumerate(claim.ids)}
    answers |= {f"logits/{i}": logits.clone() for i, logits in enumerate(claim.logits)}
    save_file(answers, tmp_path / "same")
    assert claim.difference(tmp_path / "same") == 0
    change(answers)
    save_file(answers, tmp_path / "other")
    with pytest.raises(ModelError, match=sentence):
        claim.difference(tmp_path / "other")


def test_an_export_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(claims: list[Claim]) -> list[float]:
        assert (claims[0].folder / "model.safetensors").is_file()
        raise ModelError("no")

    monkeypatch.setattr("raysweep.exports.export.prove", refuse)
    with pytest.raises(ModelError, match="no"):
        export(edited_trial("llama"), tmp_path / "there", Form.MODEL)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "raise SystemExit('it is broken')"
    )  # as an import of transformers would fail, without its seconds
    monkeypatch.setattr(proof, "_SCRIPT", script)
    with pytest.raises(ModelError, match="plain transformers cannot read it: it is broken"):
        prove([Claim.of(tiny_lm("llama"), PROMPTS, tmp_path)])


class TestAdapter:
    def test_factors_are_of_least_rank_and_hold_the_change(self) -> None:
        opened = edited_trial("gpt2", rank=3)
        ((name, weight),) = opened.weights.items()
        ((owner, (up, down)),) = adapter.factors(opened.lm, opened.weights).items()
        assert (owner, up.shape[1], down.shape[0]) == (name.removesuffix(".weight"), 3, 3)
        change = weight.t() - opened.lm.logical(name)
        assert torch.allclose(up @ down, change, atol=1e-6)

    def test_what_it_cannot_hold_is_refused_by_name(self) -> None:
        opened = edited_trial("llama", rank=16)
        embed = f"{opened.lm.layout.embed}.weight"
        weights = {**opened.weights, embed: opened.lm.weight(embed) + 1}
        with pytest.raises(ModelError) as caught:
            adapter.factors(opened.lm, weights)
        assert "the change of 'model.layers.1.mlp.down_proj.weight' has a rank above 9" in caught.value.message
        assert f"'{embed}' is no matrix of a linear map" in caught.value.message

    def test_no_change_is_no_adapter(self) -> None:
        lm = tiny_lm("llama")
        name = f"{lm.layout.mlp_out.format(0)}.weight"
        with pytest.raises(ModelError, match="the edits changed no weight"):
            adapter.factors(lm, {name: lm.weight(name).clone()})


class TestMemory:
    def opened(self, tmp_path: Path) -> EditedTrial:
        lm, one = tiny_lm("llama"), trial("grace", rounds=(2,), keep="edited")
        (last,) = Lifelong().execute(one, deps(tmp_path / "a", lm), None)
        assert last.edited is not None
        return EditedTrial(TrialName("grace", {}, "k"), one, last.edited, lm, Workspace(tmp_path))

    @pytest.mark.parametrize("form", [Form.MODEL, Form.ADAPTER])
    def test_it_is_no_plain_model(self, form: Form, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"a memory beside the weights; a plain {form} would silently lack them"):
            export(self.opened(tmp_path), tmp_path / "there", form)
        assert not (tmp_path / "there").exists()

    def test_its_package_puts_it_to_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, folder = self.opened(tmp_path), tmp_path / "there"
        folder.mkdir()
        package.write_package(opened, folder)
        with opened.attached() as lm:
            logits = package.last_logits(lm, PROMPTS)
        about = json.loads((folder / package.ABOUT).read_text())
        assert set(about["names"]) == set(load_file(folder / package.TENSORS)) >= {"state/keys", "state/values"}
        monkeypatch.setattr(package, "load", lambda spec, workspace: tiny_lm("llama"))
        with package.loaded(folder) as lm:
            assert torch.equal(package.last_logits(lm, PROMPTS), logits)
        (folder / package.TENSORS).write_bytes(b"")
        with pytest.raises(DamagedError, match="is not as it was written"), package.loaded(folder):
            pass
        (folder / package.ABOUT).write_text("[]")
        with pytest.raises(DamagedError, match="is no raysweep-edited/1"), package.loaded(folder):
            pass


def test_a_trial_is_found_by_key_or_by_arm_and_values(tmp_path: Path) -> None:
    keys = {(arm, seed): write(tmp_path, seed, arm, 0.5) for arm in ("plain", "wrapped") for seed in (0, 1)}
    sweep = open_results("toy", Workspace(tmp_path))
    for (arm, seed), key in keys.items():
        for text in (key, key[:6], f"{arm},seed={seed}", f"{arm} seed={seed}"):
            assert find_trial(sweep, text).key == key
    with pytest.raises(NameUnknownError, match="'plain' means 2 trials of 'toy'") as several:
        find_trial(sweep, "plain")
    assert keys["plain", 1] in several.value.hint
    for text in ("plian seed=0", "plain,seed=2", "plain,lam=0", ""):
        with pytest.raises(NameUnknownError, match="no trial"):
            find_trial(sweep, text)
