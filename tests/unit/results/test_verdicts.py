"""Judging stored answers: nothing is lost to a slow, failing or babbling judge, and nothing is asked twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from raysweep import judge as judging
from raysweep.cli.main import main
from raysweep.config.schema import TrialSpec
from raysweep.errors import SpecError
from raysweep.judge import PROMPT, Case, Judge
from raysweep.results.tables import Sweep, open_results
from raysweep.results.verdicts import VERDICT_FOLDER, judge_answers, judge_folder, verdicts_of
from raysweep.rows import AnswerRow, EvalRound
from tests.unit.loopback import serving
from tests.unit.reports.test_asked import root as root

Reply = Callable[[str, int], tuple[int, bytes]]
CASE = Case("Who {answer}?", "C. Newton", "C")


def said(text: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Server:
    """A judge that replies what a function of the prompt and the number of the request says."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.requests, self.keys = reply, list[dict[str, object]](), list[str | None]()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        self.keys.append(handler.headers["Authorization"])
        code, data = self.reply(body["messages"][0]["content"], len(self.requests))
        handler.send_response(code)
        if code in (302, 307):
            handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def judge(reply: Reply, **more: float | str) -> Iterator[tuple[Judge, Server]]:
    server = Server(reply)
    with serving(server) as port:
        yield Judge(**{"url": f"http://127.0.0.1:{port}/v1", "model": "m", "pause": 0.001} | more), server  # type: ignore[arg-type]


def opened(root: Path) -> Sweep:
    return open_results(str(root / "results" / "toy"))


@pytest.mark.parametrize(("text", "value"), [("A", 1.0), (" B.\n", 0.0), ("**A**", 1.0)])
def test_a_letter_is_a_verdict(text: str, value: float) -> None:
    with judge(lambda *_: (200, said(text)), key="k") as (one, server):
        verdict = one.ask(CASE)
    assert (verdict.value, verdict.text, verdict.error) == (value, text, "")
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("m", 0)
    assert server.keys == ["Bearer k"]
    prompt = request["messages"][0]["content"]  # type: ignore[index]
    assert prompt == PROMPT.replace("{answer}", "C").replace("{question}", CASE.question).replace(
        "{target}", CASE.target
    )


@pytest.mark.parametrize(
    ("reply", "tries", "error"),
    [
        ((500, b""), 4, "HTTP 500"),
        ((429, b""), 4, "HTTP 429"),
        ((401, b""), 1, "HTTP 401"),
        ((302, b""), 1, "HTTP 302"),
        ((200, b"<html>"), 4, "no chat completion"),
        ((200, b'{"choices": []}'), 4, "no chat completion"),
        ((200, b"[1]"), 4, "no chat completion"),
        ((200, said("Apples, surely")), 4, "neither A nor B"),
        ((200, said("A or B")), 4, "neither A nor B"),
        ((200, said(None)), 4, "neither A nor B"),
    ],
)
def test_whatever_else_it_replies_is_none_and_raises_nothing(reply: tuple[int, bytes], tries: int, error: str) -> None:
    with judge(lambda *_: reply) as (one, server):
        verdict = one.ask(CASE)
    assert verdict.value is None
    assert error in verdict.error
    assert len(server.requests) == tries


def test_a_slow_or_absent_judge_is_none_too() -> None:
    def slow(*_: object) -> tuple[int, bytes]:
        time.sleep(0.3)
        return 200, said("A")

    with judge(slow, timeout=0.05, tries=1) as (one, _):
        assert "imed out" in one.ask(CASE).error
    assert "refused" in one.ask(CASE).error, "its server is gone"


def test_the_pauses_grow() -> None:
    paused: list[float] = []
    with judge(lambda *_: (503, b""), pause=1.0) as (one, _):
        one.ask(CASE, paused.append)
    assert paused == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("url", "key"), [("ftp://h/v1", ""), ("h:8000", ""), ("http://far.example/v1", "k")])
def test_an_address_that_cannot_be_or_gives_the_key_away_is_refused(url: str, key: str) -> None:
    with pytest.raises(SpecError):
        Judge(url=url, model="m", key=key)


def bytes_of(root: Path, *, verdicts: bool) -> dict[str, bytes]:
    files = (p for p in (root / "results/toy").rglob("*") if p.is_file())
    return {str(p): p.read_bytes() for p in files if (VERDICT_FOLDER in p.parts) is verdicts}


