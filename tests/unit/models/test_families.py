"""What an editor needs of a family: refused before any work, by name, with the editors that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, ModelSpec
from raysweep.config.sweep import parse_search_space
from raysweep.editors import EDITORS
from raysweep.editors.build import build_editor
from raysweep.errors import ModelError, ProblemsError
from raysweep.models.sources.catalogue import sizes_of
from raysweep.models.sources.check import problems
from raysweep.studies.refusals import check_records
from raysweep.testing.fixtures import load_folder, tiny_lm, toy_records
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace

from .conftest import byte_tokenizer

Make = Callable[..., Path]
EXPERTS = "cannot edit a model of type gpt_oss: each token chooses between experts"
NORMED = "cannot edit a model of type olmo2: the MLP's output is normed before it is added to the stream"
CONFIGS: Mapping[str, Mapping[str, object]] = {
    "ft": {"layers": [1]},
    "rome": {"layers": [1]},
    "memit": {"layers": [1], "moment_weight": 1.0},
    "alphaedit": {"layers": [1], "threshold": 0.01, "ridge": 0.01},
    "grace": {"layer": 1},
    "wise": {"layer": 1},
    "lora": {},
    "mend": {"layers": [1], "train": {"steps": 1}},
    "null": {},
    "oracle": {},
}


def refused(folder: Path, workspace: Workspace, arms: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return what a plan with *arms* says of them, with the hints."""
    data = {"data": {"name": "world", "size": 1}, "protocol": {"rounds": [0, 1]}}
    base = {"model": {"name": "tiny", "path": str(folder)}, **data}
    tree = {"sweep": "s", "base": base, "arms": {name: {"editor": arm} for name, arm in arms.items()}}
    try:
        plan(parse_search_space(tree, file="flags"), workspace)
    except ProblemsError as error:
        # of a model with so few positions
        return [(p.message, p.hint) for p in error.problems if "positions" not in p.message]
    return []


@pytest.mark.parametrize(
    ("family", "able", "said"),
    [
        ("gpt_oss", ["null", "oracle"], EXPERTS),
        ("olmo2", [n for n in CONFIGS if n not in ("memit", "alphaedit")], NORMED),
    ],
)
def test_a_plan_refuses_editors_that_need_what_a_family_does_not_have(
    family: str, able: list[str], said: str, make_folder: Make, workspace: Workspace
) -> None:
    assert set(CONFIGS) == set(EDITORS.names())
    arms = {name: {"name": name, **config} for name, config in CONFIGS.items()}
    found = refused(make_folder(family), workspace, arms)
    about = [(message.partition(" ")[0], hint) for message, hint in found if said in message]
    assert sorted(name for name, _ in about) == sorted(set(CONFIGS) - set(able))
    assert all(hint == f"what can: {', '.join(n for n in EDITORS.names() if n in able)}" for _, hint in about)
    assert not [message for message, _ in found if said not in message]


def test_a_wrapper_is_refused_with_the_editor_inside(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder("gpt_oss")
    for editor, count in (("null", 0), ("ft", 1)):
        written = {"name": editor, **CONFIGS[editor]}
        tree = {"one": written}
        assert len(refused(folder, workspace, tree)) == count


def test_a_model_that_no_plan_knew_is_refused_once_it_is_loaded() -> None:
    lm, spec = tiny_lm("olmo2"), EditorSpec(name="memit", config=dict(CONFIGS["memit"]))
    with pytest.raises(ModelError, match=f"memit {NORMED}") as caught:
        check_records(lm, build_editor(spec), toy_records(1))
    assert "rome" in caught.value.hint
    check_records(lm, build_editor(EditorSpec(name="rome", config=dict(CONFIGS["rome"]))), toy_records(1))


WHOLE: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "gemma3_text": (
        "gemma3",
        {"mm_tokens_per_image": 4, "image_token_index": 258, "boi_token_index": 257, "eoi_token_index": 256},
    ),
    "qwen3_5_text": ("qwen3_5", {}),
}
SEES: Mapping[str, object] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_the_language_model_of_one_that_sees_is_loaded_alone(kind: str, tmp_path: Path, workspace: Workspace) -> None:
    """Which is how these families are published."""
    outer, more = WHOLE[kind]
    text = tiny_model(kind, vocab_size=259, tie_word_embeddings=False).config.to_dict()
    config = AutoConfig.for_model(outer, text_config=text, vision_config=dict(SEES), tie_word_embeddings=False, **more)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    folder = tmp_path / outer
    whole.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    assert problems(folder) == []
    ((said, _),) = refused(
        folder, workspace, {"one": {"name": "ft", "layers": [1]}, "two": {"name": "ft", "layers": [9]}}
    )
    assert said == "'ft': layers.0: there is no block 9; the model has 3, from 0 to 2"
    lm = load_folder(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(lm.module(ids).logits, whole(input_ids=ids).logits)
    assert (lm.layout.model_type, lm.n_blocks) == (kind, 3)


def test_experts_count_as_so_many_mlps(make_folder: Make, workspace: Workspace) -> None:
    size = sizes_of(ModelSpec(name="tiny", path=str(make_folder("gpt_oss"))), workspace)
    assert size is not None
    assert size.experts == 3
    # per block: queries and output, keys and values; three MLPs of three maps; embedding and head
    assert size.parameters == 3 * (2 * 16 * (16 + 8) + 3 * 3 * 16 * 24) + 2 * 259 * 16
