"""What an editor needs of a family: refused before any work, by name, with the editors that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, ModelSpec
from raysweep.config.sweep import parse_search_space
from raysweep.editors import EDITORS
from raysweep.editors.build import build_editor
from raysweep.errors import ModelError, ProblemsError
from raysweep.models.sources.catalogue import sizes_of
from raysweep.studies.refusals import check_records
from raysweep.testing.fixtures import tiny_lm, toy_records
from raysweep.workspace import Workspace

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
    for editor, problems in (("null", 0), ("ft", 1)):
        written = {"name": editor, **CONFIGS[editor]}
        tree = {"one": written}
        assert len(refused(folder, workspace, tree)) == problems


def test_a_model_that_no_plan_knew_is_refused_once_it_is_loaded() -> None:
    lm, spec = tiny_lm("olmo2"), EditorSpec(name="memit", config=dict(CONFIGS["memit"]))
    with pytest.raises(ModelError, match=f"memit {NORMED}") as caught:
        check_records(lm, build_editor(spec), toy_records(1))
    assert "rome" in caught.value.hint
    check_records(lm, build_editor(EditorSpec(name="rome", config=dict(CONFIGS["rome"]))), toy_records(1))


def test_experts_count_as_so_many_mlps(make_folder: Make, workspace: Workspace) -> None:
    size = sizes_of(ModelSpec(name="tiny", path=str(make_folder("gpt_oss"))), workspace)
    assert size is not None
    assert size.experts == 3
    # per block: queries and output, keys and values; three MLPs of three maps; embedding and head
    assert size.parameters == 3 * (2 * 16 * (16 + 8) + 3 * 3 * 16 * 24) + 2 * 259 * 16
