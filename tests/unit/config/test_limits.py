"""Every input has a bound, checked before it is built, and the bound stands in the message."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysweep.config import limits
from raysweep.config.load import parse, read
from raysweep.config.plan import plan
from raysweep.config.schema import DataSpec, ProtocolSpec
from raysweep.config.sweep_schema import ResourceSpec
from raysweep.editors.rome import RomeConfig
from raysweep.editors.wrappers.simie.config import SimIEConfig
from raysweep.errors import ProblemsError, YamlError
from raysweep.workspace import Workspace
from tests.unit.config.fakes import SWEEP, components, sweep


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def chain(levels: int) -> str:
    """Each alias adds one level: the text is flat, what it says is not."""
    return "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (bomb(12, 9), f"{limits.NODES:,}"),
        (chain(200), f"{limits.DEPTH} deep"),
        ("a: " + "[" * 5000, f"{limits.DEPTH} deep"),
        ("a: " + "[" * 5000 + "]" * 5000, f"{limits.DEPTH} deep"),
        ("- " * 5000, f"{limits.DEPTH} deep"),
        ("? " * 5000, f"{limits.DEPTH} deep"),
        (f"a: [{', '.join(['1'] * 60_000)}]", f"{limits.NODES:,}"),
        ("a: " + "x" * (limits.FILE_BYTES + 1), f"{limits.FILE_BYTES:,}"),
    ],
    ids=["nested aliases", "a chain of aliases", "open", "brackets", "dashes", "questions", "a list", "one word"],
)
def test_what_grows_is_refused_before_it_is_built(text: str, bound: str) -> None:
    began = time.process_time()
    with pytest.raises(YamlError, match=bound):
        parse(text, "f.yaml")
    assert time.process_time() - began < 8


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as handle:
        handle.truncate(1 << 40)  # sparse: reading it would take all memory
    with pytest.raises(YamlError, match=r"1,099,511,627,776 bytes; a YAML file has at most"):
        read(tmp_path / "large.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: \x00", r"f.yaml:2:4  the character U\+0000 is not allowed"),
        ("a: \x1b[31m", r"f.yaml:1:4  the character U\+001B"),
        ("a: \ud800", r"f.yaml:1:4  the character U\+D800"),
        ('a: "\\0"', r"f.yaml:1:4  the character U\+0000"),
        ('a: "\\ud800"', r"f.yaml:1:4  the character U\+D800"),
        ('"\\x1b": 1', r"f.yaml:1:1  the character U\+001B"),
        ("%YAML 1.1\n---\na: on", r"YAML 1\.1 by its own word"),
        (f"a: {'9' * 5000}", "is not a valid int"),
    ],
)
def test_what_no_name_or_path_can_hold_is_refused(text: str, said: str) -> None:
    with pytest.raises(YamlError, match=said):
        parse(text, "f.yaml")


def test_an_ordinary_file_is_far_from_every_bound() -> None:
    assert parse("a: [" + ", ".join(["{b: [1, 2]}"] * 2000) + "]").tree["a"][-1] == {"b": [1, 2]}


@pytest.mark.parametrize("value", [True, False, "5", 5.0, 1e3, None, [5]])
def test_a_whole_number_is_taken_as_written(value: object) -> None:
    for spec, key in ((DataSpec, "size"), (ProtocolSpec, "batch_size"), (ResourceSpec, "retries")):
        with pytest.raises(ValidationError):
            spec.model_validate({key: value})
    with pytest.raises(ValidationError):
        RomeConfig.model_validate({"layers": [value]})
    with pytest.raises(ValidationError):
        ProtocolSpec.model_validate({"rounds": [value]})


@pytest.mark.parametrize("value", [True, "0.5", "1e-5", [0.5]])
def test_a_number_is_taken_as_written(value: object) -> None:
    for key in ("tolerance", "lam"):
        with pytest.raises(ValidationError):
            SimIEConfig.model_validate({key: value})
    assert SimIEConfig.model_validate({"lam": 5}).lam == 5.0


def test_whole_numbers_fit_a_column_of_the_results() -> None:
    assert DataSpec(size=2**63 - 1).size == limits.LARGEST
    for value in (2**63, 10**400):
        with pytest.raises(ValidationError, match="9223372036854775807"):
            DataSpec(size=value)


def complaints(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        plan(sweep(text), Workspace(tmp_path, share=tmp_path), components())
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("base: {seed: 18446744073709551615}", "seed: should be less than or equal to 9223372036854775807"),
        ("base: {seed: 1.0}", "seed: should be a valid integer, got 1.0\n    write 1: a whole number has no point"),
        ('base: {seed: "1"}', "seed: should be a valid integer, got '1'\n    write 1, without quotes"),
        ("base: {threads: 1000000000000}", "threads: should be less than or equal to 1024"),
        ("space: {seed: {grid: [0, 9223372036854775808]}}", "less than or equal to 9223372036854775807"),
    ],
)
def test_seeds_and_threads_are_bounded(line: str, said: str, tmp_path: Path) -> None:
    """A seed of 64 bits without sign ran everything, and then could not be stored (case 6)."""
    found = complaints(f"sweep: x\n{line}\narms: {{plain: {{editor: plain}}}}\n", tmp_path)
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    "space",
    [
        "space: {seed: {uniform: [0, 1]}}\nsearch: {sampler: random, samples: 1000000000}\n",
        f"space: {{seed: {{grid: {list(range(200))}}}, threads: {{grid: {list(range(1, 200))}}}}}\n",
    ],
    ids=["samples", "crossed grids"],
)
def test_points_are_counted_before_one_is_made(space: str, tmp_path: Path) -> None:
    began = time.process_time()
    found = complaints(f"{SWEEP}{space}", tmp_path)
    assert any(f"a sweep has at most {limits.POINTS:,}" in one for one in found)
    assert time.process_time() - began < 5


def test_a_drawn_number_fits(tmp_path: Path) -> None:
    for domain, said in (
        ("{int: [0, 100000000000000000000]}", "whole numbers of 64 bits"),
        ("{uniform: [-1.0e+308, 1.0e+308]}", "spans more than a number can hold"),
    ):
        with pytest.raises(ProblemsError, match=said):
            sweep(f"{SWEEP}space: {{seed: {domain}}}\n")
