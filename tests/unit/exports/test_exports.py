"""What is given back of a trial answers as the trial's model did, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysweep.config.names import TrialName
from raysweep.config.schema import EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.errors import DamagedError, ModelError, NameUnknownError
from raysweep.exports import adapter, package, proof
from raysweep.exports.export import claimed, export, write_plain
from raysweep.exports.forms import Form
from raysweep.exports.proof import Claim, prove
from raysweep.exports.trials import EditedTrial, attached, find_trial
from raysweep.models.layout import LAYOUTS
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.results.edited import read_edited, without_edited, write_edited
from raysweep.results.folder import Folder
from raysweep.results.tables import open_results
from raysweep.rows import EditedModel
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, load_folder, same, tiny_lm, toy_records
from raysweep.workspace import Workspace
from tests.unit.cli.test_cli_results import write
from tests.unit.studies.test_lifelong import EDITORS, deps, trial

PROMPTS = ["The pet of Ana is", "x"]  # of one token: a product with one vector, whose last bits depend on addresses


MEND = {"layers": [1, 2], "rank": 4, "edit_lr": -1e-4, "train": {"steps": 2, "batch": 2}}
WEIGHT_EDITORS = {
    "ft": EDITORS["ft"],
    "rome": EDITORS["rome+prune"].model_copy(update={"wrap": ()}),
    "memit": EDITORS["memit"],
    "alphaedit": EDITORS["alphaedit"],
    "lora": EDITORS["lora+closed simie, by threes"].model_copy(update={"wrap": ()}),
    "mend": EditorSpec(name="mend", config=MEND),
    "memit+simie": EDITORS["memit+simie"],
    "rome+prune": EDITORS["rome+prune"],
}


def opened_as(one: TrialSpec, edited: EditedModel, lm: LanguageModel) -> EditedTrial:
    found = EditedTrial(TrialName("arm", {}, "k"), one, edited, lm, Workspace(Path()))
    found.__dict__["records"] = toy_records(3)  # in place of a dataset
    return found


def really_edited(editor: str, family: str, folder: Path) -> EditedTrial:
    """Return a trial of *family* as *editor* left it after two records."""
    one, lm = trial("ft", rounds=(2,), keep="edited"), tiny_lm(family)
    one = one.model_copy(update={"editor": WEIGHT_EDITORS[editor]})
    (last,) = Lifelong().execute(one, deps(folder / f"artifacts-{family}", lm), None)
    assert last.edited is not None
    return opened_as(one, last.edited, lm)


def edited_trial(family: str, *, rank: int = 1, lm: LanguageModel | None = None) -> EditedTrial:
    """Return a trial of *family* (or of *lm*) whose second block was changed by a product of *rank*."""
    lm = lm or tiny_lm(family)
    name = f"{lm.layout.mlp_out.format(1)}.weight"
    weight = lm.weight(name).detach().clone()
    rng = torch.Generator().manual_seed(0)
    change = torch.randn(len(weight), rank, generator=rng) @ torch.randn(rank, weight.shape[1], generator=rng)
    weight += (0.1 * change).to(weight.dtype)
    edited = EditedModel(tensors={f"weights/{name}": weight}, meta={"patch": "weights", "state": None})
    return opened_as(trial("ft", keep="edited"), edited, lm)


def in_bfloat16(family: str, folder: Path) -> LanguageModel:
    """Return the tiny model of *family* as a trial with ``model.dtype: bfloat16`` loads it: not every buffer is narrow."""
    lm = tiny_lm(family)
    write_plain(lm, folder)
    return load_folder(folder, dtype="bfloat16")


def from_gguf(folder: Path) -> LanguageModel:
    """Return a tiny Llama that was read from a GGUF file, its tokenizer too."""
    from tests.unit.models.test_gguf import write_gguf  # which needs the package

    return load(ModelSpec(name="tiny", path=str(write_gguf(folder / "tiny.gguf"))), Workspace(folder))


def test_plain_transformers_has_the_same_logits_of_every_family(tmp_path: Path) -> None:
    """Whole models of all layouts, edited by one editor or another; what lies over a model, for two that store weights in two ways;
    16 bits, and a GGUF file: in one fresh process.
    """
    editors, trials = cycle(WEIGHT_EDITORS), {}
    for name in LAYOUTS.names():
        lacks = LAYOUTS.get(name).lacks
        if "dense_mlp" not in lacks:  # else there is no weight editor
            editor = next(e for e in editors if not lacks or ("memit" not in e and "alphaedit" not in e))
            trials[name] = really_edited(editor, name, tmp_path), [Form.MODEL]
    for name in ("gpt2", "llama"):
        trials[f"{name}, by hand"] = edited_trial(name), [Form.TENSORS, Form.ADAPTER]
        narrow = edited_trial(name, lm=in_bfloat16(name, tmp_path / f"{name}-16"))
        trials[f"{name}, bfloat16"] = narrow, list(Form)
    if find_spec("gguf"):
        trials["gguf"] = edited_trial("llama", lm=from_gguf(tmp_path)), [Form.MODEL, Form.TENSORS]
    claims: list[Claim] = []
    with ExitStack() as stack:
        for name, (opened, wanted) in trials.items():
            prompts = PROMPTS if name != "gguf" else ["ab a", "c"]  # its tokenizer knows few letters
            pristine = Claim.of(opened.lm, prompts, tmp_path)
            for form in wanted:
                folder = tmp_path / f"{name}-{form}"
                folder.mkdir()
                claim, rank = stack.enter_context(claimed(opened, folder, form, prompts))
                assert rank == (form is Form.ADAPTER)
                assert not torch.equal(claim.logits[0], pristine.logits[0]), "the edit is seen"
                claims.append(claim)
        differences = prove(claims)
    for claim, difference in zip(claims, differences, strict=True):
        # An adapter adds to what a map puts out: the sum is rounded elsewhere, in 16 bits coarsely. Nothing else differs by a bit.
        largest = max(float(one.abs().max()) for one in claim.logits)
        rounding = 1e-5 if claim.dtype == torch.float32 else 2 * torch.finfo(claim.dtype).eps * largest
        assert difference < rounding if claim.adapter else difference == 0


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
