"""``raysweep submit``: a sweep as a job on a cluster that is reached through its dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from raysweep.cli.options import Options
from raysweep.cli.say import say
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.sweep import find_file, load_search_space
from raysweep.lazy import lazy


def command(
    ctx: typer.Context,
    file: FileArgument,
    there: Annotated[
        str,
        typer.Option(
            "--there", metavar="PATH", help="The workspace's root on the cluster: a folder that all nodes share."
        ),
    ],
    set_: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="The dashboard: http://HOST:8265. Left out: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.",
        ),
    ] = None,
    storage: Annotated[str, typer.Option("--storage", help="Folder or URI for results, as the cluster sees it.")] = "",
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    log: Annotated[list[str] | None, typer.Option("--log", metavar="LOGGER", help="As `raysweep run --log`.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Print what the job prints until it ends.")
    ] = True,
) -> None:
    """Run a sweep as a Ray job and follow it; the exit code is that of `raysweep run` there.

    The search space travels with the job; models and data are looked for below `--there`. The same command finds a job that still
    runs and follows it; after its end it goes on with what is not done. Ctrl-C leaves the job alone. Needs `raysweep[cluster]`.

    Example:

        raysweep submit demo --address http://head:8265 --there /shared
    """
    jobs = lazy("raysweep.tune.jobs")
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    overrides = list(set_ or ())
    sweep = load_search_space(file, workspace, overrides)  # its mistakes are told before anything is sent
    arguments = [*(part for override in overrides for part in ("--set", override))]
    arguments += [*(part for logger in log or () for part in ("--log", logger))]
    arguments += [*(("--storage", storage) if storage else ()), *(("--retry",) if retry else ())]
    request = jobs.JobRequest(sweep=sweep.name, file=find_file(file, workspace), root=there, arguments=tuple(arguments))
    server = jobs.server_address(address)
    client = jobs.connect(server)
    job = jobs.running(client, request)
    if job is None:
        job = jobs.submit(client, request)
        say(f"submitted {job} to {server}; it goes on without this command, which finds it again")
    else:
        say(f"{job} runs this sweep at {server} already; following it")
    say(f"to stop it: ray job stop --address {server} {job}")
    if not follow:
        return
    try:
        code = jobs.follow(client, job, write)
    except KeyboardInterrupt:
        say("the job goes on; run the same command again to follow it", err=True)
        raise
    if code:
        say(f"run the same command again to go on; the whole log: ray job logs --address {server} {job}", err=True)
        raise typer.Exit(code)


def write(text: str) -> None:
    """Pass on what the job printed, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
