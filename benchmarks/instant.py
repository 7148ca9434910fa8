"""A study that costs next to nothing, for measuring what lies around a trial; installed by :func:`install` as a plug-in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.rows import EvalRound, ProbeRow, Snapshot, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Study
from raysweep.summarize import summary

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))


class Instant(Study):
    """Rounds of one record's three questions, answered by the seed; no model is loaded and nothing is edited."""

    name = "instant"
    version = 1

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        for step in trial.protocol.rounds:
            start = time.perf_counter()
            rows = [
                ProbeRow(
                    trial_key=trial.key, step=step, record_id="instant/0", edit_step=1, superseded_step=None,
                    probe_kind=kind, probe_name="", probe_index=index, metric=metric,
                    value=derive(trial.seed, kind, step) % 97 / 97, n_tokens=1, prompt_digest="0" * 16, answer="",
                )
                for index, (kind, metric) in enumerate(KINDS)
            ]  # fmt: skip
            columns = {n: [getattr(r, n) for r in rows] for n in ProbeRow.__dataclass_fields__}
            seconds = time.perf_counter() - start
            timing = [TimingRow(trial_key=trial.key, step=step, phase="edit", seconds=seconds, count=1)]
            yield EvalRound(step=step, rows=rows, stats=[], timing=timing, summary=summary(columns, step, 1))


def install(folder: Path) -> Mapping[str, str]:
    """Make the study an installed package in *folder*; return the environment in which processes find it."""
    info = folder / "raysweep_instant-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raysweep-instant\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[raysweep.studies]\ninstant = benchmarks.instant:Instant\n")
    return {"PYTHONPATH": f"{folder}:{Path(__file__).resolve().parents[1]}"}
