"""A sweep as a Ray job: sent to a cluster's job server, followed from here, and found again by the same command.

The job's entry point is ``raysweep run`` itself, so all that holds for a run holds for the job: it joins its cluster
(:func:`raysweep.tune.cluster.choose`), and the same command goes on where the last one stopped. Ray's client for jobs comes with
``raysweep[cluster]``; only :func:`connect` needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raysweep.errors import MissingExtraError, RunFailedError, SpecError
from raysweep.results.outcome import INCOMPLETE
from raysweep.tune.local_ray import first_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # where Ray's own `ray job` looks, in this order
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SWEEP, ROOT = "raysweep_sweep", "raysweep_root"  # a job's metadata: what it runs, and where
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NO_AGENT = "No available agent"  # what the server says while no node's agent has come up yet
AGENT_SECONDS = 60.0  # how long that may take
PAUSE = 1.0  # seconds between two questions about a job's state


class JobDetails(Protocol):
    """What Ray tells of a job."""

    submission_id: str
    status: Any
    message: str | None
    driver_exit_code: int | None
    metadata: dict[str, str] | None


class JobClient(Protocol):
    """What is used of ``ray.job_submission.JobSubmissionClient``."""

    def submit_job(self, **options: Any) -> str:
        """Start a job; return its id."""

    def list_jobs(self) -> Sequence[JobDetails]:
        """Return every job that the cluster remembers."""

    def get_job_info(self, job: str) -> JobDetails:
        """Return what is known of one job."""

    def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """Yield what a job prints, until it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A sweep to be run by a job.

    Attributes:
        sweep: its name.
        file: its search space on this machine, which travels with the job.
        root: the workspace's root on the cluster, a folder that every node sees.
        arguments: what else ``raysweep run`` is told there.
    """

    sweep: str
    file: Path
    root: str
    arguments: tuple[str, ...] = ()

    @property
    def entrypoint(self) -> str:
        """The command that the job runs, in the folder that travelled with it."""
        return shlex.join(["raysweep", "--root", self.root, "run", f"./{self.sweep}.yaml", *self.arguments])


def server_address(stated: str | None, environ: Mapping[str, str] | None = None) -> str:
    """Return the address of the cluster's job server: as *stated*, else as Ray's own variables say, else this machine's.

    Raises:
        SpecError: the address is that of the cluster itself, which takes no jobs.

    >>> server_address("http://head:8265", {}), server_address(None, {"RAY_ADDRESS": "https://ray.example.org"})
    ('http://head:8265', 'https://ray.example.org')
    """
    variables = os.environ if environ is None else environ
    named = next(((name, variables[name]) for name in ADDRESSES if variables.get(name)), ("", DEFAULT_ADDRESS))
    origin, address = ("--address", stated) if stated else named
    if not address.startswith(("http://", "https://")):
        host = address.removeprefix("ray://").partition(":")[0] or "HEAD"
        raise SpecError(
            f"{origin} {address!r} is not that of a job server",
            hint=f"it is the dashboard's, usually http://{host}:8265; on a machine of the cluster use `raysweep run`",
        )
    return address


def connect(address: str) -> JobClient:
    """Return a client of the job server at *address*; a token is sent as ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH`` says.

    Raises:
        MissingExtraError: Ray's client for jobs is not installed.
        RunFailedError: nothing answers there, or it wants another token.
    """
    from ray.job_submission import JobSubmissionClient

    # It reports uploads and closed sockets at level INFO, between the lines of the job.
    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        client: JobClient = JobSubmissionClient(address)
    except RuntimeError as error:
        # Ray has no class of its own for a missing extra; only the text tells.
        if "ray[default]" not in str(error):
            raise
        raise MissingExtraError(
            "`submit` needs Ray's client for jobs", hint="pip install 'raysweep[cluster]'"
        ) from error
    except Exception as error:  # connection errors of several libraries
        hint = "is the dashboard running there? `ray start --head --include-dashboard=true` starts one, on port 8265"
        raise RunFailedError(f"no job server can be reached at {address}: {first_line(error)}", hint=hint) from error
    return client


def running(client: JobClient, request: JobRequest) -> str | None:
    """Return the id of a job that runs this very sweep in this very root already, or None."""
    # Every submission has another id; sweep and root are what two drivers would both write to.
    wanted = {SWEEP: request.sweep, ROOT: request.root}
    for job in client.list_jobs():
        metadata = job.metadata or {}
        if str(job.status) not in ENDED and {name: metadata.get(name) for name in wanted} == wanted:
            return job.submission_id
    return None


def submit(client: JobClient, request: JobRequest) -> str:
    """Start the job of *request* and return its id.

    Raises:
        RunFailedError: the job server refused it.
    """
    # A cluster takes each id once, even after its job has ended.
    name = f"raysweep-{request.sweep}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    with _luggage(request) as folder:
        until = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                # Uploading is done when this returns, so the folder may go.
                return client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": str(folder)},
                    metadata={SWEEP: request.sweep, ROOT: request.root},
                )
            except Exception as error:
                # A cluster that has just started takes jobs some seconds later than connections.
                if NO_AGENT not in str(error) or time.monotonic() > until:
                    raise RunFailedError(f"the job server refused the job: {first_line(error)}") from error
            time.sleep(PAUSE)


@contextmanager
def _luggage(request: JobRequest) -> Iterator[Path]:
    """Yield a folder that holds what travels with the job: its search space and nothing else."""
    with tempfile.TemporaryDirectory(prefix="raysweep-submit-") as name:
        folder = Path(name)
        shutil.copyfile(request.file, folder / f"{request.sweep}.yaml")
        yield folder


def follow(client: JobClient, job: str, write: Callable[[str], None]) -> int:
    """Write what *job* prints until it ends; return the exit code of ``raysweep run`` there.

    A connection that is lost is made again, and what was written before is not repeated. A job that somebody stopped counts as
    incomplete.

    Args:
        client: the job server's.
        job: the job's id.
        write: given pieces of text, line ends included.
    """
    written = 0
    while True:
        written = asyncio.run(_tail(client, job, write, written))
        # The log ends with a lost connection as it does with the job, so the state is asked.
        info = client.get_job_info(job)
        if str(info.status) in ENDED:
            break
        time.sleep(PAUSE)
    if str(info.status) == "SUCCEEDED":
        return 0
    if info.driver_exit_code:
        return int(info.driver_exit_code)
    # Without an exit code our command never ended by itself: the job was stopped, or did not start.
    write(f"{info.message or info.status}\n")
    return INCOMPLETE


async def _tail(client: JobClient, job: str, write: Callable[[str], None], written: int) -> int:
    """Write the log of *job* from its character *written* on; return how many characters it has so far."""
    # Each new connection sends the log from its beginning.
    position = 0
    try:
        async for text in client.tail_job_logs(job):
            if position + len(text) > written:
                write(text[max(written - position, 0) :])
            position += len(text)
    except (OSError, RuntimeError):  # the connection broke; the caller asks how the job stands
        pass
    return max(position, written)
