"""A third-party study, found through an entry point: deterministic, without a model, slow and mortal on request."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raysweep.config.schema import TrialSpec
from raysweep.editors.base import Proposal
from raysweep.results import folder as folder_module
from raysweep.results.folder import Folder
from raysweep.rows import EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import CollapsedError, ComputeProposal, Deps, Progress, Study
from raysweep.summarize import summary

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))


class Fake(Study):
    """Counts: its state is a running sum that only an uninterrupted or rightly resumed run gets right."""

    name = "fake"
    version = 1
    shares_edits = True

    def check(self, trial: TrialSpec, available: int) -> list[Any]:
        return []

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        for _, found in self.execute_group([trial], deps, {trial.key: resume} if resume else {}):
            yield found

    def execute_group(
        self, trials: Sequence[TrialSpec], deps: Deps, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        """One running sum for all; each trial reports it times its own ``scale``."""
        first = trials[0]
        rounds = first.protocol.rounds
        members = [_Member(t, resumes.get(t.key)) for t in trials]
        total, step = torch.zeros(3, dtype=torch.float64), 0
        if len(resumes) == len(trials):
            lowest = min(resumes.values(), key=lambda found: found.step)
            step, total = lowest.step, lowest.tensors["total"].clone()
        elif 0 in rounds:
            yield from ((m.trial.key, EvalRound(step=0, rows=[])) for m in members if m.behind < 0)
        steps = list(range(step + 1, rounds[-1] + 1))
        ask = self.proposal_function(first, deps)
        _await_others(first)
        proposals = map(ask, steps) if deps.proposal_scheduler is None else deps.proposal_scheduler(first, steps, ask)
        for step in steps:
            deps.progress(Progress(step, rounds[-1], "edit"))
            total += next(proposals)["sum"]
            for member in (m for m in members if m.behind < step):
                found = member.measure(step, total, step in rounds)
                if found is not None:
                    yield member.trial.key, found

    def proposal_function(self, trial: TrialSpec, deps: Deps) -> ComputeProposal:
        config = trial.editor.config.model_dump()
        if "log" in config:
            Path(f"{config['log']}-{os.getpid()}").touch()
        if "cards" in config:
            _note_cards(trial, Path(config["cards"]))
        if "load" in config:
            deps.load_model(trial.model)

        if "fault" in config:
            _break_storage_on_demand(Path(config["fault"]))

        def ask(step: int) -> Proposal:
            time.sleep(config.get("sleep", 0.0))
            if step == config.get("raise_at"):
                raise ValueError("asked to fail")
            if step == config.get("collapse_at"):
                raise CollapsedError(step - 1, ValueError("no decomposition"))
            if step == config.get("die_at") and _once(config["flag"]):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == config.get("hang_at") and ("flag" not in config or _once(config["flag"])):
                if config.get("stopped"):
                    os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(3600)
            if "log" in config:
                with Path(config["log"]).open("a") as handle:
                    handle.write(f"{trial.seed} {step} {os.getpid()}\n")
            return {"sum": torch.tensor(float(derive(trial.seed, "edit", step) % 1000), dtype=torch.float64)}

        return ask


class _Member:
    """What one trial has measured since its last round."""

    def __init__(self, trial: TrialSpec, resume: Snapshot | None) -> None:
        self.trial = trial
        self.behind = resume.step if resume else -1
        self.seen = [ProbeRow(**r) for r in resume.meta["seen"]] if resume else []
        self.rows: list[ProbeRow] = []
        self.stats: list[StatRow] = []

    def measure(self, step: int, total: torch.Tensor, at_round: bool) -> EvalRound | None:
        trial = self.trial
        mine = total * (trial.editor.config.stored_value("scale") or 1.0)
        self.stats.append(StatRow(trial_key=trial.key, step=step, name="total", value=float(mine[0])))
        now = _rows(trial, mine, [step], step)
        self.seen += now
        if not at_round:
            self.rows += now
            return None
        rows = [*self.rows, *_rows(trial, mine, list(range(1, step + 1)), step)]
        columns = {n: [getattr(r, n) for r in [*self.seen, *rows]] for n in ProbeRow.__dataclass_fields__}
        meta = {"seen": [{n: getattr(r, n) for n in ProbeRow.__dataclass_fields__} for r in self.seen]}
        found = EvalRound(
            step=step, rows=rows, stats=self.stats,
            timing=[TimingRow(trial_key=trial.key, step=step, phase="edit", seconds=0.01 * step, count=step)],
            summary=summary(columns, step, 1),
            snapshot=Snapshot(step=step, tensors={"total": total.clone()}, meta=meta),
        )  # fmt: skip
        self.rows, self.stats = [], []
        return found


def _break_storage_on_demand(fault: Path) -> None:
    """Let every write of this process fail while *fault* is there, with the error that it names."""
    if getattr(Folder, "breakable", False):
        return
    write = folder_module.write_file

    def write_file(path: Path, data: bytes, **options: Any) -> None:
        if fault.exists():
            number = getattr(errno, fault.read_text())
            raise OSError(number, os.strerror(number))
        write(path, data, **options)

    folder_module.write_file, Folder.breakable = write_file, True  # type: ignore[attr-defined]


def _await_others(trial: TrialSpec) -> None:
    """Wait until as many processes can edit as the test says that there are to be: two, if it does not say."""
    log = Path(str(trial.editor.config.stored_value("log")))
    until = time.monotonic() + 60
    while log.with_name("shards").exists() and time.monotonic() < until:
        if len(list(log.parent.glob(f"{log.name}-*"))) >= int(log.with_name("shards").read_text() or 2):
            return
        time.sleep(0.05)


def _note_cards(trial: TrialSpec, file: Path) -> None:
    """Write down which process of *trial* may use which GPUs, and on which node it is."""
    import ray

    found = {
        "seed": trial.seed, "pid": os.getpid(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "node": ray.get_runtime_context().get_node_id(),
    }  # fmt: skip
    with file.open("a") as handle:
        handle.write(json.dumps(found) + "\n")


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
