"""Flags and defaults of the quirks that no other file examines; docs/quirks.md lists every quirk and its tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.artifacts import Artifact
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.editors import EDITORS, ft_targets, rome
from raysweep.editors.build import build_editor
from raysweep.editors.locate import keys, layers, second_moments, target_value
from raysweep.editors.mend import factors
from raysweep.editors.specs import MomentSpec, ValueSpec
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement, side_memory
from raysweep.records import EditRecord
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
from tests.tokenizers.models import loaded

VALUE = {"steps": 4, "lr": 0.5}
ROME = {"layers": [1], "value": VALUE, "moments": {"damping": 1e-2}}


@pytest.fixture
def pieces_lm(tmp_path: Path) -> LanguageModel:
    """A random Llama whose tokenizer puts a stand-alone piece before a text that begins with a space."""
    return loaded("llama-2", tmp_path / "llama-2")


def record(target: str = "Mars hill") -> EditRecord:
    return replace(toy_records(1)[0], target=target)


def proposed(lm: LanguageModel, name: str, config: dict[str, Any], batch: tuple[EditRecord, ...]) -> Any:
    """Return one edit's step by a new editor, with the contract suite's artifacts."""
    editor = build_editor(EditorSpec(name=name, config=config))
    exam = Exam(build=lambda: editor, lm=lm, fresh=lambda: lm)
    artifacts = exam.artifacts(editor, lm)
    return editor.edit(lm, batch, editor.begin(lm, artifacts), artifacts=artifacts, rng=torch.Generator())


@pytest.mark.parametrize("target", ["Mars", "Mars hill", " Mars hill"])
def test_a_stand_alone_piece_is_told_from_a_real_space(target: str, pieces_lm: LanguageModel) -> None:
    """Quirk Q6: in front of a SentencePiece target there is one id that the sentence does not have."""
    lm, plain, prompt = pieces_lm, tiny_lm("llama", bos=True), "The pet of Ana is"
    for join in (tokens.with_space, tokens.with_added_space):
        published, stripped = (tokens.target(lm, prompt, join(target), strip_dummy_piece=s) for s in (False, True))
        assert published.demanded == published.alone == tuple(tokens.encode_alone(lm, join(target)))
        assert stripped.demanded == tokens.labelled_ids(lm, prompt, prompt + join(target)).labels
        assert stripped.demanded != published.demanded
        assert lm.tokenizer.convert_ids_to_tokens(published.demanded)[0] == ("▁▁" if join(target)[1] == " " else "▁")
        letters = tokens.encode_alone(plain, join(target))  # bytes: the space is a token of the sentence
        assert tokens.target(plain, prompt, join(target), strip_dummy_piece=True).demanded == tuple(letters)


def test_values_demand_the_piece_unless_it_is_stripped(
    monkeypatch: pytest.MonkeyPatch, pieces_lm: LanguageModel
) -> None:
    """Quirk Q6: the published targets have one id more, asked for at the last-but-one token of the prompt."""
    lm, seen = pieces_lm, []
    build = target_value.value_task
    monkeypatch.setattr(target_value, "value_task", lambda *a, **k: seen.append(build(*a, **k)) or seen[-1])
    for name, config in (("rome", ROME), ("memit", {**ROME, "moment_weight": 1.0})):
        changes = []
        for strip in (False, True):
            spec = {**config, "value": {**VALUE, "strip_dummy_piece": strip}}
            changes.append(proposed(lm, name, spec, (record(),)).patch.deltas)
        published, stripped = seen[-2:]
        assert stripped.targets == published.targets[1:] == tuple(tokens.encode_alone(lm, " Mars hill")[1:])
        assert stripped.rows == published.rows  # the text is the same: "… is Mars"
        assert lm.tokenizer.decode(stripped.rows[0], skip_special_tokens=True) == "The pet of Ana is Mars"
        assert all(not torch.equal(changes[0][n].dense(), changes[1][n].dense()) for n in changes[0])


def test_prompt_last_asks_for_bos_and_piece_as_published_or_not(pieces_lm: LanguageModel) -> None:
    """Quirks Q6 and Q13: FT-L's demands at the prompt's last token."""
    lm = pieces_lm
    bos, piece, mars, hill = tokens.encode(lm, " Mars hill")
    wanted = {
        (True, False): [bos, piece, mars, hill],
        (True, True): [bos, mars, hill],
        (False, False): [piece, mars, hill],
        (False, True): [mars, hill],
    }
    for (special, strip), ids in wanted.items():
        targets = ft_targets.prompt_last(lm, [record()], special=special, strip=strip)
        last = len(tokens.encode(lm, record().prompt)) - 1
        assert [(row, at, i) for row, at, i, _ in targets.demanded] == [(0, last, i) for i in ids]
        assert sum(weight for *_, weight in targets.demanded) == pytest.approx(1.0)


def test_mends_labels_have_no_stand_alone_piece_unless_published(pieces_lm: LanguageModel) -> None:
    """Quirks Q6 and Q33."""
    lm, one = pieces_lm, record()
    bos, piece, mars, hill = tokens.encode(lm, " Mars hill")
    assert factors.label_text(lm, one.prompt, one.target).labels == (mars, hill)
    assert factors.label_text(lm, one.prompt, one.target, special=True).labels == (bos, piece, mars, hill)


def test_a_leading_unk_is_dropped_by_memit_but_not_by_rome(pieces_lm: LanguageModel) -> None:
    """Quirk Q48; and a piece that is already gone is not stripped a second time."""
    lm = pieces_lm
    lm.tokenizer.unk_token = "▁"
    ids = tokens.encode_alone(lm, " Mars hill")
    assert ids[0] == lm.tokenizer.unk_token_id
    for strip in (False, True):
        task = layers._task(lm, record(), ["{}"], ValueSpec(strip_dummy_piece=strip))
        assert list(task.targets) == ids[1:]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ft", {"kl_factor": 0}),
        ("memit", {"layer_selection": "all", "mom2_adjustment": True}),
        ("alphaedit", {"mom2_update_weight": 15000}),
        ("mend", {"lr_scale": 1.0, "act": "relu", "hidden_dim": None, "cbase": 1.0}),
        ("grace", {"num_pert": 8, "reg": "early_stop", "val_reg": None, "dropout": 0.0, "dist_fn": "euc"}),
    ],
)
def test_dead_names_of_the_published_files_are_accepted_and_dropped(name: str, given: dict[str, Any]) -> None:
    """Quirk Q46."""
    kind = EDITORS.get(name).config_type
    least = {"layer": 1} if name == "grace" else {"layers": [1]}
    assert kind.dropped == set(given)
    assert kind.model_validate({**least, **given}) == kind.model_validate(least)
    with pytest.raises(ValueError, match="kl_facto"):
        kind.model_validate({**least, "kl_facto": 0})


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_rome_inverts_as_published_if_asked(damping: float) -> None:
    """Quirk Q10: an explicit fp32 inverse instead of a Cholesky solve in fp64; the moments are well-conditioned here."""
    lm = tiny_lm("llama", bos=True)
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(lm.logical("model.layers.1.mlp.down_proj.weight").shape[1], 300, generator=rng)
    artifacts = {
        "moments/1": Artifact("m", {"moments": root @ root.T / 300}, {}),
        "contexts": Artifact("c", {}, {"templates": []}),
    }
    right = []
    for inverse in ("cholesky64", "ref_fp32_inverse"):
        config = {"layers": [1], "value": VALUE, "inverse": inverse, "moments": {"damping": damping}}
        editor = rome.Rome(rome.RomeConfig.model_validate(config))
        step = editor.edit(lm, [record("at")], None, artifacts=artifacts, rng=torch.Generator())
        right.append(step.patch.deltas["model.layers.1.mlp.down_proj.weight"].right[0])  # type: ignore[union-attr]
    difference = float((right[0] - right[1]).norm())
    assert 0 < difference < 1e-4


def test_moments_may_be_added_up_in_fp32() -> None:
    """Quirk Q10: another artifact, almost the same numbers; the default's identity knows nothing of the flag."""
    lm = tiny_lm("gpt2")
    found, asked = [], []
    for ref in (False, True):
        request = second_moments.request(lm, lm.layout.mlp_out, 1, MomentSpec(ref_fp32=ref))
        asked.append(request.inputs)
        texts = (f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes)
        request = replace(request, inputs={**request.inputs, "text": {"tokens": 0}})
        found.append(second_moments.build(lm, [request], texts)[0][0]["moments"])
    assert asked[1] == {**asked[0], "ref_fp32": True}
    difference = float((found[0] - found[1]).norm() / found[0].norm())
    assert 0 < difference < 1e-5


