"""The flags of ``raysweep edit`` as a search space."""

from __future__ import annotations

import dataclasses

import pytest

from raysweep.cli.edit_space import EditFlags, keys_of_flags, search_space_of_flags
from raysweep.errors import SpecError

FLAGS = EditFlags(
    name="edit", editor="ROME", hparams="", model={"name": "embedded"}, data="World", data_path="", simie=False,
    lam=10.0, init_model=False, solver="", edits=20, batch_size=4, rounds="", seed=7,
)  # fmt: skip


def test_plain_editor() -> None:
    tree, mistakes = search_space_of_flags(FLAGS)
    assert mistakes == []
    assert tree == {
        "sweep": "edit",
        "base": {
            "model": {"name": "embedded"},
            "data": {"name": "world", "size": 20},
            "protocol": {"batch_size": 4, "rounds": [0, 4, 8, 12, 16, 20]},
            "seed": 7,
        },
        "arms": {"rome": {"editor": {"name": "rome"}}},
    }


@pytest.mark.parametrize(
    ("changes", "wrap"),
    [
        ({}, {"name": "simie", "lam": 10.0, "mode": "sequential"}),
        ({"init_model": True, "lam": 0.5}, {"name": "simie", "lam": 0.5, "mode": "init"}),
        ({"solver": "chol64"}, {"name": "simie", "lam": 10.0, "mode": "sequential", "backend": "chol64"}),
    ],
)
def test_simie_wraps_the_editor(changes: dict[str, float | str | bool], wrap: dict[str, float | str]) -> None:
    tree, _ = search_space_of_flags(dataclasses.replace(FLAGS, editor="FT-L", simie=True, **changes))  # type: ignore[arg-type]
    assert tree["arms"] == {"ft+simie": {"editor": {"name": "ft", "objective": "prompt_last"}, "wrap": wrap}}


def test_a_mistake_leaves_a_tree_to_check_the_rest_by() -> None:
    tree, mistakes = search_space_of_flags(dataclasses.replace(FLAGS, edits=10, rounds="0,x"))
    assert [(m.code, m.hint) for m in mistakes] == [(SpecError.code, "--edits 8 or --edits 12"), (SpecError.code, "")]
    assert tree["base"]["protocol"] == {"batch_size": 1, "rounds": [0, 2, 4, 6, 8, 10]}


def test_every_flag_names_the_key_it_sets() -> None:
    tree, _ = search_space_of_flags(
        dataclasses.replace(FLAGS, simie=True, solver="chol64", data_path="/z.json", hparams="/h.yaml")
    )
    keys = {flag: (key, value) for flag, key, value in keys_of_flags(tree)}
    assert keys["data_path"] == ("data.path", "/z.json")
    assert keys["rounds"] == ("protocol.rounds", [0, 4, 8, 12, 16, 20])
    assert keys["solver"] == ("arms.rome+simie.wrap.simie.backend", "chol64")
    # What --set may say, too: a flag that were missing here could be hidden by it unseen.
    assert {field.name for field in dataclasses.fields(EditFlags)} == set(keys)
