"""``raysweep judge``: let a language model look at the answers that a sweep has stored."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.show import SweepArgument, report_left_out
from raysweep.errors import SpecError
from raysweep.judge import Judge
from raysweep.reports import asked
from raysweep.reports.prose import counted
from raysweep.results.tables import open_results
from raysweep.results.verdicts import judge_answers

KEY = "RAYSWEEP_JUDGE_KEY"


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    url: Annotated[str, typer.Option("--url", help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option("--model", help="Which of its models judges.")],
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="ID[:PROMPT]", help="Only answers of this protocol; default: all.")
    ] = "",
    at: Annotated[int | None, typer.Option("--at", help="Only answers of the round at this step.")] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=256, help="Cases asked at once.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that one try may take.")] = 60.0,
) -> None:
    """Judge the stored answers of a sweep: does each state what was written?

    Nothing is run again, and no file of a trial changes: verdicts lie beside them, by model and prompt of the judge, and the same
    command goes on where it stopped. A key is taken from the environment variable RAYSWEEP_JUDGE_KEY. Answers that the judge
    did not judge, whatever it did instead, have no verdict and are asked again next time; the exit code is 3 then.
    `raysweep show SWEEP --protocol wild-mirage+judged` shows what came of it.

    Example:

        raysweep judge demo --url http://127.0.0.1:8000/v1 --model qwen2.5-7b-instruct
    """
    # A key on the command line would stand in the shell's history and in the list of processes.
    judge = Judge(url=url, model=model, key=os.environ.get(KEY, ""), timeout=timeout)
    results = open_results(sweep, workspace_of(ctx))
    selection = asked.chosen(protocol, [results])
    label = selection.label if selection else ""
    found = judge_answers(
        results, judge, protocol=label, step=at, parallel=parallel,
        report=lambda done, total: say(f"judged {done} of {counted(total, 'case', 'cases')}"),
    )  # fmt: skip
    if not found.answers:
        raise SpecError(
            "there is no answer to judge",
            hint="protocol.also names protocols that let a model write (docs/protocols.md)",
        )
    cases = counted(found.asked, "case", "cases")
    say(f"{counted(found.answers, 'answer', 'answers')}, {cases} asked now, {found.missing} without a verdict")
    if found.missing:
        reason = f" (last: {found.error})" if found.error else ""
        say(
            f"not judged: {counted(found.missing, 'answer', 'answers')}{reason}; the same command tries again", err=True
        )
    # Damaged trials first, since that leaves with the same code.
    report_left_out(results)
    if found.missing:
        raise typer.Exit(TRIALS_FAILED)
