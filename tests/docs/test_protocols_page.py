"""The commands of docs/protocols.md, one after another; the judge is a server of this test's own."""

from __future__ import annotations

import json
import re
import shlex
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.config.schema import AlsoSpec
from raysweep.protocols import PROTOCOLS
from tests.docs.pages import ROOT, block, blocks
from tests.unit.loopback import serving

PAGE = ROOT / "docs/protocols.md"
TEXT = PAGE.read_text(encoding="utf-8")


def always_a(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(int(handler.headers["Content-Length"]))
    data = json.dumps({"choices": [{"message": {"content": "A"}}]}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace of its own, and a terminal that is wide enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("elsewhere")
def test_every_command_works(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(always_a) as port:
        printed: dict[str, str] = {}
        for title in ("run", "judge"):
            for line in block(PAGE, title).splitlines():
                argv = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), comments=True)[1:]
                assert main(argv) == 0, f"{line}\n{capsys.readouterr().err}"
                printed[line.partition("#")[0].strip()] = capsys.readouterr().out
    free = printed["raysweep show mine --protocol wild-mirage"]
    assert "wild-mirage:question-only/1 normalised_match" in free
    assert "judged by qwen2.5-7b-instruct" in printed["raysweep show mine --protocol wild-mirage+judged"]
    assert " 1.000 " in printed["raysweep show mine --protocol wild-mirage+judged"], "A to everything"
    (python,) = (b.text for b in blocks(PAGE) if b.language == "python")
    exec(compile(python, str(PAGE), "exec"), {})
    assert "normalised_match" in capsys.readouterr().out


def test_the_page_names_every_protocol_with_its_version() -> None:
    for one in PROTOCOLS.values():
        assert re.search(rf"^\| `{one.id}` \| {one.version} \|", TEXT, re.MULTILINE), one.id
        assert all(f"`{scorer.name}`" in TEXT for scorer in one.scorers)
        assert all(f"`{prompt}`" in TEXT for prompt in one.prompts)
    (yaml,) = (b.text for b in blocks(PAGE) if b.language == "yaml")
    assert "also: [wild-mirage, {id: wild-mirage, prompt: qa_inst}, localft]" in yaml
    assert AlsoSpec.model_validate("wild-mirage").label == "wild-mirage:question-only/1"
