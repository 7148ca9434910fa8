"""Small trials and rounds for the tests of the store and its readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.results.folder import Folder
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"), ("efficacy", "ppl"))
ORIGIN = {
    "run": {
        "git_sha": None, "git_dirty": None, "raysweep": "0", "python": "3", "torch": "2", "transformers": "5",
        "ray": None, "device": "cpu", "cpu": "toy",
    },
    "session": {"host": "here", "pid": 1, "began": "2026-01-01T00:00:00Z"},
}  # fmt: skip


def make_trial(seed: int = 0, lam: float | None = None, rounds: tuple[int, ...] = (0, 2, 4)) -> TrialSpec:
    wrap = (WrapSpec(name="simie", config=UnreadConfig(lam=lam)),) if lam is not None else ()
    return TrialSpec(
        study="lifelong", model=ModelSpec(digest="m"), data=DataSpec(digest="d"),
        editor=EditorSpec(name="memit", config=UnreadConfig(), wrap=wrap),
        protocol=ProtocolSpec(rounds=rounds), seed=seed,
    )  # fmt: skip


def probe_rows(trial: TrialSpec, step: int, records: list[int], *, shift: float = 0.0) -> list[ProbeRow]:
    return [
        ProbeRow(
            trial_key=trial.key, step=step, record_id=f"r{i}", edit_step=i, superseded_step=3 if i == 1 else None,
            probe_kind=kind, probe_name="", probe_index=j, metric=metric,
            value=None if (i, j) == (2, 1) else _value(trial.seed, step, i, j) + shift, n_tokens=1,
            prompt_digest="0" * 16, answer="é",
        )
        for i in records
        for j, (kind, metric) in enumerate(KINDS)
    ]  # fmt: skip


def _value(seed: int, step: int, record: int, probe: int) -> float:
    return derive(seed, step, record, probe) % 1000 / 1000 + 0.001


def make_round(trial: TrialSpec, step: int, *, shift: float = 0.0) -> EvalRound:
    """Return the round at *step* (even), with the immediate rows of the odd step before it."""
    rows = probe_rows(trial, step, list(range(1, step + 1)) or [1, 2], shift=shift)
    if step:
        rows += probe_rows(trial, step - 1, [step - 1], shift=shift)
    key: dict[str, Any] = {"trial_key": trial.key, "step": step}
    return EvalRound(
        step=step, rows=rows, stats=[StatRow(name="loss", value=0.5, **key)],
        timing=[TimingRow(phase="edit", seconds=1.5, count=2, **key)],
        snapshot=Snapshot(step=step, tensors={"weights/w": torch.full((2, 3), float(step))}, meta={"n": step}),
    )  # fmt: skip


def begin(store: ResultStore, trial: TrialSpec, arm: str = "memit") -> Snapshot | None:
    lam = [w.config.lam for w in trial.editor.wrap]
    point = {"seed": trial.seed, **({"wrap.simie.lam": lam[0]} if lam else {})}
    return store.begin(trial, arm=arm, point=point, provenance=ORIGIN)


def write_trial(store: ResultStore, trial: TrialSpec, arm: str = "memit", *, shift: float = 0.0) -> None:
    begin(store, trial, arm)
    for step in trial.protocol.rounds:
        store.write_round(trial.key, make_round(trial, step, shift=shift))
    store.finish(trial.key, step=trial.protocol.rounds[-1])


def write_pairs(folder: Path, seeds: Iterable[int]) -> ResultStore:
    """Write a sweep of *seeds* each with and without λ, whose trials have three rounds of three tables; return its store."""
    store = ResultStore(folder)
    trials = {("memit" if lam is None else "simie", s): make_trial(s, lam) for lam in (None, 2.0) for s in seeds}
    for trial in trials.values():
        write_trial(store, trial)
    places = [{"key": t.key, "arm": arm, "point": {"seed": seed}} for (arm, seed), t in trials.items()]
    store.write_plan({"sweep": "s", "trials": places}, "")
    return store


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what will hold how often each file of a folder of results was read, by its name in there."""
    reads: Counter[str] = Counter()
    read = Folder.read

    def counted(self: Folder, name: str) -> bytes:
        reads[name] += 1
        return read(self, name)

    monkeypatch.setattr(Folder, "read", counted)
    return reads
