"""`raysweep edit` refuses what `raysweep run` refuses, in the same words, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from raysweep.cli import preflight
from raysweep.cli.edit_space import rounds_of
from raysweep.cli.main import main
from raysweep.cli.preflight import Machine
from raysweep.errors import SpecError
from tests.unit.config.test_rows import folder

ROOMY = Machine(cpus=8, memory=64 << 30, gpus=0, free=1 << 40)
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "this_machine", lambda results: ROOMY)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["--root", str(tmp_path), *arguments])
        captured = capsys.readouterr()
        assert captured.out == "", "nothing was begun"
        assert not (tmp_path / "results" / "x").exists()
        return code, captured.err

    return run


def sentences(text: str) -> list[str]:
    """Return what each mistake is, without its place: a line of a file here, a flag there."""
    heads = re.findall(r"^error\[(E-\w+)\] (?:.*?  )?(.*(?:\n    .*)*)", text, re.MULTILINE)
    return sorted(f"{code} {message}" for code, message in heads)


def written(root: Path, **changes: Any) -> str:
    """Write the search space that the flags of :func:`both` stand for, with *changes* by dotted key."""
    tree: dict[str, Any] = {
        "sweep": "x",
        "base": {"model": "embedded", "data": {"name": "world", "size": 4}, "protocol": {"rounds": [0, 4]}, "seed": 0},
        "arms": {"rome": {"editor": {"name": "rome"}}},
    }
    for key, value in changes.items():
        *above, last = key.split("__")
        here = tree
        for part in above:
            here = here[part]
        here[last] = value
    with (root / "x.yaml").open("w", encoding="utf-8") as out:
        YAML(typ="safe").dump(tree, out)
    return str(root / "x.yaml")


def both(call: Call, root: Path, *flags: str, **changes: Any) -> list[str]:
    """Return the sentences of `edit` with *flags*, which are those of `run` with *changes*."""
    given = ["edit", "--editor", "rome", "--edits", "4", "--rounds", "0,4", "--name", "x"]
    code, err = call(*given, *flags)
    again, same = call("run", written(root, **changes))
    assert (code, again) == (2, 2), (err, same)
    assert sentences(err) == sentences(same)
    return sentences(err)


def test_layers_that_are_not_there(call: Call, tmp_path: Path) -> None:
    (found,) = both(call, tmp_path, "--set", "arms.rome.editor.layers=[99]", arms__rome__editor__layers=[99])
    assert "there is no block 99" in found


def test_a_seed_of_more_than_64_bits(call: Call, tmp_path: Path) -> None:
    (found,) = both(call, tmp_path, "--seed", str(1 << 64), base__seed=1 << 64)
    assert "should be less than or equal to 9223372036854775807" in found


def test_records_that_are_not_there(call: Call, tmp_path: Path) -> None:
    data = {"name": "world", "size": 4, "skip": 99999}
    (found,) = both(call, tmp_path, "--set", "data.skip=99999", base__data=data)
    assert "99999" in found


def test_a_tokenizer_with_more_tokens_than_the_model(call: Call, tmp_path: Path) -> None:
    folder(tmp_path, vocab_size=40)
    rome = {"name": "rome", "layers": [1]}
    changes = {"base__model": {"name": "m", "path": str(tmp_path / "m")}, "arms__rome__editor": rome}
    found = both(call, tmp_path, "--model", "./m", "--set", "arms.rome.editor.layers=[1]", **changes)
    assert any("tokenizer" in one for one in found), found


def test_a_record_longer_than_the_positions(call: Call, tmp_path: Path) -> None:
    folder(tmp_path, max_position_embeddings=10)
    data = {"name": "zsre", "path": "data/ZsRE/sample.json", "size": 4}
    changes = {"base__model": {"name": "m", "path": str(tmp_path / "m")}, "base__data": data}
    flags = ("--model", "./m", "--data", "zsre", "--data-path", "data/ZsRE/sample.json")
    rome = {"arms__rome__editor": {"name": "rome", "layers": [1]}}
    found = both(call, tmp_path, *flags, "--set", "arms.rome.editor.layers=[1]", **changes, **rome)
    assert any("positions" in one for one in found), found


@pytest.mark.parametrize(
    ("machine", "said"),
    [(Machine(8, 1 << 20, 0, 1 << 40), "of memory, this machine has"), (Machine(8, 64 << 30, 0, 1 << 20), "of disk")],
    ids=["memory", "disk"],
)
def test_memory_and_disk(
    machine: Machine, said: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edit` began, and was killed or ran out of room in the middle."""
    monkeypatch.setattr(preflight, "this_machine", lambda results: machine)
    (found,) = both(call, tmp_path)
    assert said in found


def test_results_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file is in the way")
    (found,) = both(call, tmp_path)
    assert "is no folder" in found


def test_every_mistake_at_once(call: Call) -> None:
    """Flags, form, content: each of them hid the next."""
    mistakes = ["--edits", "7", "--batch-size", "2", "--rounds", "0,x", "--lam", "3", "--data", "wrld"]
    sets = ["arms.rome.editor.layers=[99]", f"seed={1 << 64}", "search.siz=3", "resources.cpu=2"]
    code, err = call("edit", "--editor", "rome", *mistakes, *(word for one in sets for word in ("--set", one)))
    assert code == 2
    for said in (
        "--edits 7 is no multiple of --batch-size 2", "--rounds is a list of steps", "--lam 3  is of SimIE",
        "unknown dataset 'wrld'", "there is no block 99", "unknown key 'siz'", "should be less than or equal to",
        "resources.cpu has no effect on raysweep edit",
    ):  # fmt: skip
        assert said in err
    assert "8 errors; nothing was run." in err


def test_flags_that_disagree_and_a_machine_that_is_too_small(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "this_machine", lambda results: Machine(8, 1 << 20, 0, 1 << 40))
    code, err = call("edit", "--editor", "rome", "--edits", "20", "--rounds", "0,10")
    assert (code, "editing ends at the last round, 10" in err, "of memory, this machine has" in err) == (2, True, True)


@pytest.mark.parametrize("value", ["5", "[1]", "text"])
def test_resources_of_a_wrong_shape(value: str, call: Call) -> None:
    code, err = call("edit", "--editor", "rome", "--edits", "4", "--set", f"resources={value}")
    assert (code, "resources must be a mapping" in err) == (2, True), err


def test_rounds_that_are_no_numbers() -> None:
    with pytest.raises(SpecError, match="list of steps"):
        rounds_of("1,x", 4, 1)
