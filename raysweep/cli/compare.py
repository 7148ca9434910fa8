"""``raysweep compare``: differences between configurations, paired by record and seed; or to published numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.say import tell
from raysweep.cli.show import (
    AllOption,
    FormatOption,
    Phase,
    PhaseOption,
    ProtocolOption,
    WideOption,
    report_left_out,
)
from raysweep.errors import SpecError
from raysweep.protocols import Selection
from raysweep.reports import asked
from raysweep.reports.compare import caption, compared_entries, comparison_notes, rows, title
from raysweep.reports.fit import terminal_width
from raysweep.reports.pairs import by_value, by_wrapper, of_one_protocol, to_one
from raysweep.reports.published import beside, measured
from raysweep.reports.published_numbers import open_published
from raysweep.reports.render import Format, render
from raysweep.reports.sweeps import open_labelled


class Pairing(StrEnum):
    """What to set beside what."""

    WRAP = "wrap"


TO_HELP = "The reference arm; with --by KEY, the reference value of KEY."
AGAINST_HELP = "Published numbers instead: see `raysweep ls published`."
LOOSELY_HELP = "With --against: same arms, whatever the model, data, edits and λ."
PAIR_HELP = "wrap: each wrapped editor beside the same editor without it."


def command(
    ctx: typer.Context,
    sweeps: Annotated[list[str], typer.Argument(metavar="SWEEP…", help="One or more sweeps; the first leads.")],
    by: Annotated[str, typer.Option("--by", help="arm, or a swept key such as wrap.simie.lam.")] = "arm",
    to: Annotated[str, typer.Option("--to", metavar="ARM", help=TO_HELP)] = "",
    pair: Annotated[Pairing | None, typer.Option("--pair", help=PAIR_HELP)] = None,
    at: Annotated[int, typer.Option("--at", help="The round; -1 = the last one in common (with --against: all).")] = -1,
    phase: PhaseOption = None,
    format_: FormatOption = Format.TABLE,
    against: Annotated[str, typer.Option("--against", metavar="NAME", help=AGAINST_HELP)] = "",
    loosely: Annotated[bool, typer.Option("--loosely", help=LOOSELY_HELP)] = False,
    everything: AllOption = False,
    wide: WideOption = False,
    protocol: ProtocolOption = "",
) -> None:
    """Compare configurations with a reference: each difference is paired by record and seed, with its 95% interval.

    The reference is the first arm, or `--to ARM`. With `--by KEY` it is the same arm at the key's first value, or at the value
    that `--to` names. With `--pair wrap` it is the same editor, configured the same way, without its wrapper.

    With `--protocol`, what another protocol made of the same probes is compared (docs/protocols.md).
    With `--against`, compare with published numbers: ours with its 95% interval, theirs, the difference.

    Example:

        raysweep compare demo --at 100 --to memit
        raysweep compare demo --pair wrap
        raysweep compare demo other --by wrap.simie.lam --format latex
        raysweep compare simie_table1 --against simie-table1
        raysweep compare demo --against simie-table1 --loosely
    """
    workspace = workspace_of(ctx)
    plain, width = format_ in (Format.CSV, Format.JSON), terminal_width(wide=wide)
    opened_sweeps = open_labelled(sweeps, workspace, everything=everything)
    selection = asked.chosen(protocol, [sweep for sweep, _ in opened_sweeps])
    asked.refuse_immediate(phase.value if phase else None, selection)
    # Flags that would be ignored are refused: a table that looks like what was asked for misleads.
    idle = by == "arm" and not to and not pair and phase in (None, Phase.RETAINED)
    _refuse_ignored(
        against=against, loosely=loosely, pair=pair, idle=idle, unpaired=not to and by == "arm", asked_for=selection
    )
    below: str | None = None
    if against:
        numbers = open_published(against, workspace)
        table, about = beside(numbers, measured(opened_sweeps, workspace, at=at), loosely=loosely, plain=plain)
        headline = f"retained, mean [95% interval], against {against}"
    else:
        entries = compared_entries(opened_sweeps, by=by, phase=phase.value if phase else None, at=at, asked=selection)
        pairs = by_wrapper(entries) if pair else to_one(entries, to) if by == "arm" else by_value(entries, by, to)
        pairs, foreign = of_one_protocol(entries, pairs)
        paper = format_ in (Format.MARKDOWN, Format.LATEX)
        about = [*foreign, *comparison_notes(opened_sweeps, pairs, by=by, pair=pair, paper=paper)]
        table = rows(pairs, plain=plain)
        headline = title(pairs, by=by, to=to, pair=pair) + (f", {selection.text}" if selection else "")
        below = caption(pairs, headline, under=selection.label if selection else "") if paper else None
    print(render(table, format_, title=headline, width=width, caption=below))
    tell(about, format_)
    report_left_out(*(sweep for sweep, _ in opened_sweeps))


def _refuse_ignored(
    *, against: str, loosely: bool, pair: Pairing | None, idle: bool, unpaired: bool, asked_for: Selection | None
) -> None:
    """Refuse flags that would have no effect.

    Args:
        against, loosely, pair: as stated.
        idle: no flag is stated that published numbers leave without effect.
        unpaired: no flag is stated that ``--pair`` leaves without effect.
        asked_for: the protocol that is asked for, if it is not the main one.
    """
    if against and asked_for:
        raise SpecError("published numbers are of protocols of their own", hint="leave out --protocol")
    if loosely and not against:
        raise SpecError("--loosely says how to compare with published numbers", hint="add --against NAME")
    if pair and not against and not unpaired:
        raise SpecError("--pair wrap has its own references", hint="leave out --to and --by")
    if against and not idle:
        raise SpecError(
            "published numbers are compared arm by arm, with what is retained",
            hint="leave out --by and --phase, --to and --pair",
        )
