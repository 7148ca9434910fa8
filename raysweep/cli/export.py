"""``raysweep export``: a finished trial's edited model as a folder that others read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.show import SweepArgument
from raysweep.exports.forms import Form
from raysweep.lazy import lazy
from raysweep.reports.prose import counted
from raysweep.results.tables import open_results

if TYPE_CHECKING:
    from raysweep.exports.export import Exported
    from raysweep.exports.trials import EditedTrial

TrialArgument = Annotated[
    str,
    typer.Argument(metavar="TRIAL", help="Beginning of its key, or its arm and as many values as tell it apart."),
]


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    trial: TrialArgument,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to write it; empty, or not there yet.")],
    as_: Annotated[
        Form, typer.Option("--as", help="The whole model, only what the edits changed, or a PEFT adapter.")
    ] = Form.MODEL,
) -> None:
    """Write the edited model of a finished trial, as its last round measured it, and prove it.

    What was written is read again in a fresh process, without raysweep, and must have the logits of the edited model; if not,
    nothing is left. The trial must have been run with `protocol.keep: edited`.

    Example:

        raysweep export demo rome,seed=0 --to edited
        raysweep export demo 3f2a --to change --as tensors
    """
    workspace = workspace_of(ctx)
    exports = lazy("raysweep.exports.export")
    exports.check_target(to)  # before a model is loaded
    opened: EditedTrial = lazy("raysweep.exports.trials").EditedTrial.open(
        open_results(sweep, workspace), trial, workspace
    )
    made: Exported = exports.export(opened, to, as_)
    rank = f" of rank {made.rank}" if made.rank else ""
    say(f"{made.form}{rank} of {opened.name.arm} {opened.name.key}: {made.folder}")
    equal = "equal bit for bit" if made.difference == 0 else f"differ by at most {made.difference:.3g}"
    say(f"read again in a fresh process, the logits at {counted(made.prompts, 'prompt', 'prompts')} {equal}")
