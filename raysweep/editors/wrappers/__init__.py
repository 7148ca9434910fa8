"""Wrappers: editors made of an editor. One file and one line here add one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.editors.base import BaseWrapper

WRAPPERS: Registry[type[BaseWrapper[Any, Any]]] = Registry(
    "wrapper",
    {
        "prune": "raysweep.editors.wrappers.prune:Prune",
        "simie": "raysweep.editors.wrappers.simie.wrapper:SimIE",
    },
)
