"""What this installation has: the tables of components and the answers to questions about files, for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep import environment
from raysweep.config.components import Components
from raysweep.lazy import lazy
from raysweep.metrics import PLUGINS
from raysweep.registry import Registry


def installed(*, fetch: bool = False) -> Components:
    """Return what is installed here; *fetch* = ask the hub about hub models that are not here. Nothing imports torch."""
    return Components(
        editors=lazy("raysweep.editors").EDITORS,
        wrappers=lazy("raysweep.editors.wrappers").WRAPPERS,
        datasets=lazy("raysweep.data").DATASETS,
        studies=lazy("raysweep.studies").STUDIES,
        model=lambda spec, workspace: lazy("raysweep.models.sources.catalogue").resolve(spec, workspace, fetch=fetch),
        text=lambda text, data, workspace: lazy("raysweep.data.texts").resolve(text, data, workspace),
        environment=environment.stated(),
        row_limit=lambda spec, workspace: lazy("raysweep.models.sources.facts").attention_row_limit(spec, workspace),
        chat=lambda spec, workspace: lazy("raysweep.models.chat").planned_digest(spec, workspace),
        facts=lambda spec, workspace: lazy("raysweep.models.sources.facts").facts(spec, workspace),
    )


def component_tables() -> Mapping[str, Registry[Any]]:
    """Return each table that other people's packages can add to, by its entry-point group; nothing imports torch.

    >>> sorted(component_tables())[:3]
    ['raysweep.datasets', 'raysweep.editors', 'raysweep.layouts']
    """
    tables: tuple[Registry[Any], ...] = (
        lazy("raysweep.editors").EDITORS,
        lazy("raysweep.editors.wrappers").WRAPPERS,
        lazy("raysweep.data").DATASETS,
        lazy("raysweep.models.layout").LAYOUTS,
        lazy("raysweep.studies").STUDIES,
        PLUGINS,
    )
    return {table.group: table for table in tables}
