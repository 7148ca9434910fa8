"""Which trial runs next: never two at once of one pass. Importing this imports Ray.

The first trial of a pass runs all of it; when Ray starts the others, their rounds are stored already and are only reported
(:func:`raysweep.results.runner.replay`). Should the first one fail, the next takes the rest of the pass over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

CONFIG_KEY = "trial"


class InPasses(Searcher):  # type: ignore[misc]
    """Suggests the trials of *passes* (key → pass) in order, holding back those whose pass is running.

    Once *halted* says so, nothing more is suggested. Ray pickles this object as if it had nothing left to suggest.
    """

    def __init__(self, passes: Mapping[str, str], halted: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self.halted = halted
        self.passes = dict(passes)
        self.waiting = list(passes)
        self.running: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "halted": None, "waiting": []}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's configuration, None while all that wait must wait, or that there is no more."""
        if not self.waiting or self.halted():
            return str(self.FINISHED)
        busy = set(self.running.values())
        key = next((k for k in self.waiting if self.passes[k] not in busy), None)
        if key is None:
            return None
        self.waiting.remove(key)
        self.running[trial_id] = self.passes[key]
        return {CONFIG_KEY: key}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Release the pass of a trial that ended."""
        self.running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a run starts afresh from what our store does not call DONE (Ray insists on the method)."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""