def test_judging_again_gives_the_same_rows_and_asks_nothing(root: Path) -> None:
    before = bytes_of(root, verdicts=False)
    with judge(lambda *_: (200, said("A"))) as (one, server):
        first = judge_answers(opened(root), one)
        kept = bytes_of(root, verdicts=True)
        again = judge_answers(opened(root), one)
    assert (first.answers, first.asked, first.missing) == (2, 1, 0), "equal cases are asked once"
    assert (again.answers, again.asked, again.missing) == (2, 0, 0)
    assert len(server.requests) == 1
    assert bytes_of(root, verdicts=True) == kept
    assert bytes_of(root, verdicts=False) == before, "no file of a trial has changed"
    (key,) = opened(root).keys
    table = verdicts_of(opened(root).store.folder, judge_folder(one), key)
    assert table["verdict"].to_pylist() == [1.0, 1.0]
    assert set(table["prompt_hash"].to_pylist()) == {one.prompt_hash}


def test_another_model_or_prompt_is_another_judge(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with judge(lambda *_: (200, said("A"))) as (one, _):
        other = Judge(url=one.url, model="n")
        folders = {judge_folder(other), judge_folder(one)}
        assert judge_folder(Judge(url="http://localhost:1", model="m")) in folders, "wherever it is asked"
        monkeypatch.setattr(judging, "PROMPT", PROMPT + " ")
        assert len(folders | {judge_folder(one)}) == 3


def test_what_failed_is_asked_again_and_nothing_else(root: Path) -> None:
    with judge(lambda *_: (500, b""), tries=1) as (one, _):
        failed = judge_answers(opened(root), one)
    assert (failed.missing, failed.error) == (2, "HTTP 500")
    (key,) = opened(root).keys
    table = verdicts_of(opened(root).store.folder, judge_folder(one), key)
    assert table["verdict"].to_pylist() == [None, None]
    assert table["error"].to_pylist() == ["HTTP 500"] * 2
    with judge(lambda *_: (200, said("B"))) as (one, _):
        assert judge_answers(opened(root), one).missing == 0


def test_the_verdict_on_an_answer_that_has_changed_is_replaced(root: Path) -> None:
    """A trial that was made afresh, on another machine say, may have written something else."""
    with judge(lambda *_: (200, said("A"))) as (one, _):
        judge_answers(opened(root), one)
    store = opened(root).store
    (key,) = opened(root).keys
    table = open_results(str(root / "results" / "toy")).answers()
    again = [AnswerRow(**row | {"answer": "other"}) for row in table.to_pylist()]
    store.begin(TrialSpec.read_back(store.about(key).trial), arm="ft", point={}, provenance={})
    store.write_round(key, EvalRound(step=2, rows=[], answers=again))
    store.finish(key, step=2)
    with judge(lambda *_: (200, said("B"))) as (one, _):
        assert judge_answers(opened(root), one).asked == 1
    found = verdicts_of(store.folder, judge_folder(one), key)
    assert found["answer"].to_pylist() == ["other"] * 2
    assert found["verdict"].to_pylist() == [0.0, 0.0]


def test_a_dead_judge_is_left_alone_after_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import raysweep.results.verdicts as module

    monkeypatch.setattr(module, "_CHUNK", 4)
    cases = [Case(str(i), "t", "a") for i in range(100)]
    with judge(lambda *_: (500, b""), tries=1) as (one, server):
        asked = [case for chunk in module._in_chunks(cases, one, 2) for case in chunk]
    assert len(asked) == len(server.requests) == 20
    with judge(lambda _, n: (200 if n % 19 == 0 else 500, said("A")), tries=1) as (one, server):
        assert sum(map(len, module._in_chunks(cases, one, 1))) == 100, "one answer now and then is life"


def test_the_command_and_what_is_shown_of_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["--root", str(root), *argv])
        return code, *capsys.readouterr()

    assert "no judge has looked" in call("show", "toy", "--protocol", "wild-mirage+judged")[2]
    with judge(lambda *_: (200, said("A"))) as (one, _):
        flags = ("judge", "toy", "--url", one.url, "--model", "m", "--protocol", "wild-mirage", "--at", "2")
        code, out, _ = call(*flags, "--parallel", "2", "--timeout", "5")
    assert (code, "2 answers, 1 case asked now, 0 without a verdict" in out) == (0, True)
    code, out, _ = call("show", "toy", "--protocol", "wild-mirage+judged", "--format", "json")
    (row,) = json.loads(out)
    assert (row["rel"], row["loc"]) == (1.0, 0.25), "locality is compared with the unedited model, not judged"
    code, out, err = call("judge", "toy", "--url", one.url, "--model", "gone", "--timeout", "0.2")
    assert code == 3
    assert "2 without a verdict" in out
    assert "the same command tries again" in err
    assert "2 judges have looked" in call("show", "toy", "--protocol", "wild-mirage+judged")[2]
    out = call("show", "toy", "--protocol", "wild-mirage+judged=m")[1]
    assert "judged by m" in " ".join(out.split())
    assert call("judge", "toy", "--url", one.url, "--model", "m", "--at", "7")[0] == 2, "there is no such round"
