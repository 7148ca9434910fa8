"""Editors and wrappers, by name. One file and one line here add one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor

EDITORS: Registry[type[AnyEditor]] = Registry(
    "editor",
    {
        "alphaedit": "raysweep.editors.alphaedit:AlphaEdit",
        "ft": "raysweep.editors.ft:FineTune",
        "grace": "raysweep.editors.grace:Grace",
        "lora": "raysweep.editors.lora:Lora",
        "memit": "raysweep.editors.memit:Memit",
        "mend": "raysweep.editors.mend.editor:Mend",
        "null": "raysweep.editors.null:Null",
        "oracle": "raysweep.editors.oracle:Oracle",
        "rome": "raysweep.editors.rome:Rome",
        "wise": "raysweep.editors.wise.editor:Wise",
    },
)
