"""Editors and wrappers, by name. One file and one line here add one."""

from __future__ import annotations

from typing import Any

from raysweep.registry import Registry

EDITORS: Registry[Any] = Registry(
    "editor",
    {
        "ft": "raysweep.editors.ft:FineTune",
        "memit": "raysweep.editors.memit:Memit",
        "null": "raysweep.editors.null:Null",
        "oracle": "raysweep.editors.oracle:Oracle",
        "rome": "raysweep.editors.rome:Rome",
    },
)
