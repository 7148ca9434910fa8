"""The sentences on top of a report. Every number in them stands in a table below, and is a link to its cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysweep.reports.evidence import LEADING, of_pairs
from raysweep.reports.pairs import Pair
from raysweep.reports.prose import counted
from raysweep.reports.render import Difference, cell_text
from raysweep.reports.retention_table import Retention, rows
from raysweep.reports.views import SummaryRow, paired
from raysweep.verdicts import Verdict, Word


@dataclass(frozen=True, slots=True)
class Arm:
    """A configuration by its label."""

    label: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a table.

    Attributes:
        text: as the table has it.
        table, row, column: where: the table's name, the configuration's label, the heading.
    """

    text: str
    table: str
    row: str
    column: str


MOST = 1_000_000  # records or seeds that are worth a word
Sentence = Sequence[str | Arm | Number]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The configuration with the highest mean beside all others.

    Attributes:
        view: what is compared, ``avg`` where there is one.
        best: its line; None where nothing is defined.
        differences: *best* minus each other line, by label.
        verdicts: on these differences, corrected for all pairs of lines: which line is best was chosen by its numbers.
        pairs: how many pairs of lines that are.
    """

    view: str
    best: SummaryRow | None
    differences: Mapping[str, Difference]
    verdicts: Mapping[str, Verdict]
    pairs: int

    def called(self, word: Word) -> list[str]:
        """Return the labels of the lines that *best* is ``better`` than, or cannot be told from (``not shown``)."""
        return [label for label, verdict in self.verdicts.items() if verdict.word is word]


def comparison(lines: Sequence[SummaryRow]) -> Comparison:
    """Return the best of *lines*, which are of one round and phase, beside the others."""
    view = next((v for v in LEADING if any(v in line.cells for line in lines)), LEADING[-1])
    defined = [line for line in lines if view in line.cells]
    if not defined:
        return Comparison(view, None, {}, {}, 0)
    best = max(defined, key=lambda line: line.cells[view].mean)
    # All pairs, not just those of the best one: it leads because its numbers happen to be highest.
    pairs = [Pair(a, b) if a is best else Pair(b, a) for a, b in itertools.combinations(defined, 2)]
    words = of_pairs(pairs, [view])[view]
    mine = {pair.reference.label: pair for pair in pairs if pair.line is best and pair.reference is not None}
    verdicts = {label: words[id(pair)] for label, pair in mine.items() if id(pair) in words}
    differences = {}
    for label, pair in mine.items():
        found = paired(pair.reference, best, view) if pair.reference is not None else None
        if found is not None:
            shown = label in verdicts and verdicts[label].word is not Word.NOT_SHOWN
            differences[label] = Difference(found.mean, found.se, found.n, found.low, found.high, shown)
    return Comparison(view, best, differences, verdicts, len(pairs))


def sentences(
    lines: Sequence[SummaryRow], compared: Comparison, kept: Sequence[Retention]
) -> list[tuple[str, Sentence]]:
    """Return a heading and a sentence for each question: which, how long, what cost, how sure."""
    out = [("Which", _which(lines, compared))]
    if kept:
        out.append(("How long", _how_long(kept)))
    cost = _cost(lines, compared)
    if cost:
        out.append(("What cost", cost))
    out.append(("How sure", _how_sure(lines, compared)))
    return out


def _which(lines: Sequence[SummaryRow], compared: Comparison) -> Sentence:
    best, column = compared.best, compared.view.capitalize()
    if best is None:
        return [
            "No arm has a defined value here: weights or logits stopped being finite numbers, or nothing was measured."
        ]
    lead: list[str | Arm | Number] = [
        f"After {best.step} edits ", Arm(best.label), " has the highest " if len(lines) > 1 else " has ", f"{column}, ",
        Number(cell_text(best.cells[compared.view]), "arms", best.label, column), ". ",
    ]  # fmt: skip
    beaten = sorted(compared.called(Word.BETTER), key=lambda label: compared.differences[label].mean)
    if beaten:
        lead += ["It is better than ", *_listed(beaten), f" (by {column} ", _difference(compared, beaten[0], column)]
        lead += [" at least" if len(beaten) > 1 else "", "). "]
    for label in compared.called(Word.NOT_SHOWN):
        lead += ["Against ", Arm(label), " nothing is shown: ", _difference(compared, label, column)]
        lead += [_effort(compared.verdicts[label]), ". "]
    lost = [line.label for line in lines if compared.view in line.undefined]
    if lost:
        lead += [*_listed(lost), " gave no finite numbers at last."]
    return lead


def _effort(verdict: Verdict) -> str:
    if verdict.records is not None and verdict.records < MOST:
        return f" (about {verdict.records:,} records would show it, if it is true)"
    if verdict.seeds is not None and verdict.seeds < MOST:
        return f" (about {verdict.seeds:,} seeds would show it, if it is true)"
    return ""


def _difference(compared: Comparison, label: str, column: str) -> Number:
    return Number(cell_text(compared.differences[label]), "arms", label, f"best − arm, {column}")


def _how_long(kept: Sequence[Retention]) -> Sentence:
    out: list[str | Arm | Number] = []
    known = [one for one in kept if one.kept.n]
    # By the half-life; where it was not reached, by what is left.
    known.sort(key=lambda one: (-one.kept.half_life()[0], -float(one.kept.share[-1])))
    lasting = [one for one in known if math.isinf(one.kept.half_life()[0])]
    if lasting:
        out += [
            *_listed([one.label for one in lasting]),
            f" still {'has' if len(lasting) == 1 else 'have'} more than half of ",
        ]
        out += [f"the facts that were right, {max(one.end for one in lasting)} edits on. "]
    for one in (one for one in known if one not in lasting):
        out += [
            Arm(one.label),
            " has lost half of its facts after ",
            Number(_of_table(one, "half-life"), "kept", one.label, "half-life"),
        ]
        out += [" edits. "]
    fallen = [one for one in kept if any(step is not None for step in one.collapse)]
    for one in fallen:
        step = Number(_of_table(one, "collapse"), "kept", one.label, "collapse")
        out += ["Rel of ", Arm(one.label), " falls below one half for good at ", step, ". "]
    if not fallen:
        out += ["No arm collapsed."]
    return out


def _of_table(one: Retention, column: str) -> str:
    """Return what stands under *column* in the table of what is kept."""
    return cell_text(rows([one])[0][column])


def _cost(lines: Sequence[SummaryRow], compared: Comparison) -> Sentence:
    timed = [line for line in lines if not math.isnan(line.per_edit)]
    if not timed or compared.best is None or math.isnan(compared.best.per_edit):
        return []
    cheapest = min(timed, key=lambda line: line.per_edit)
    out: list[str | Arm | Number] = ["An edit by ", Arm(compared.best.label), " takes ", _seconds(compared.best), " s"]
    if cheapest is compared.best:
        return [*out, ", the least of all." if len(timed) > 1 else "."]
    return [*out, "; the cheapest is ", Arm(cheapest.label), " with ", _seconds(cheapest), " s."]


def _seconds(line: SummaryRow) -> Number:
    return Number(cell_text(line.per_edit), "arms", line.label, "s/edit")


def _how_sure(lines: Sequence[SummaryRow], compared: Comparison) -> Sentence:
    records = max((line.n for line in lines), default=0)
    seeds = max((len(line.trials) for line in lines), default=0)
    what = f"{counted(records, 'record', 'records')} under {counted(seeds, 'seed', 'seeds')}"
    out = f"By {what}. Brackets are 95 % intervals"
    if compared.pairs:
        of = f", corrected for all {compared.pairs} pairs of arms (Holm)" if compared.pairs > 1 else ""
        out += f"; better means beyond chance at 5 %, paired by record and seed{of}"
    if seeds == 1:
        out += ". One seed: they say what other records would give, not other seeds"
    unfinished = [line for line in lines if line.status != "done"]
    tail: list[str | Arm | Number] = []
    for line in unfinished:
        tail += [" ", Arm(line.label), f": {line.status}."]
    return [out + ".", *tail]


def _listed(labels: Sequence[str]) -> list[str | Arm | Number]:
    out: list[str | Arm | Number] = []
    for i, label in enumerate(labels):
        out += ["" if i == 0 else " and " if i == len(labels) - 1 else ", ", Arm(label)]
    return out
