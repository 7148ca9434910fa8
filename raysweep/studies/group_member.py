"""One trial of an edit group: its view of the shared state, and what it has measured since its last round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysweep.lazy import lazy
from raysweep.rows import AnswerRow, EditedModel, EvalRound, ProbeRow, Snapshot, StatRow
from raysweep.studies.clock import Clock
from raysweep.studies.further import Further

if TYPE_CHECKING:
    from torch import Tensor

    from raysweep import summarize
    from raysweep.config.schema import TrialSpec
    from raysweep.editors.base import AnyEditor
else:
    summarize = lazy("raysweep.summarize")

_PROBE_COLUMNS = tuple(ProbeRow.__dataclass_fields__)


@dataclass(slots=True)
class GroupMember:
    """One trial of a group: its own editor, for its view of the shared state, and what it has measured since its last round.

    Attributes:
        trial: it.
        editor: built from its configuration.
        measured_to: the step up to which its rounds are known; −1 = none are.
        rows: measured since the last round.
        immediate: rows about records right after their own edit, of the whole run: what the immediate summary needs.
        undefined: whether any value that it measured is NaN: the logits were no finite numbers.
        stats: numbers of the editor since the last round.
        clock: what it spent since the last round.
        edited: the model of its last round, where that is kept.
        answers: written freely since the last round.
    """

    trial: TrialSpec
    editor: AnyEditor
    measured_to: int = -1
    rows: list[ProbeRow] = field(default_factory=list)
    immediate: list[ProbeRow] = field(default_factory=list)
    undefined: bool = False
    stats: list[StatRow] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    edited: EditedModel | None = None
    answers: list[AnswerRow] = field(default_factory=list)

    def add_stats(self, step: int, stats: Mapping[str, float]) -> None:
        """Add *stats* as rows of this trial."""
        key = self.trial.key
        self.stats += [StatRow(trial_key=key, step=step, name=n, value=float(v)) for n, v in sorted(stats.items())]

    def add_rows(self, rows: Sequence[ProbeRow]) -> None:
        """Add what was measured."""
        batch_size = self.trial.protocol.batch_size
        self.rows += rows
        self.undefined = self.undefined or _any_undefined(rows)
        # step 0 asks about records that are yet to be written, so it is nobody's immediate measurement
        self.immediate += [r for r in rows if r.step and 0 <= r.step - r.edit_step < batch_size]

    def add_further(self, step: int, further: Further) -> None:
        """Add what other protocols than the main asking measured; no summary of the main asking has any of it."""
        self.rows += further.rows
        self.answers += further.answers
        self.undefined = self.undefined or _any_undefined(further.rows)
        self.add_stats(step, further.stats)

    def resume_from(self, snapshot: Snapshot) -> None:
        """Take over what was measured up to *snapshot*."""
        self.measured_to = snapshot.step
        self.immediate = [ProbeRow(**dict(zip(_PROBE_COLUMNS, row, strict=True))) for row in snapshot.meta["immediate"]]
        self.undefined = _any_undefined(self.immediate)

    def finish_round(
        self, step: int, shared: Clock, tensors: Mapping[str, Tensor], meta: Mapping[str, object], *, alone: bool
    ) -> EvalRound:
        """Return the round of *step* with everything that has accumulated since the last one.

        Args:
            step: records edited so far.
            shared: what the group spent together.
            tensors, meta: of the snapshot, equal for all members.
            alone: the group has no other member, so nothing is marked as shared.
        """
        key = self.trial.key
        # As lists of values: a snapshot's metadata is JSON, and resume_from makes rows of them again.
        immediate = [[getattr(row, name) for name in _PROBE_COLUMNS] for row in self.immediate]
        snapshot = Snapshot(step=step, tensors=tensors, meta={**meta, "immediate": immediate})
        own = {row.phase: row for row in self.clock.rows(key, step)}
        together = {row.phase: row for row in shared.rows(key, step, shared=not alone)}
        # by phase; what the group did together comes under another name where there are others to share it with
        timing = {**together, **own}
        measured = EvalRound(
            step=step,
            rows=tuple(self.rows),
            stats=tuple(self.stats),
            timing=tuple(timing[phase] for phase in sorted(timing)),
            summary=summarize.summary(_columns([*self.immediate, *self.rows]), step, self.trial.protocol.batch_size),
            # there is nothing to go on from before the first edit
            snapshot=snapshot if step else None,
            edited=self.edited,
            answers=tuple(self.answers),
        )
        self.rows, self.stats, self.answers, self.clock = [], [], [], Clock()
        return measured


def _any_undefined(rows: Iterable[ProbeRow]) -> bool:
    return any(row.value is not None and math.isnan(row.value) for row in rows)


def _columns(rows: Sequence[ProbeRow]) -> dict[str, list[object]]:
    """Return *rows* as columns, each question and metric of a step once."""
    # Rows about the batch written last are immediate and of the round at once, and so come twice.
    unique = {(r.step, r.record_id, r.probe_index, r.metric): r for r in rows}
    return {name: [getattr(r, name) for r in unique.values()] for name in _PROBE_COLUMNS}
