"""``raysweep ask``: what a model says before its edits and after them, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.export import TrialArgument
from raysweep.cli.options import workspace_of
from raysweep.cli.plan import Format
from raysweep.cli.show import SweepArgument
from raysweep.config.limits import LARGEST
from raysweep.errors import SpecError
from raysweep.lazy import lazy
from raysweep.reports.fit import listing
from raysweep.results.tables import open_results

if TYPE_CHECKING:
    from raysweep.exports.ask import Answers
    from raysweep.exports.trials import EditedTrial


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    trial: TrialArgument,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="What to ask; default: prompts of the trial's own records."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=4096, help="How many to write, at most.")] = 10,
    records: Annotated[
        int, typer.Option("--records", min=1, max=LARGEST, help="Without a PROMPT: ask for the first so many records.")
    ] = 10,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
) -> None:
    """Let the unedited and the edited model of a finished trial go on from prompts, greedily, side by side.

    The trial must have been run with `protocol.keep: edited`. Records are those that it wrote, in its order.

    Example:

        raysweep ask demo rome,seed=0
        raysweep ask demo 3f2a "The capital of France is" --tokens 5 --format json
    """
    if prompts and any(not prompt.strip() for prompt in prompts):
        raise SpecError("a PROMPT is empty", hint="leave it out to ask for the trial's own records")
    workspace = workspace_of(ctx)
    opened: EditedTrial = lazy("raysweep.exports.trials").EditedTrial.open(
        open_results(sweep, workspace), trial, workspace
    )
    asked = prompts or [record.prompt for record in opened.records[:records]]
    answers: list[Answers] = lazy("raysweep.exports.ask").ask(opened, asked, length=tokens)
    if format_ is Format.JSON:
        print(json.dumps([asdict(answer) for answer in answers], indent=1, ensure_ascii=False))
        return
    rows = [(a.prompt, a.before.strip(), a.after.strip(), a.target) for a in answers]
    title = f"{opened.name.arm} {opened.name.key}, {opened.trial.protocol.rounds[-1]} edits"
    print(listing(("prompt", "before", "after", "target"), rows, title=title))
