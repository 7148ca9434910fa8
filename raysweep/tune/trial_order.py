"""Which trial runs next: never two at once of one edit group. Importing this imports Ray.

The first trial of an edit group runs all of it; when Ray starts the others, their rounds are stored already and are only reported
(:func:`raysweep.results.runner.replay`). Should the first one fail, the next takes the rest of the group over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ray.tune.search import Searcher

from raysweep.config.planned_trial import PlannedTrial
from raysweep.results.ray_logs import TRIAL_KEY


def ray_config(planned: PlannedTrial) -> dict[str, object]:
    """Return the configuration of *planned* for Ray's own tools: arm, point and every hyper-parameter, as plain data.

    The trial itself depends on its key alone; this makes the ``config/…`` columns of Tune's data frame and the ``config`` of
    its best result mean something.
    """
    trial = planned.trial
    editor = trial.editor.model_dump(mode="json")
    return {
        TRIAL_KEY: planned.key,
        "arm": planned.arm,
        "point": dict(planned.point),
        "study": trial.study,
        "seed": trial.seed,
        "model": trial.model.name,
        "dtype": trial.model.dtype,
        "data": trial.data.name,
        "records": trial.data.size,
        "editor": {"name": editor["name"], **editor["config"]},
        "wrap": {wrap["name"]: wrap["config"] for wrap in editor["wrap"]},
    }


class GroupByGroup(Searcher):  # type: ignore[misc]
    """Suggests the trials of *groups* (key → group) in order, holding back those whose edit group is running.

    ``configs`` maps a key to what else Ray's configuration of that trial says (:func:`ray_config`); nothing of it is read back.
    Once *halted* says so, nothing more is suggested. Ray pickles this object as if it had nothing left to suggest.
    """

    def __init__(
        self,
        groups: Mapping[str, str],
        halted: Callable[[], bool] = lambda: False,
        configs: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        super().__init__()
        self.halted = halted
        self.groups = dict(groups)
        self.configs = configs or {}
        self.waiting = list(groups)
        self.running: dict[str, str] = {}

    def __getstate__(self) -> dict[str, object]:
        # Ray pickles a Tuner, and this with it, into the session's folder: `halted` leads to a lock, which cannot be
        # pickled, and nobody reads the rest back.
        return {**self.__dict__, "halted": None, "waiting": [], "configs": {}}

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        """Return the next trial's configuration, None while all that wait must wait, or that there is no more."""
        if not self.waiting or self.halted():
            # None would mean "ask again later" to Ray, which would then wait for ever.
            return str(self.FINISHED)
        busy = set(self.running.values())
        # Two trials of one edit group at once would both compute the edits that they could share.
        key = next((k for k in self.waiting if self.groups[k] not in busy), None)
        if key is None:
            return None
        self.waiting.remove(key)
        self.running[trial_id] = self.groups[key]
        return {**self.configs.get(key, {}), TRIAL_KEY: key}

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        """Release the group of a trial that ended."""
        self.running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a run starts afresh from what our store does not call DONE (Ray insists on the method)."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""
