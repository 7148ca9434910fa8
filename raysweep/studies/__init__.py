"""Studies, by name: kinds of trial. One file and one line here add one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.errors import NameUnknownError
from raysweep.measures import PHASES
from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.studies.base import Study

STUDIES: Registry[type[Study]] = Registry(
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
    kind = _installed(study)
    return PHASES if kind is None else kind.phases


def default_metric(study: str) -> str:
    """Return the value by which trials of *study* are ranked where the search space names none."""
    kind = _installed(study)
    return f"{PHASES[0]}/avg" if kind is None else kind.default_metric()


def _installed(study: str) -> type[Study] | None:
    try:
        return STUDIES.get(study)
    except NameUnknownError:
        return None
