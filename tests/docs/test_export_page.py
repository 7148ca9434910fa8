"""The commands of docs/export.md, one after another; the first proof is made for real."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.exports import export
from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/export.md"


def test_every_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("COLUMNS", "200"), ("RAYSWEEP_ROOT", str(tmp_path))):
        monkeypatch.setenv(name, value)
    printed = {}
    for title in ("keep", "ask", "export"):
        for line in block(PAGE, title).splitlines():
            assert main(shlex.split(line, comments=True)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            printed[line.partition("#")[0].strip()] = capsys.readouterr().out
            if " export " in line:  # tests/unit/exports has a proof of each form; another process costs seconds
                monkeypatch.setattr(export, "prove", lambda claims: [0.0])
    said = printed["raysweep export mine lora --to edited"]
    assert "read again in a fresh process, the logits at 3 prompts equal bit for bit" in said
    own, mine = (text for line, text in printed.items() if " ask " in line)
    assert own.split()[2:7] == ["3", "edits", "prompt", "before", "after"]
    assert [answer["prompt"] for answer in json.loads(mine)] == ["The capital of France is", "Who is"]
    assert (tmp_path / "edited/model.safetensors").is_file()
    about = json.loads((tmp_path / "change/edited.json").read_text())
    assert about["model"]["name"] == "embedded"
    assert about["names"]
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert 0 < config["r"] <= 3, "three edits of rank one"
