"""Names of sweeps and arms: what cannot be seen, shown or told apart is refused; what can is shown as it is."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from raysweep.config.load import parse
from raysweep.config.sweep import examine_sweep, parse_search_space
from raysweep.errors import ProblemsError

ARM = "sweep: x\narms: {{{name}: {{editor: plain}}}}\n"


def problems(text: str) -> list[str]:
    return [str(p) for p in examine_sweep(parse(text, "x.yaml"))[1]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ('""', "needs a name that can be seen"),
        ('" "', "needs a name that can be seen"),
        ('"\u200b"', "needs a name that can be seen"),
        ('"a\\nb"', "U+000A"),
        ('"a\\tb"', "U+0009"),
        ('"a\u2028b"', "U+2028"),
        ('"a\u202eb"', "U+202E"),
        ("a" * 200, "at most 150 bytes, this one 200"),
    ],
)
def test_an_arm_s_name_can_be_shown(name: str, said: str) -> None:
    found = problems(ARM.format(name=name))
    assert any(said in one and "x.yaml:2:8" in one for one in found), found


@pytest.mark.parametrize("name", ["[red]", "a b", "é", "💥", "1e3", "on", "'a: b'", "[/]"])
def test_other_names_stay_as_they_are(name: str) -> None:
    spec = parse_search_space(parse(f"sweep: x\narms: {{'{name.strip(chr(39))}': {{editor: plain}}}}\n"))
    assert spec.arms[0].name == name.strip("'")


def test_two_unicode_forms_of_one_name_are_two_arms_nobody_can_tell_apart() -> None:
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    found = problems(f"sweep: x\narms:\n  {one}: {{editor: plain}}\n  {two}: {{editor: plain}}\n")
    assert "the same name in two Unicode forms" in found[0]


def test_an_override_finds_an_arm_in_either_form() -> None:
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    spec = parse_search_space(
        parse(f"sweep: x\narms: {{{one}: {{editor: plain}}}}\n"), [f"arms.{two}.editor.layers=[3]"]
    )
    assert dict(spec.arms[0].editor.config) == {"layers": [3]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sweep: 20240101\narms: {a: {editor: x}}", 'sweep: "20240101"'),
        ("sweep: 1.5\narms: {a: {editor: x}}", 'sweep: "1.5"'),
        ("sweep: true\narms: {a: {editor: x}}", 'sweep: "true"'),
        ("sweep: x\nbase: {model: 7}\narms: {a: {editor: x}}", 'model: "7"'),
        ("sweep: x\narms: {a: {editor: {name: 7}}}", 'name: "7"'),
        ("sweep: ' a'\narms: {a: {editor: x}}", "use letters, digits"),
        (f"sweep: {'a' * 200}\narms: {{a: {{editor: x}}}}", "at most 150 bytes"),
    ],
)
def test_a_number_for_a_name_has_the_right_cure(text: str, said: str) -> None:
    """The old hint, "use letters, digits", was no help to who had written digits (case 42)."""
    assert any(said in one for one in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ("{wrap: {simie: {lam: {grid: [1, 10]}}}}", "wrap.simie.lam: {grid: [1, 10]}"),
        ("{editor: {lr: {loguniform: [0.1, 1]}}}", "editor.lr: {loguniform: [0.1, 1]}"),
        ("{data: {size: {grid: [1, 2, 3, 4, 5]}, skip: {grid: [0]}}}", "data.size: {grid: [1, 2, 3, 4, …]}, data.skip"),
    ],
)
def test_a_nested_space_is_told_its_dotted_keys(space: str, line: str) -> None:
    (found,) = problems(f"sweep: x\nspace: {space}\narms: {{a: {{editor: plain}}}}\n")
    assert f"keys of a space are dotted: {line}" in found


def test_a_path_is_taken_as_it_stands() -> None:
    """YAML would make a mapping of ``: `` and cut a path at `` #``."""
    source = parse("sweep: x\nbase: {data: {name: d}}\narms: {a: {editor: plain}}\n")
    spec = parse_search_space(source, ["data.path=/tmp/a: b #1/rows.json", 'model.path="/m x"'])
    assert spec.base["data"]["path"] == "/tmp/a: b #1/rows.json"
    assert spec.base["model"]["path"] == "/m x"
    swept = parse_search_space(source, ["space.data.path={grid: [a.json, b.json]}"])
    assert swept.space["data.path"].values == tuple(str(Path.cwd() / name) for name in ("a.json", "b.json"))


def test_an_override_has_an_end() -> None:
    with pytest.raises(ProblemsError, match="a key has at most 32 parts"):
        parse_search_space(parse("sweep: x\narms: {a: {editor: plain}}\n"), [".".join("a" * 5000) + "=1"])