def test_simie_around_an_editor_that_trains_a_bias() -> None:
    """Quirk Q15: the matrix is corrected; the bias, which no key reaches, stays as it was."""
    lm = tiny_lm("gpt2")
    wrap = (WrapSpec(name="simie", config={"lam": 1.0}),)
    config = {"layers": [1], "steps": 3, "train_bias": True}
    editor = build_editor(EditorSpec(name="ft", config=config, wrap=wrap))
    step = editor.edit(lm, toy_records(1), editor.begin(lm, {}), artifacts={}, rng=torch.Generator())
    assert set(editor.edited_parameters(lm)) == {f"transformer.h.1.mlp.c_proj.{part}" for part in ("weight", "bias")}
    assert set(step.patch.deltas) == {"transformer.h.1.mlp.c_proj.weight"}
    bare = build_editor(EditorSpec(name="ft", config=config))
    assert set(bare.edit(lm, toy_records(1), None, artifacts={}, rng=torch.Generator()).patch.deltas) == set(
        editor.edited_parameters(lm)
    )


def test_a_target_with_a_space_of_its_own_gets_another_one_in_rome_and_ft() -> None:
    """Quirk Q4 (and Q5 of the evaluation): two spaces in ROME, FT and every score, one in MEMIT, AlphaEdit, MEND and SimIE."""
    lm, spaced = tiny_lm("llama"), record(" x")
    bare, prompt = tokens.encode_alone(lm, " x"), tokens.encode(lm, spaced.prompt)
    (space, _) = bare
    targets = tokens.encode_alone(lm, tokens.with_added_space(spaced.target))
    assert targets == [space, *bare]
    assert [i for *_, i, _ in ft_targets.prompt_last(lm, [spaced], special=True, strip=False).demanded] == targets
    assert ft_targets.target_new(lm, [spaced]).rows == [
        [*prompt, *targets[:-1]]
    ]  # nothing is asked after the last token
    assert tokens.labelled_ids(lm, spaced.prompt, tokens.join(spaced.prompt, spaced.target)).ids == (*prompt, *targets)
    assert list(layers.demanded(lm, spaced).demanded) == bare
    assert factors.label_text(lm, spaced.prompt, spaced.target).ids == (*prompt, *bare)
    module = lm.layout.mlp_out.format(1)
    assert keys.all_token_keys(lm, [spaced], [module])[module].shape[1] == len(prompt) + len(bare)


