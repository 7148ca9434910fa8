"""The belief study: every edit starts from the pristine model, and is measured at once (§8). One loop, two studies.

Each record is a lifelong run of its own, so every editor and wrapper runs unchanged. Row ``step`` = ``edit_step`` = the record's
position; step 0 is the pristine model. Edits that pile up on one model are the lifelong study's, on the same records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from raysweep import __version__
from raysweep.config.schema import ProtocolSpec, TrialSpec
from raysweep.data.sampling import order
from raysweep.errors import Problem
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, ProbeRow, Snapshot, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress
from raysweep.studies.lifelong import Lifelong
from raysweep.summarize import summary

_FIELDS = tuple(ProbeRow.__dataclass_fields__)


class Belief:
    """Edit each of T records apart, and ask its questions before and after."""

    name: ClassVar[str] = "belief"
    version: ClassVar[int] = 1

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: what a lifelong run would refuse, and edits in batches."""
        problems = Lifelong().check(trial, available)
        if trial.protocol.batch_size != 1:
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message=f"the belief study edits records apart, but batch_size = {trial.protocol.batch_size}",
                    hint="use batch_size: 1, or study: lifelong",
                )
            )
        return problems

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*; between two records the model is pristine."""
        records = tuple(deps.open_dataset(trial.data))
        if trial.data.order == "seeded":
            records = order(records, derive(trial.seed, "order"))
        rounds = trial.protocol.rounds
        size = rounds[-1] or len(records)
        seen: list[ProbeRow] = []
        done = 0
        if resume is not None:
            done = resume.step
            seen = [ProbeRow(**dict(zip(_FIELDS, values, strict=True))) for values in resume.meta["seen"]]
        elif 0 in rounds:
            found = _alone(trial, deps, records[:size], 0)
            yield replace(found, snapshot=None)
        for last in (r for r in rounds if r > done):
            parts = []
            for i in range(done, last):
                deps.progress(Progress(i, rounds[-1], "edit"))
                parts.append(_moved(_alone(trial, deps, records[i : i + 1], 1), i + 1))
            done = last
            seen += [row for part in parts for row in part.rows]
            yield EvalRound(
                step=last,
                rows=tuple(row for part in parts for row in part.rows),
                stats=tuple(row for part in parts for row in part.stats),
                timing=_summed([row for part in parts for row in part.timing], last),
                summary=_immediate(seen, last),
                snapshot=Snapshot(
                    step=last,
                    tensors={},
                    meta={"version": __version__, "seen": [[getattr(r, n) for n in _FIELDS] for r in seen]},
                ),
            )


def _alone(trial: TrialSpec, deps: Deps, records: Sequence[EditRecord], step: int) -> EvalRound:
    """Return the round at *step* (0 or 1) of a lifelong run of *records* alone."""
    protocol = trial.protocol.model_dump() | {"rounds": (step,), "immediate": False}
    own = trial.model_copy(
        update={
            "protocol": ProtocolSpec.model_validate(protocol),
            "data": trial.data.model_copy(update={"order": "file", "size": len(records), "skip": 0}),
        }
    )
    own_deps = replace(
        deps,
        open_dataset=lambda spec: records if spec == own.data else deps.open_dataset(spec),
        progress=lambda progress: None,
    )
    (found,) = Lifelong().execute(own, own_deps, None)
    key = trial.key
    return replace(
        found,
        rows=tuple(replace(r, trial_key=key) for r in found.rows),
        stats=tuple(replace(r, trial_key=key) for r in found.stats),
        timing=tuple(replace(r, trial_key=key) for r in found.timing),
    )


def _moved(found: EvalRound, step: int) -> EvalRound:
    """Return the round of a record's own run with its steps as positions in the whole."""
    return replace(
        found,
        rows=tuple(replace(r, step=step, edit_step=step) for r in found.rows),
        stats=tuple(replace(r, step=step) for r in found.stats),
    )


def _summed(rows: Sequence[TimingRow], step: int) -> tuple[TimingRow, ...]:
    by_phase: dict[str, list[TimingRow]] = {}
    for row in rows:
        by_phase.setdefault(row.phase, []).append(row)
    return tuple(
        replace(own[0], step=step, seconds=sum(r.seconds for r in own), count=sum(r.count for r in own))
        for _, own in sorted(by_phase.items())
    )


def _immediate(seen: Sequence[ProbeRow], step: int) -> Mapping[str, float]:
    """Return the summary of all records edited so far, each right after its own edit."""
    columns: dict[str, list[object]] = {name: [getattr(r, name) for r in seen] for name in _FIELDS}
    return {name: value for name, value in summary(columns, step, 1).items() if name.startswith("immediate/")}
