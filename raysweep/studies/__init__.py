"""Studies, by name: kinds of trial. One file and one line here add one."""

from __future__ import annotations

from typing import Any

from raysweep.errors import NameUnknownError
from raysweep.registry import Registry
from raysweep.summarize import PHASES

STUDIES: Registry[Any] = Registry(
    "study",
    {
        "belief": "raysweep.studies.belief:Belief",
        "belief_lifelong": "raysweep.studies.belief:BeliefLifelong",
        "lifelong": "raysweep.studies.lifelong:Lifelong",
    },
)


def phases(study: str) -> tuple[str, ...]:
    """Return the phases that the rounds of *study* have, the one that is shown by default first.

    A study that does not say, or is not installed here, has both.
    """
    found: tuple[str, ...] = getattr(_installed(study), "phases", PHASES)
    return found


def default_metric(study: str) -> str:
    """Return the value by which trials of *study* are ranked where the search space names none."""
    found: str = getattr(_installed(study), "metric", f"{phases(study)[0]}/avg")
    return found


def _installed(study: str) -> Any:
    try:
        return STUDIES.get(study)
    except NameUnknownError:
        return None
