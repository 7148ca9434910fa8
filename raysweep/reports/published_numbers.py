"""Published numbers, ``data/published/*.csv``: reading them, and finding those that one of our lines may be set beside."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import DataError, NameUnknownError, nearest
from raysweep.jsontypes import Json
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec
    from raysweep.reports.views import SummaryRow

FOLDER = "data/published"


@dataclass(frozen=True, slots=True)
class Number:
    """One published number: a row of a file.

    Attributes:
        paper: short name.
        table: of the paper; or figure.
        model: as in ``model.name``.
        dataset: as in ``data.name``.
        edits: T, how many records had been edited.
        batch: records per call of the editor.
        arm: the paper's name of the configuration.
        editor: ours; empty = there is none.
        config: keys of the editor's configuration that tell the arm from others of the editor.
        wrap: wrappers around the editor, innermost first.
        lam: λ of the ridge; None = none, or not published.
        asking: as ``protocol.asking``; empty = not known.
        metric: the paper's name.
        view: the view of ours that measures the same; empty = there is none.
        sign: ``≈`` read off a figure, ``>`` a bound, else empty.
        value: a share in [0, 1], or a perplexity.
        uncertainty: half a unit of the last digit, or of the reading; never a standard error.
        measured: how the paper measured it.
        source: paper and table.
    """

    paper: str
    table: str
    model: str
    dataset: str
    edits: int
    batch: int
    arm: str
    editor: str
    config: Mapping[str, str]
    wrap: tuple[str, ...]
    lam: float | None
    asking: str
    metric: str
    view: str
    sign: str
    value: float
    uncertainty: float
    measured: str
    source: str

    @property
    def where(self) -> tuple[str, str, str, int, str]:
        """What tells this number from the others of its table, but for λ."""
        return (self.arm, self.model, self.dataset, self.edits, self.metric)


@dataclass(frozen=True, slots=True)
class Ours:
    """One line of a sweep, and the trial behind it (any of its seeds)."""

    line: SummaryRow
    trial: TrialSpec

    @property
    def model(self) -> str:
        """The model's name without its owner, in lower case."""
        return self.trial.model.name.rstrip("/").rpartition("/")[2].lower()

    @property
    def lam(self) -> float | None:
        """λ of the outermost wrapper that has one, in absolute units; None where there is none, or it is given otherwise."""
        written = self._written_lam()
        return float(written) if isinstance(written, int | float) and not isinstance(written, bool) else None

    @property
    def lam_text(self) -> str:
        """λ as written: a number, ``0.1 mean energies`` (``{energy: 0.1}``), or ``gcv``; empty where there is none."""
        written = self._written_lam()
        if isinstance(written, Mapping):
            return f"{written.get('energy'):g} mean energies" if "energy" in written else str(dict(written))
        return "" if written is None else written if isinstance(written, str) else f"{written:g}"

    def _written_lam(self) -> Json:
        lambdas = (w.config.stored_value("lam") for w in reversed(self.trial.editor.wrap))
        return next((lam for lam in lambdas if lam is not None), None)


def names(workspace: Workspace) -> Mapping[str, Path]:
    """Return every file of published numbers by name."""
    return workspace.listing(FOLDER, ".csv")


def open_published(name: str, workspace: Workspace) -> tuple[Number, ...]:
    """Return the numbers called *name* (``simie-table1``).

    Raises:
        NameUnknownError: there are none of that name.
        DataError: the file is not as it should be.
    """
    known = names(workspace)
    if name not in known:
        raise NameUnknownError(f"no published numbers called '{name}'", hint=nearest(name, known))
    try:
        return read(known[name])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{known[name]}: cannot be read: {error}", hint="published numbers are UTF-8 CSV") from error


def read(path: Path) -> tuple[Number, ...]:
    """Return the numbers in the file at *path*.

    Raises:
        DataError: a column is missing or unknown, or a value is not a number.
    """
    with path.open(encoding="utf-8", newline="") as text:
        rows = csv.DictReader(text)
        columns = list(Number.__dataclass_fields__)
        # Order too: the files are read by people, side by side.
        if rows.fieldnames != columns:
            raise DataError(f"{path}:1: the columns must be {','.join(columns)}", hint="see data/README.md")
        return tuple(_number(row, f"{path}:{line}") for line, row in enumerate(rows, 2))