def test_another_dataset_is_another_key() -> None:
    """Quirk Q2: results lie below the trial's key, which covers the dataset and its content."""
    trial = TrialSpec(
        study="lifelong", model=ModelSpec(), data=DataSpec(name="zsre", digest="a"), editor=EditorSpec(name="null"),
        protocol=ProtocolSpec(), seed=0,
    )  # fmt: skip
    others = [trial.model_copy(update={"data": DataSpec(name=n, digest=d)}) for n, d in (("zsre", "b"), ("world", "a"))]
    assert len({TrialSpec(**t.model_dump()).key for t in (trial, *others)}) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_memory_is_applied_as_its_layer_is(family: str) -> None:
    """Quirk Q30: in the layer's own orientation, with its bias; a memory equal to the frozen weight changes nothing."""
    lm = tiny_lm(family)
    for matrix in ("in", "out"):
        module = lm.part(lm.layout.mlp_matrix(1, matrix))  # type: ignore[arg-type]
        weight, bias = replacement.weight_and_bias(module)
        if bias is not None:
            module.bias.data.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
        side = side_memory.SideMemory(module, side_memory.mlp_activation(lm), lambda w=weight: (w,), [0.0])  # type: ignore[misc]
        states = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(side(states), module(states))
        assert (bias is not None) == (family == "gpt2")
