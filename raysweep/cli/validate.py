"""``raysweep validate``: the checks of a run, without the run."""

from __future__ import annotations

from typing import Annotated

import typer

from raysweep.cli import flags
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.config.components import Components
from raysweep.config.plan import open_plan
from raysweep.lazy import lazy

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A search space: a path, or a name in search_spaces/.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    flags.set_option(
        "Lay a value over the file; repeatable. KEY: data.size, protocol.rounds, arms.ARM.editor.layers …"
    ),
]


def command(
    ctx: typer.Context,
    file: FileArgument,
    set_: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="The cluster it will run on: then this machine's memory and disk do not matter."
        ),
    ] = None,
    hparams: flags.HparamsOption = "",
) -> None:
    """Check a search space and everything it names; report every mistake at once with file, line and column.

    It asks what `run` asks. Needs neither torch nor Ray, but for a model whose tokenizer was never planned with. Exit code 2 if
    anything is wrong.

    Example:

        raysweep validate demo
        raysweep validate search_spaces/smoke.yaml --set data.size=20
        raysweep validate my_space.yaml --hparams EasyEdit/hparams/ROME/gpt2-xl.yaml
    """
    workspace = workspace_of(ctx)
    components = Components.installed()
    # What `run` does up to the first trial, in the same order, so that both refuse the same.
    overrides = [*flags.hparams_overrides(hparams, file, workspace), *(set_ or ())]
    planned = open_plan(file, workspace, overrides, components)
    ray_choice = lazy("raysweep.tune.cluster").choose(address)
    lazy("raysweep.cli.preflight").check(planned, workspace, components, address=ray_choice.address)
    for note in planned.notes:
        say(f"note: {note}")
    count = len(planned.trials)
    print(f"ok: {count} trial{'' if count == 1 else 's'} in {len(planned.sweep.arms)} arms")
