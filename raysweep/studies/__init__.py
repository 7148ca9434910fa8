"""Studies, by name: kinds of trial. One file and one line here add one."""

from __future__ import annotations

from typing import Any

from raysweep.registry import Registry

STUDIES: Registry[Any] = Registry(
    "study",
    {
        "belief": "raysweep.studies.belief:Belief",
        "belief_lifelong": "raysweep.studies.belief:BeliefLifelong",
        "lifelong": "raysweep.studies.lifelong:Lifelong",
    },
)
