"""A sweep as a Ray job: what is sent, what is written while it is followed, and what is returned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import RunFailedError, SpecError
from raysweep.tune import jobs
from raysweep.tune.jobs import JobRequest


@dataclass
class Job:
    """A job as Ray's client tells of it."""

    submission_id: str
    status: str
    metadata: dict[str, str] | None = None
    driver_exit_code: int | None = None
    message: str | None = None


@dataclass
class Server:
    """A job server that remembers what it was sent; a job's log comes in *pieces*, each list of them one connection."""

    known: list[Job] = field(default_factory=list)
    pieces: list[list[str]] = field(default_factory=list)
    states: list[Job] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    late: int = 0  # how often it is not ready yet

    def submit_job(self, **options: Any) -> str:
        self.late -= 1
        if self.late >= 0:
            raise RuntimeError("status code 500: No available agent to submit job, please try again later")
        if self.refusal:
            raise RuntimeError(self.refusal)
        folder = Path(options["runtime_env"]["working_dir"])
        self.sent = {**options, "files": {p.name: p.read_text() for p in folder.iterdir()}}
        return str(options["submission_id"])

    def list_jobs(self) -> list[Job]:
        return self.known

    def get_job_info(self, job: str) -> Job:
        return self.states.pop(0)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.pieces.pop(0):
            if piece == "BREAK":
                raise ConnectionResetError
            yield piece


@pytest.fixture
def request_(tmp_path: Path) -> JobRequest:
    file = tmp_path / "mine.yaml"
    file.write_text("arms: {}\n")
    return JobRequest(sweep="sweep one", file=file, root="/shared/r", arguments=("--set", "data.size=2 0"))


def test_the_search_space_travels_and_the_rest_is_quoted(request_: JobRequest) -> None:
    server = Server()
    job = jobs.submit(server, request_)
    assert job.startswith("raysweep-sweep one-")
    assert server.sent["files"] == {"sweep one.yaml": "arms: {}\n"}
    assert server.sent["entrypoint"] == "raysweep --root /shared/r run './sweep one.yaml' --set 'data.size=2 0'"


def test_a_cluster_that_has_just_started_is_given_time(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0)
    assert jobs.submit(Server(late=3), request_).startswith("raysweep-")
    monkeypatch.setattr(jobs, "AGENT_SECONDS", -1)
    with pytest.raises(RunFailedError, match="No available agent"):
        jobs.submit(Server(late=3), request_)


def test_a_refusal_is_one_sentence(request_: JobRequest) -> None:
    with pytest.raises(RunFailedError, match="refused the job: no token"):
        jobs.submit(Server(refusal="no token\nTraceback"), request_)


@pytest.mark.parametrize(
    ("status", "metadata", "same"),
    [
        ("RUNNING", {jobs.SWEEP: "sweep one", jobs.ROOT: "/shared/r"}, True),
        ("PENDING", {jobs.SWEEP: "sweep one", jobs.ROOT: "/shared/r"}, True),
        ("STOPPED", {jobs.SWEEP: "sweep one", jobs.ROOT: "/shared/r"}, False),
        ("RUNNING", {jobs.SWEEP: "sweep one", jobs.ROOT: "/elsewhere"}, False),
        ("RUNNING", None, False),
    ],
)
def test_a_sweep_that_runs_already_is_found(
    request_: JobRequest, status: str, metadata: dict[str, str] | None, same: bool
) -> None:
    assert jobs.running(Server([Job("j", status, metadata)]), request_) == ("j" if same else None)


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        (Job("j", "SUCCEEDED"), 0, ""),
        (Job("j", "FAILED", driver_exit_code=3, message="exit 3"), 3, ""),
        (Job("j", "FAILED", driver_exit_code=130), 130, ""),
        (Job("j", "FAILED", message="no node for the driver"), 3, "no node for the driver\n"),
        (Job("j", "STOPPED"), 3, "STOPPED\n"),
    ],
)
def test_a_job_is_followed_through_a_broken_connection(
    monkeypatch: pytest.MonkeyPatch, end: Job, code: int, last: str
) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0)
    server = Server(pieces=[["one\n", "tw", "BREAK"], ["one\ntwo\n", "three\n"]], states=[Job("j", "RUNNING"), end])
    written: list[str] = []
    assert jobs.follow(server, "j", written.append) == code
    assert "".join(written) == "one\ntwo\nthree\n" + last


@pytest.mark.parametrize(
    ("stated", "environ", "address"),
    [
        ("https://h", {"RAY_ADDRESS": "http://other"}, "https://h"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "b:6379"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://b:2"}, "http://b:2"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_where_the_job_server_is(stated: str | None, environ: dict[str, str], address: str) -> None:
    assert jobs.server_address(stated, environ) == address


@pytest.mark.parametrize(
    ("stated", "environ", "origin"),
    [("h:6379", {}, "--address"), (None, {"RAY_ADDRESS": "h:6379"}, "RAY_ADDRESS"), ("ray://h:10001", {}, "--address")],
)
def test_a_cluster_s_own_address_takes_no_jobs(stated: str | None, environ: dict[str, str], origin: str) -> None:
    with pytest.raises(SpecError, match=f"{origin} .* is not that of a job server") as caught:
        jobs.server_address(stated, environ)
    assert "http://h:8265" in caught.value.hint
