import pytest

from raysweep.config.load import parse, parse_value, read
from raysweep.config.places import Place
from raysweep.errors import YamlError


def test_scalars_are_those_of_yaml_1_2():
    text = "[1, 1e-3, on, yes, 2024-01-01, null, true, 0x1F, .5, '7', 010]"
    assert parse(text).tree == [1, 0.001, "on", "yes", "2024-01-01", None, True, 31, 0.5, "7", 10]


def test_every_key_and_value_has_its_place():
    source = parse("a: 1\nb:\n  - x\n  - {c: 2}\n", "f.yaml")
    assert source.key(("b",)) == Place("f.yaml", 2, 1)
    assert source.value(("b", 0)) == Place("f.yaml", 3, 5)
    assert source.key(("b", 1, "c")) == Place("f.yaml", 4, 6)
    assert source.value(("b", 1, "c")) == Place("f.yaml", 4, 9)


def test_place_of_something_unwritten_is_its_nearest_ancestor():
    source = parse("a: {b: 1}", "f.yaml")
    assert source.value(("a", "b", "c")) == source.value(("a", "b"))
    assert source.key(("a", "z")) == Place("f.yaml", 1, 4)


def test_alias_repeats_a_value():
    assert parse("a: &x [1, 2]\nb: *x").tree == {"a": [1, 2], "b": [1, 2]}


def test_keys_are_text():
    assert parse("0: a\nnull: b\ntrue: c").tree == {"0": "a", "null": "b", "true": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1  key 'a' is written twice\n    first at line 1, column 1"),
        ("a:\n\tb: 1", "f.yaml:2:1  a tab cannot indent YAML"),
        ("a:\n  b: 1\n\tc: 2", "f.yaml:3:1  a tab cannot indent YAML"),
        ("a: [1, 2\nb: 3\n", "f.yaml:1:4  this bracket is not closed"),
        ("a: {b: 1\n", "f.yaml:1:4  this bracket is not closed"),
        ("a: 'x\nb: 3\n", "f.yaml:1:4  this quote is not closed"),
        ("a: b: c", "f.yaml:1:5  mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: &x [*x]", "f.yaml:1:4  an alias inside its own anchor has no end"),
        ("a: *nope", "f.yaml:1:4  found undefined alias 'nope'"),
        ("a: !foo 1", "f.yaml:1:4  tag '!foo' is not allowed here"),
        ("a: !!python/object:os.system x", "is not allowed here"),
        ("a: !!int x", "f.yaml:1:4  'x' is not a valid int"),
        ("? [1]\n: 2", "f.yaml:1:3  a key must be plain text"),
        ("<<: {a: 1}", "f.yaml:1:1  merge keys ('<<') are not YAML 1.2"),
        ("a: \x00", "f.yaml"),
    ],
)
def test_malformed_yaml_is_located(text, message):
    with pytest.raises(YamlError) as caught:
        parse(text, "f.yaml")
    assert message in str(caught.value)


def test_unreadable_file(tmp_path):
    with pytest.raises(YamlError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(YamlError, match="cannot be read"):
        read(tmp_path / "latin.yaml")


def test_file_below_the_current_folder_is_named_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("x: 1")
    assert read(tmp_path / "a.yaml").file == "a.yaml"


def test_value_of_an_override():
    assert parse_value("[0, 5]", "v") == [0, 5]
    assert parse_value("", "v") == ""
