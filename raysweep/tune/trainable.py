"""What Ray runs: one actor, one trial at a time; a step is one evaluation round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ray import tune

from raysweep.config.planned_trial import PlannedTrial
from raysweep.results.ray_logs import TRIAL_KEY
from raysweep.results.runner import RoundReport, TrialRun, replay
from raysweep.results.state import ENDS
from raysweep.results.store import ResultStore
from raysweep.tune.deps import Heartbeat, LoadedInputs, make_deps, proposal_folder
from raysweep.tune.devices import take_given
from raysweep.tune.shards import Shards
from raysweep.workspace import Workspace


class Trainable(tune.Trainable):  # type: ignore[misc]
    """Runs trials by key, each with those that share its edits. A trial that has ended is only reported.

    Our store is the truth: Ray's checkpoints are empty, a trial goes on from our snapshot. The process may serve many
    trials (``reuse_actors``); all it keeps between them is a model whose pristine weights are restored and hash-checked
    before each.
    """

    def setup(
        self, config: dict[str, object], *, table: Mapping[str, PlannedTrial], workspace: Workspace, sweep: str
    ) -> None:
        """Take the table of trials and open the store."""
        self.table, self.workspace, self.sweep = table, workspace, sweep
        self.store = ResultStore(workspace.results(sweep))
        self.shards = Shards(workspace, sweep)
        self.loaded = LoadedInputs(workspace, take_given())
        self._run: TrialRun | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Take up another trial in the same process."""
        # True says that this process serves the trial now; Ray takes anything else for a mistake.
        self._begin(new_config)
        return True

    def _begin(self, config: Mapping[str, object]) -> None:
        self._end()
        key = str(config[TRIAL_KEY])
        job = self.job = self.table[key]
        # A worker with another version of the code or other environment variables would compute another trial.
        if job.key != key:
            raise AssertionError(f"the plan calls this trial {key}, here it hashes to {job.key}")
        self._ended: Iterator[RoundReport] | None = None
        # Its group's first trial made its rounds, or Ray starts it again after an end that our store knows.
        if self.store.status(key).state in ENDS:
            self._ended = replay(job.trial, self.store)
            return
        local = self.store.folder.local
        # Of the whole sweep: a member may be waiting for a later session.
        members = [t for t in self.table.values() if job.edit_key and t.edit_key == job.edit_key and t.key != key]
        self.shards.cache_key = self._cache_key()
        if job.can_propose:
            self.shards.begin(job.trial)
        deps = make_deps(
            self.workspace,
            Heartbeat(local / key if local is not None else None),
            proposal_scheduler=self.shards if job.can_propose else None,
            proposal_cache=proposal_folder(self.workspace, self.sweep, self.shards.cache_key),
            loaded=self.loaded,
        )
        self._run = TrialRun(job, deps, self.store, members)

    def _cache_key(self) -> str:
        """Return where proposals of this trial are kept: nowhere, unless another edit group could use them."""
        key = self.job.proposal_cache_key
        groups = {t.edit_key or t.key for t in self.table.values() if t.proposal_cache_key == key}
        return key if len(groups) > 1 else ""

    def step(self) -> dict[str, object]:
        """Run to the next round; a failure is stored as FAILED and ends the trial: Ray retries dead processes only."""
        replayed = self._ended is not None
        report = next(self._ended) if self._ended is not None else self._run.advance()  # type: ignore[union-attr]
        trial = self.job.trial
        extra: dict[str, object] = {"failure": report.error} if report.error else {}
        if report.stopped:
            extra["stopped"] = report.stopped
        if report.non_finite_step is not None:
            extra["non_finite_step"] = report.non_finite_step
        if self.job.edit_key and not math.isnan(report.seconds):
            extra["time_this_iter_s"] = report.seconds  # the trial's own, not those of its edit group
        if replayed:
            extra["replayed"] = True
        # no arm and no point: Ray's logs stay as they are when the plan calls the trial something else
        content = {"editor": trial.editor.label, "seed": trial.seed}
        return {**report.summary, "step": report.step, "done": report.done, **content, **extra}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the snapshot is in our store already (Ray insists on the method)."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing: the trial went on from our snapshot when it began."""

    def cleanup(self) -> None:
        """End the trial's generator and whoever helped with its edits."""
        self._end()
        if hasattr(self, "shards"):
            self.shards.close()

    def _end(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None:
            run.close()
        self._run = None
