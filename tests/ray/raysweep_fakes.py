"""A third-party study, found through an entry point: deterministic, without a model, slow and mortal on request."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raysweep.config.schema import TrialSpec
from raysweep.rows import EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress
from raysweep.summarize import summary

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))


class Fake:
    """Counts: its state is a running sum that only an uninterrupted or rightly resumed run gets right."""

    name = "fake"
    version = 1

    def check(self, trial: TrialSpec, available: int) -> list[Any]:
        return []

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        config = trial.editor.config
        total = torch.zeros(3, dtype=torch.float64)
        step, seen = 0, []
        if resume is not None:
            step, total, seen = (
                resume.step,
                resume.tensors["total"].clone(),
                [ProbeRow(**r) for r in resume.meta["seen"]],
            )
        rows: list[ProbeRow] = []
        stats: list[StatRow] = []
        if step == 0 and 0 in trial.protocol.rounds:
            yield EvalRound(step=0, rows=[])
        while step < trial.protocol.rounds[-1]:
            step += 1
            deps.progress(Progress(step, trial.protocol.rounds[-1], "edit"))
            time.sleep(config.get("sleep", 0.0))
            if step == config.get("raise_at"):
                raise ValueError("asked to fail")
            if step == config.get("die_at") and _once(config["flag"]):
                os.kill(os.getpid(), signal.SIGKILL)
            total += derive(trial.seed, "edit", step) % 1000
            stats.append(StatRow(trial_key=trial.key, step=step, name="total", value=float(total[0])))
            now = _rows(trial, total, [step], step)
            seen += now
            if step in trial.protocol.rounds:
                rows += _rows(trial, total, list(range(1, step + 1)), step)
                columns = {n: [getattr(r, n) for r in [*seen, *rows]] for n in ProbeRow.__dataclass_fields__}
                meta = {"seen": [{n: getattr(r, n) for n in ProbeRow.__dataclass_fields__} for r in seen]}
                yield EvalRound(
                    step=step, rows=rows, stats=stats,
                    timing=[TimingRow(trial_key=trial.key, step=step, phase="edit", seconds=0.01 * step, count=step)],
                    summary=summary(columns, step, 1),
                    snapshot=Snapshot(step=step, tensors={"total": total.clone()}, meta=meta),
                )  # fmt: skip
                rows, stats = [], []
            else:
                rows += now


def _once(flag: str) -> bool:
    """Tell whether *flag* was not there, and put it there."""
    try:
        os.close(os.open(Path(flag), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _rows(trial: TrialSpec, total: torch.Tensor, records: list[int], step: int) -> list[ProbeRow]:
    return [
        ProbeRow(
            trial_key=trial.key, step=step, record_id=f"r{i:03d}", edit_step=i, superseded_step=None, probe_kind=kind,
            probe_name="", probe_index=j, metric=metric, value=float((total[0] + 7 * i + j) % 97) / 97, n_tokens=1,
            prompt_digest="0" * 16, answer=f"a{i}",
        )
        for i in records
        for j, (kind, metric) in enumerate(KINDS)
    ]  # fmt: skip
