"""Wrappers: editors made of an editor. One file and one line here add one."""

from __future__ import annotations

from typing import Any

from raysweep.registry import Registry

WRAPPERS: Registry[Any] = Registry(
    "wrapper",
    {
        "prune": "raysweep.editors.wrappers.prune:Prune",
        "simie": "raysweep.editors.wrappers.simie.wrapper:SimIE",
    },
)
