"""Edits of a model in hand: written, asked about, taken back bit for bit, and the same as those of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import raysweep
from raysweep.errors import ModelError, ProblemsError, RecordError, SpecError
from raysweep.library.session import EditSession
from raysweep.models.lm import LanguageModel
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.cluster.drift_editor import Drift, DriftConfig

TEXT = {"text": {"name": "dataset", "tokens": 200}, "width": 16, "damping": 1e-3}
VALUE = {"steps": 3, "lr": 0.5}
FT: dict[str, Any] = {"config": {"layers": [1], "steps": 2, "lr": 1e-2}}
MEMIT: dict[str, Any] = {"config": {"layers": [0, 1], "value": VALUE, "moment_weight": 1.0, "moments": TEXT}}
CLOSED = {"name": "simie", "lam": {"energy": 0.01}, "mode": "init", "backend": "closed64"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "ft": ("ft", FT),
    "memit": ("memit", MEMIT),
    "memit in closed simie": ("memit", {**MEMIT, "wrap": CLOSED}),
    "ft in simie in prune": ("ft", {**FT, "wrap": [{"name": "simie", "lam": 1.0}, "prune"]}),
    "grace": ("grace", {"config": {"layer": 1, "steps": 2, "radius": 2.0}}),
    "oracle": ("oracle", {}),
}
FIRST, SECOND, THIRD = toy_records(3)


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    # One for all tests of this file: second moments are made once.
    return Workspace(tmp_path_factory.getbasetemp() / "library")


def logits(lm: LanguageModel) -> Tensor:
    ids = torch.tensor([[5, 80, 90, 100, 33, 20]])
    with torch.no_grad():
        return lm.module(input_ids=ids).logits.clone()


def answers(session: EditSession) -> Tensor:
    with session.attached() as lm:
        return logits(lm)


@pytest.mark.parametrize("call", CALLS)
def test_edits_are_taken_back_bit_for_bit(call: str, workspace: Workspace) -> None:
    editor, options = CALLS[call]
    lm = tiny_lm("llama")
    pristine, plain = fingerprint(lm), logits(lm)
    with raysweep.edit(lm, editor, FIRST, workspace=workspace, history=2, **options) as session:
        once = answers(session)
        twice = answers(session.edit(SECOND))
        assert not torch.equal(once, twice) or call in ("oracle", "grace")
        with session.unedited() as unedited:
            assert torch.equal(logits(unedited), plain)
        assert torch.equal(answers(session), twice), "asking changes nothing"
        assert torch.equal(answers(session.undo()), once)
        assert session.records == (FIRST,)
        assert torch.equal(answers(session.edit(SECOND)), twice), "the same edit again"
        session.undo().undo()
        assert torch.equal(answers(session), plain)
        with pytest.raises(SpecError, match="nothing is written"):
            session.undo()
    assert same(fingerprint(lm), pristine)
    with pytest.raises(SpecError, match="closed"):
        session.edit(FIRST)


def totals(snapshot: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights/"): t for name, t in snapshot.items() if name.startswith("weights/")}


@pytest.mark.parametrize("wrap", [[], ["simie"], ["prune"]], ids=str)
def test_a_loop_writes_what_a_sweep_writes(wrap: list[str], workspace: Workspace) -> None:
    """The weights of the lifelong study's last snapshot, bit for bit, from the same records in the same order."""
    base = {
        "data": {"name": "world", "size": 4, "order": "file"},
        "protocol": {"rounds": [4], "batch_size": 2},
        "seed": 3,
    }
    space = {"sweep": "s", "base": base, "arms": {"a": {"editor": "ft", "wrap": wrap}}}
    (planned,) = raysweep.plan(space, workspace).trials
    (done,) = Lifelong().execute(planned.trial, make_deps(workspace), None)
    assert done.snapshot is not None
    records = raysweep.open_dataset(planned.trial.data, workspace)
    with raysweep.edit(raysweep.load_model("embedded"), "ft", wrap=wrap, seed=3, workspace=workspace) as session:
        for i in (0, 2):
            session.edit(*records[i : i + 2])
        assert session.spec == planned.trial.editor
        weights = {name: session.model.weight(name) for name in session.changes()}
        assert same(
            weights, {n: torch.nn.Parameter(t, requires_grad=False) for n, t in totals(done.snapshot.tensors).items()}
        )


def test_the_changes_are_those_that_are_measured(workspace: Workspace) -> None:
    """SimIE's closed form writes nothing: what counts is its view."""
    lm = tiny_lm("gpt2")
    plain = logits(lm)
    with raysweep.edit(lm, "memit", FIRST, workspace=workspace, **MEMIT, wrap=CLOSED) as session:
        changes = session.changes()
        assert set(changes) == set(session.editor.edited_parameters(lm))
        seen = answers(session)
        assert not torch.equal(seen, plain)
    with torch.no_grad():
        for name, change in changes.items():
            lm.weight(name).add_(change.T if lm.transposed(name) else change)
    torch.testing.assert_close(logits(lm), seen, rtol=1e-4, atol=1e-4)


def test_answers_before_and_after(workspace: Workspace) -> None:
    lm = raysweep.load_model("embedded", workspace)
    prompt = "Relis Megez works as a"
    with raysweep.edit(lm, "ft", prompt=prompt, target="lawyer", workspace=workspace) as session:
        (one,) = session.compare(prompt, length=1)
        assert (one.before, one.after) == (" baker", " lawyer")
        assert session.generate(prompt, length=1) == " lawyer"
        assert session.probability(prompt, "lawyer") > 0.9
        with session.unedited():
            pass
        assert session.stats


