"""The commands of docs/models.md, one after another, with a hub of our own in place of Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.models.sources.catalogue import CATALOGUE
from tests.docs.pages import ROOT, block
from tests.unit.downloads.hubserver import Hub, hub
from tests.unit.models.conftest import save_tiny
from tests.unit.models.test_gguf import write_gguf

PAGE = ROOT / "docs/models.md"


def test_every_command_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("RAYSWEEP_ROOT", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "my_models").mkdir()
    folder = save_tiny(tmp_path / "my_models/mine", "llama")
    config = folder / "config.json"
    # Rotary positions: as many as the records need.
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 512}))
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces/my_sweep.yaml").write_text(block(PAGE, "search_spaces/my_sweep.yaml"))
    with hub() as here:
        monkeypatch.setenv("HF_ENDPOINT", here.root)
        _fill(here, folder, tmp_path)
        for title in ("fetch", "check", "sweep"):
            for line in block(PAGE, title).splitlines():
                command = line.partition("#")[0].split()
                assert main(command[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    printed = capsys.readouterr().out
    for name in ("gpt2-xl", "llama-2-7b", "mistral-7b", "someone/model", "someone/quantised/model.gguf"):
        assert str(tmp_path / "models" / name) in printed
    assert f"as fetched at commit {CATALOGUE['gpt2-xl'].revision}" in printed


def _fill(here: Hub, folder: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("gpt2-xl", "llama-2-7b", "mistral-7b"):
        here.add(CATALOGUE[name].hub, files, commit=CATALOGUE[name].revision)
    here.add("someone/model", files, revision="v1")
    write_gguf(tmp_path / "model.gguf")
    here.add("someone/quantised", {"model.gguf": (tmp_path / "model.gguf").read_bytes()})


def test_the_page_names_what_there_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for entry in CATALOGUE.values():
        if entry.kind == "hub":
            assert len(entry.revision) == 40, f"{entry.name}: the page says that its commit is pinned"
    for variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        assert variable in text