def _number(row: Mapping[str, str], where: str) -> Number:
    try:
        # csv fills missing cells with None, and keeps surplus ones under the key None.
        if None in row.values():
            raise ValueError("too few columns")
        texts = {k: row[k] for k in row if k not in ("edits", "batch", "config", "wrap", "lam", "value", "uncertainty")}
        return Number(
            **texts,
            edits=int(row["edits"]),
            batch=int(row["batch"]),
            config=dict(_pair(part) for part in row["config"].split()),
            wrap=tuple(row["wrap"].split()),
            lam=float(row["lam"]) if row["lam"] else None,
            value=float(row["value"]),
            uncertainty=float(row["uncertainty"]),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a row of published numbers: {error}", hint="see data/README.md") from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"config: {text!r} is not key=value")
    return key, value


def same_arm(number: Number, trial: TrialSpec) -> bool:
    """Tell whether *trial* has the editor, the wrappers and the batch size of *number*."""
    editor = trial.editor
    return (
        number.editor == editor.name
        and number.wrap == tuple(w.name for w in editor.wrap)
        and all(str(editor.config.stored_value(key)) == value for key, value in number.config.items())
        and number.batch == trial.protocol.batch_size
    )


def beside(numbers: Sequence[Number], ours: Iterable[Ours], *, loosely: bool) -> list[tuple[Ours, Number]]:
    """Return each of *ours* with the published numbers to set beside it, in order.

    The arm (editor, its telling keys, wrappers, batch size) is always the same, and so is λ where it was published. Loosely,
    model, dataset, edits and λ may differ: of the arm's numbers those of our model, our dataset and our edits are taken as far
    as there are any; without common edits our last round stands beside the last published one. λ must still be the same in a
    table that sweeps it.
    """
    matches: list[tuple[Ours, Number]] = []
    lines = [o for o in ours if o.line.step > 0]
    if not loosely:
        for one in lines:
            here = (one.model, one.trial.data.name, one.line.step)
            fitting = [n for n in _of_arm(numbers, one, exact=True) if (n.model, n.dataset, n.edits) == here]
            matches += [(one, n) for n in fitting if n.view in one.line.cells]
        return matches
    # In such a table λ is what tells its rows apart.
    exact = sweeps_lambda(numbers)
    for label in dict.fromkeys(o.line.label for o in lines):
        group = [o for o in lines if o.line.label == label]
        fitting = [n for n in _of_arm(numbers, group[-1], exact=exact) if n.view]
        fitting = [n for n in fitting if n.model == group[-1].model] or fitting
        fitting = [n for n in fitting if n.dataset == group[-1].trial.data.name] or fitting
        common = {n.edits for n in fitting} & {o.line.step for o in group}
        last = max((n.edits for n in fitting), default=0)
        for one in [o for o in group if o.line.step in common] if common else group[-1:]:
            edits = one.line.step if common else last
            matches += [(one, n) for n in fitting if n.edits == edits and n.view in one.line.cells]
    return matches


def _of_arm(numbers: Iterable[Number], one: Ours, *, exact: bool) -> list[Number]:
    of_arm = (n for n in numbers if same_arm(n, one.trial))
    return [n for n in of_arm if not exact or n.lam is None or n.lam == one.lam]


def sweeps_lambda(numbers: Iterable[Number]) -> bool:
    """Tell whether *numbers* hold one arm at several λ."""
    first: dict[tuple[str, str, str, int, str], float | None] = {}
    return any(first.setdefault(n.where, n.lam) != n.lam for n in numbers)


def unlike(numbers: Sequence[Number], ours: Sequence[Ours]) -> str:
    """Return in what no line of *ours* is like any of *numbers*: ``model: ours embedded, published llama-2-7b; …``."""
    arms = [(o, n) for o in ours for n in numbers if same_arm(n, o.trial)]
    if not arms:
        theirs = ", ".join(dict.fromkeys(n.arm for n in numbers))
        labels = ", ".join(dict.fromkeys(o.trial.editor.label for o in ours))
        return f"no arm in common: ours {labels}; published {theirs}"
    both = [(o.lam_text, f"{n.lam:g}") for o, n in arms if o.lam_text and n.lam is not None]
    sides = {
        "model": ([o.model for o, _ in arms], [n.model for _, n in arms]),
        "data": ([o.trial.data.name for o, _ in arms], [n.dataset for _, n in arms]),
        "edits": ([str(o.line.step) for o, _ in arms if o.line.step], [str(n.edits) for _, n in arms]),
        "λ": ([our_value for our_value, _ in both], [theirs for _, theirs in both]),
    }
    differences = [
        f"{what}: ours {', '.join(dict.fromkeys(our_value))}, published {', '.join(dict.fromkeys(theirs))}"
        for what, (our_value, theirs) in sides.items()
        if our_value and not set(our_value) & set(theirs)
    ]
    return "; ".join(differences) or "no line has model, data, edits and λ of one published number at once"
