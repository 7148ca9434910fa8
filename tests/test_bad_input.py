"""What a user meets when something is wrong: one command line each, the real components, the whole message.

Every case ends with exit code 2 before any work, names what was found and where, and shows no traceback. (Damage to snapshots
and to files of a finished sweep is examined in ``unit/results``.)
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.cli.main import main

GOOD = """\
sweep: bad
study: lifelong
base:
  model: embedded
  data: {name: world, size: 20}
  protocol: {batch_size: 1, rounds: [0, 10, 20]}
arms:
  rome: {editor: rome}
  rome+simie: {editor: rome, wrap: {name: simie, lam: 10}}
"""

CASES = {
    "unknown editor": ("editor: rome}", "editor: roem}", ["unknown editor 'roem'", "did you mean: rome?", ":8:"]),
    "unknown model": ("embedded", "embeded", ["'embeded'", "embedded", ":4:"]),
    "unknown dataset": ("name: world", "name: wrold", ["unknown dataset 'wrold'", "did you mean: world?", ":5:"]),
    "unknown key": ("batch_size: 1", "batchsize: 1", ["batchsize", "did you mean: batch_size?", ":6:"]),
    "unknown config key": ("lam: 10", "lambda: 10", ["lambda", "did you mean: lam?", ":9:"]),
    "λ of zero": ("lam: 10", "lam: 0", ["greater than 0", ":9:"]),
    "negative λ": ("lam: 10", "lam: -3", ["greater than 0", "-3", ":9:"]),
    "λ of zero energies": ("lam: 10", "lam: {energy: 0}", ["lam.energy: should be greater than 0, got 0", ":9:"]),
    "λ in no unit": ("lam: 10", "lam: {units: 3}", ["unknown key 'units' in 'simie', lam", ":9:"]),
    "λ that is no number": ("lam: 10", "lam: much", ["lam: should be a valid number", "got 'much'", ":9:"]),
    "λ by gcv in a recursion": ("lam: 10", "lam: gcv, mode: init", ["backend must be closed64 for lam gcv", ":9:"]),
    "a closed form of edited models": (
        "lam: 10",
        "lam: 10, mode: sequential, backend: closed64",
        ["mode must be init for backend closed64", ":9:"],
    ),
    "a wrapper around a view": (
        "wrap: {name: simie, lam: 10}",
        "wrap: [{name: simie, mode: init, backend: closed64}, prune]",
        ["prune cannot wrap 'simie': it changes views, not weights", "E-WRAP", ":9:"],
    ),
    "rounds beyond the data": ("[0, 10, 20]", "[0, 10, 50]", ["rounds beyond the data: [50]", "20 records", ":6:"]),
    "rounds off the batch": ("batch_size: 1, ", "batch_size: 4, ", ["multiples of batch_size = 4", "[10]", ":6:"]),
    "more records than there are": ("size: 20", "size: 99999", ["data.size = 99999", "lower them", ":5:"]),
    "a wrapper that does not fit": (
        "rome+simie: {editor: rome",
        "rome+simie: {editor: oracle",
        ["simie", "oracle", "E-WRAP", ":9:"],
    ),
    "an unclosed bracket": ("[0, 10, 20]", "[0, 10, 20", ["E-YAML", "bad.yaml:"]),
    "a repeated key": ("study: lifelong", "study: lifelong\nstudy: lifelong", ["E-YAML", "study", ":3:"]),
}


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")

    def call(*argv: str) -> str:
        code = main(argv)
        captured = capsys.readouterr()
        assert code == 2, captured
        assert "Traceback" not in captured.err
        return captured.err

    return call


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_search_space(refuse, name: str, command: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    old, new, wanted = CASES[name]
    assert old in GOOD
    (tmp_path / "bad.yaml").write_text(GOOD.replace(old, new, 1))
    message = refuse(command, "bad.yaml")
    for text in [*wanted, "bad.yaml"]:
        assert text in message, message
    assert not (tmp_path / "results").exists()


def test_all_mistakes_are_reported_at_once(refuse, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = GOOD.replace("editor: rome}", "editor: roem}").replace("lam: 10", "lam: -1").replace("20]", "90]")
    (tmp_path / "bad.yaml").write_text(text)
    message = refuse("validate", "bad.yaml")
    assert "3 errors; nothing was run." in message
    assert [f":{line}:" in message for line in (6, 8, 9)] == [True] * 3


RECORD = {
    "subject": "Ana",
    "src": "Where was Ana born?",
    "rephrase": "Ana was born in",
    "alt": "Rome",
    "answers": ["X"],
}
RECORD |= {"loc": "nq question: who?", "loc_ans": "Bo"}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("src", "Where was she born?", "subject 'Ana' occurs 0 times in prompt 'Where was she born?'"),
        ("src", "Ana, where was Ana born?", "occurs 2 times"),
        ("alt", "", "alt"),
        ("src", "Where {was} Ana born?", "brace"),
        ("loc_ans", " ", "locality"),
    ],
)
def test_a_bad_record(refuse, tmp_path: Path, field: str, value: str, wanted: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "zsre.json").write_text(json.dumps([RECORD, {**RECORD, field: value}]))
    (tmp_path / "bad.yaml").write_text(GOOD.replace("{name: world, size: 20}", "{name: zsre, path: zsre.json}"))
    message = refuse("run", "bad.yaml", "--set", "protocol.rounds=[0, 2]")
    assert wanted in message, message
    assert "zsre.json:1" in message


def test_a_model_folder_without_weights(refuse, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "mine" / name).write_text('{"model_type": "llama"}')
    (tmp_path / "bad.yaml").write_text(GOOD.replace("embedded", "{name: mine, path: mine, hparams: embedded}"))
    message = refuse("run", "bad.yaml")
    assert "mine" in message
    assert "weights" in message


def test_storage_that_cannot_be_written(refuse, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "bad.yaml").write_text(GOOD)
    (tmp_path / "file").write_text("not a folder")
    message = refuse("run", "bad.yaml", "--storage", str(tmp_path / "file" / "below"))
    assert "E-STORE" in message
    assert "file" in message
