"""Wrappers: editors made of an editor. One file and one line here add one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.editors.wrappers.base import AnyWrapper

WRAPPERS: Registry[type[AnyWrapper]] = Registry(
    "wrapper",
    {
        "prune": "raysweep.editors.wrappers.prune:Prune",
        "simie": "raysweep.editors.wrappers.simie.wrapper:SimIE",
    },
)