def test_one_session_at_a_time(workspace: Workspace) -> None:
    lm = tiny_lm("llama")
    pristine = fingerprint(lm)
    raysweep.edit(lm, "ft", FIRST, workspace=workspace, **FT)  # whose session is lost
    with pytest.raises(SpecError, match="another session is open"):
        raysweep.edit(lm, "ft", SECOND, workspace=workspace, **FT)
    lm.restore()
    assert same(fingerprint(lm), pristine)
    raysweep.edit(lm, "ft", SECOND, workspace=workspace, **FT).close()
    assert not lm.open_edits


def test_only_so_many_edits_are_kept(workspace: Workspace) -> None:
    with raysweep.edit(tiny_lm("llama"), "ft", FIRST, workspace=workspace, **FT) as session:
        session.edit(SECOND).undo()
        with pytest.raises(SpecError, match="only the latest edits are kept"):
            session.undo()


@pytest.mark.parametrize("editor", [Drift, Drift(DriftConfig(layer=1))], ids=["a class", "an object"])
def test_an_editor_of_your_own(editor: Any, workspace: Workspace) -> None:
    assert issubclass(Drift, raysweep.Editor)
    lm = tiny_lm("gpt2")
    with raysweep.edit(lm, editor, FIRST, config={"layer": 2}, wrap="prune", workspace=workspace) as session:
        assert session.spec.label == "drift+prune"
        assert set(session.changes()) == {f"{lm.layout.mlp_out.format(2)}.weight"}
    with raysweep.edit(lm, editor, FIRST, workspace=workspace) as session:
        assert set(session.changes()) == {f"{lm.layout.mlp_out.format(int(not isinstance(editor, type)))}.weight"}


class Rome(Drift):
    """An editor under a name that is taken."""

    name = "rome"


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a misspelt editor": ("rme", {}, "did you mean: rome"),
    "a misspelt wrapper": ("ft", {**FT, "wrap": "sime"}, "did you mean: simie"),
    "a wrapper of weights around a memory": ("grace", {**CALLS["grace"][1], "wrap": "simie"}, "simie cannot wrap 'grace'"),
    "a misspelt key": ("ft", {"config": {"layers": [1], "step": 2}}, "did you mean: steps"),
    "a block that is not there": ("ft", {"config": {"layers": [9]}}, "the model has 3"),
    "a value of the wrong type": ("ft", {"config": {"layers": [1], "steps": "two"}}, "steps"),
    "nothing known of the model": ("rome", {}, "give layers as config={…}, or name a model whose files fit"),
    "a misspelt dataset": ("ft", {**FT, "data": "wrld"}, "did you mean: world"),
    "a name that is taken": (Rome, {}, "an editor called 'rome' is there already"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_and_leaves_the_model_alone(mistake: str, workspace: Workspace) -> None:
    editor, options, expected = MISTAKES[mistake]
    lm = tiny_lm("llama")
    with pytest.raises((ProblemsError, SpecError)) as caught:
        raysweep.edit(lm, editor, FIRST, workspace=workspace, **options)
    assert expected in str(caught.value)
    assert not lm.open_edits


FACTS: dict[str, tuple[tuple[Any, ...], dict[str, str], str]] = {
    "none": ((), {"subject": "Ana"}, "has no prompt and no target"),
    "twice": ((FIRST,), {"prompt": "a", "target": "b"}, "both as an argument and by keywords"),
    "an unknown key": (({"prompt": "a", "target": "b", "answer": "c"},), {}, "unknown key 'answer'"),
    "an empty target": (({"prompt": "a", "target": "  "},), {}, "target is empty"),
    "no subject": (({"prompt": "The pet of Ana is", "target": "b"},), {}, "there is no subject"),
    "a subject elsewhere": ((), {"prompt": "The pet is", "target": "b", "subject": "Ana"}, "occurs 0 times"),
}


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_that_cannot_be_written_is_refused_before_anything_is(fact: str, workspace: Workspace) -> None:
    given, named, expected = FACTS[fact]
    lm = tiny_lm("llama")
    pristine = fingerprint(lm)
    with pytest.raises(RecordError, match=expected):
        raysweep.edit(lm, "memit", *given, **named, workspace=workspace, **MEMIT)
    assert same(fingerprint(lm), pristine)
    assert not lm.open_edits
    with (
        raysweep.edit(lm, "memit", workspace=workspace, **MEMIT) as session,
        pytest.raises(RecordError, match=expected),
    ):
        session.edit(*given, **named)
    with (
        raysweep.edit(lm, "memit", workspace=workspace, **MEMIT) as session,
        pytest.raises(RecordError, match="no fact"),
    ):
        session.edit()


def test_a_model_that_is_in_memory_already(workspace: Workspace) -> None:
    loaded = raysweep.load_model("embedded", workspace)
    adopted = raysweep.adopt_model(loaded.module, loaded.tokenizer, hparams="embedded")
    assert adopted.module is loaded.module
    with raysweep.edit(adopted, "ft", prompt="Basix sells", target="kettles", workspace=workspace) as session:
        assert session.generate("Basix sells", length=2).split(".")[0] == " kettles"
    loaded.module.config.model_type = "none"
    with pytest.raises(ModelError, match="no layout for model_type 'none'"):
        raysweep.adopt_model(loaded.module, loaded.tokenizer)


def test_theirs_hyper_parameter_file(workspace: Workspace, tmp_path: Path) -> None:
    """A file of another program, whole, in place of ours; values that are given besides go over it."""
    file = tmp_path / "ft.yaml"
    file.write_text("source: a test\nlayers: [2]\nsteps: 7\n", encoding="utf-8")
    with raysweep.edit(tiny_lm("llama"), "ft", hparams=file, config={"steps": 1}, workspace=workspace) as session:
        assert session.spec.config.stored_value("layers") == [2]
        assert session.spec.config.stored_value("steps") == 1
