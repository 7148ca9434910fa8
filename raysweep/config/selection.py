"""Which rows of a dataset a trial writes: those in use must hold, the others may be anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raysweep.config.schema import DataSpec
from raysweep.errors import Problem, RecordError
from raysweep.records import EditRecord

Row = EditRecord | Problem
SHOWN = 20  # problems listed one by one


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a trial writes.

    Attributes:
        records: in file order; with problems, only those that hold.
        problems: what is wrong with rows that were to be written (``invalid: refuse``).
        left_out: rows skipped before the last one taken, by index (``invalid: skip``).
        reasons: why, row by row.
    """

    records: tuple[EditRecord, ...]
    problems: tuple[Problem, ...] = ()
    left_out: tuple[int, ...] = ()
    reasons: tuple[Problem, ...] = ()


def select(
    rows: Sequence[Row], spec: DataSpec, refuses: Callable[[EditRecord], RecordError | None], where: str
) -> Selection:
    """Return the rows that *spec* chooses of *rows*.

    Args:
        rows: every row of the file, a record or what is wrong with it.
        spec: ``skip`` and ``size`` (0 = all that are left), counted in rows (``invalid: refuse``) or in rows that hold (``skip``).
        refuses: why the editor cannot write a record on this model; None = it can.
        where: the file, for messages.
    """
    end = spec.skip + spec.size if spec.size else len(rows)
    if spec.invalid == "refuse":
        judged = [_judged(row, i, refuses, where) for i, row in enumerate(rows[spec.skip : end], spec.skip)]
        return Selection(_records(judged), tuple(row for row in judged if isinstance(row, Problem)))
    taken: list[Row] = []
    bad: list[tuple[int, Problem]] = []
    for i, row in enumerate(rows):
        # Rows behind the last one taken are not judged: they may be anything, and must move no key.
        if len(taken) == end:
            break
        verdict = _judged(row, i, refuses, where)
        if isinstance(verdict, Problem):
            bad.append((i, verdict))
        else:
            taken.append(verdict)
    left_out, reasons = tuple(i for i, _ in bad), tuple(p for _, p in bad)
    return Selection(_records(taken[spec.skip :]), left_out=left_out, reasons=reasons)


def chosen(rows: Sequence[Row], spec: DataSpec) -> Selection:
    """Return the rows that the planned *spec* chooses: what its editor refuses is in ``left_out`` already."""
    # By index: the plan has judged the rows already, and only it knows the editor.
    gone = frozenset(spec.left_out)
    return select([row for i, row in enumerate(rows) if i not in gone], spec, lambda record: None, "")


def first_few(problems: Sequence[Problem], where: str) -> list[Problem]:
    """Return *problems*, the first ones by themselves and the others as a number."""
    shown = list(problems[:SHOWN])
    more = len(problems) - len(shown)
    if more:
        code = problems[SHOWN].code
        hint = "`raysweep data check` lists them; data.invalid: skip leaves such rows out"
        shown.append(Problem(code=code, message=f"{more:,} more rows cannot be used", file=where, hint=hint))
    return shown


def _judged(row: Row, index: int, refuses: Callable[[EditRecord], RecordError | None], where: str) -> Row:
    if isinstance(row, Problem):
        return row
    error = refuses(row)
    return (
        row
        if error is None
        else Problem(code=error.code, message=error.message, file=f"{where}:{index}", hint=error.hint)
    )


def _records(rows: Iterable[Row]) -> tuple[EditRecord, ...]:
    return tuple(row for row in rows if isinstance(row, EditRecord))
