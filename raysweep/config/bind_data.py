"""The data section of a trial: its file, and which of its rows the editor writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raysweep.config.checks import refusal
from raysweep.config.components import ModelFacts
from raysweep.config.lookups import Lookups
from raysweep.config.merge import MergedTree
from raysweep.config.schema import DataSpec, EditorSpec
from raysweep.config.selection import Row, Selection, first_few, select
from raysweep.config.sweep_schema import ArmSpec
from raysweep.errors import DataError
from raysweep.hashing import canonical_json


@dataclass(frozen=True, slots=True)
class OpenData:
    """A data section and what its file holds.

    Attributes:
        spec: as written, with path and digest filled in where the file could be read.
        rows: of the file; None = it could not be read, or too few are left in it, which was noted.
        where: the file, for messages.
        count: of its rows; 0 = not known.
    """

    spec: DataSpec
    rows: Sequence[Row] | None
    where: str = ""
    count: int = 0


@dataclass(slots=True)
class DataBinder:
    """Opens data sections and chooses rows; ``left_out`` holds, by arm, the rows that ``data.invalid: skip`` passed over."""

    lookups: Lookups
    left_out: dict[str, Selection] = field(default_factory=dict)

    def open(self, merged: MergedTree) -> OpenData | None:
        """Return the data section with path and digest filled in; None after noting that it is no data section."""
        spec = self.lookups.validated(merged, DataSpec, "data")
        if spec is None:
            return None
        facts = self.lookups.data(spec, merged.place(("path",) if spec.path else ("name",)))
        if facts is None:
            return OpenData(spec, None)
        # A dataset that was found by its name has no path, so that each node finds it by name too.
        spec = spec.model_copy(update={"path": facts.path if spec.path else "", "digest": facts.digest})
        where = facts.path or spec.name
        if self._too_few(facts.count, spec, merged, f"the {facts.count} records"):
            return OpenData(spec, None, where)
        return OpenData(spec, facts.rows, where, facts.count)

    def _too_few(self, count: int, spec: DataSpec, merged: MergedTree, what: str) -> bool:
        """Tell whether *count* records are too few for *spec*, having noted it."""
        available = count - spec.skip
        if available >= max(spec.size, 1):
            return False
        left = f"data.skip = {spec.skip} leaves {max(0, available)} of {what} of '{spec.name}'"
        message = f"{left}, but data.size = {spec.size}" if spec.size else left
        place = merged.place(("size",) if spec.size and available > 0 else ("skip",))
        self.lookups.note(place, message, "lower them, or use a larger file", DataError.code)
        return True

    def choose(
        self, data: OpenData, arm: ArmSpec, editor: EditorSpec | None, facts: ModelFacts, merged: MergedTree
    ) -> DataSpec:
        """Return the data section with ``size`` and ``left_out`` filled in, having noted the rows that cannot be used.

        Where nobody knows how many rows there are, ``size`` stays as written.
        """
        spec = data.spec
        if data.rows is None:
            return spec
        if spec.invalid == "refuse" and not spec.size:
            spec = spec.model_copy(update={"size": data.count - spec.skip})
        kind = self.lookups.components.editors.get(editor.name) if editor else None
        resolved = editor.config if editor else None
        # Of the configuration only what may refuse a record or make a row longer joins the question: a λ sweep asks once.
        matters = kind and resolved and (kind.record_check(resolved) is not None or resolved.context_specs())
        config = canonical_json(resolved) if matters else ""
        selection = self.lookups.ask_once(
            ("rows", spec, editor and editor.name, config, facts.positions),
            lambda: select(data.rows or (), spec, refusal(kind, resolved, facts), data.where),
            merged.place(("name",)),
        )
        if selection is None:
            return spec
        if spec.invalid == "refuse":
            self.lookups.problems += first_few(selection.problems, data.where)
            return spec
        usable = spec.skip + len(selection.records)
        if self._too_few(usable, spec, merged, f"the {usable} records that arm '{arm.name}' can use"):
            self.lookups.problems += first_few(selection.reasons, data.where)
            return spec
        self.left_out[arm.name] = selection
        return spec.model_copy(update={"size": len(selection.records), "left_out": selection.left_out})
