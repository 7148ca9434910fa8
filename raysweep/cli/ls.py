"""``raysweep ls``: every table of names; imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from raysweep.cli.options import workspace_of
from raysweep.errors import PluginError
from raysweep.lazy import lazy
from raysweep.metrics import every_metric
from raysweep.registry import Registry
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from pydantic import BaseModel

Rows = list[tuple[str, ...]]


class Kind(StrEnum):
    """What to list."""

    EDITORS = "editors"
    WRAPPERS = "wrappers"
    DATASETS = "datasets"
    MODELS = "models"
    STUDIES = "studies"
    METRICS = "metrics"
    PROTOCOLS = "protocols"
    LAYOUTS = "layouts"
    SPACES = "spaces"
    PUBLISHED = "published"


def command(
    ctx: typer.Context,
    kind: Annotated[Kind | None, typer.Argument(help="One table; without it, all.", show_default=False)] = None,
) -> None:
    """List what can be named in a search space, and published numbers to compare with.

    Example:

        raysweep ls editors
    """
    workspace = workspace_of(ctx)
    for one in [kind] if kind else list(Kind):
        headings, rows = listing(one, workspace)
        _print(one.value, headings, rows)


def listing(kind: Kind, workspace: Workspace) -> tuple[Sequence[str], Rows]:
    """Return the headings and rows of one table."""
    headings, make = _TABLES[kind]
    return headings, make(workspace)


def _registry(module: str, table: str, *columns: Callable[..., str]) -> Callable[[Workspace], Rows]:
    def rows(workspace: Workspace) -> Rows:
        registry: Registry[object] = getattr(lazy(module), table)
        components, faults = registry.loadable(), registry.faults()
        return [(n, *(column(c) for column in columns)) for n, c in components.items()] + _broken(faults, len(columns))

    return rows


class _Component(Protocol):
    """What every class in a table has."""

    version: int
    config_type: type[BaseModel]


def _broken(faults: Mapping[str, PluginError], columns: int) -> Rows:
    """Return a row for each name of somebody's package that cannot be used, with the reason in the last of *columns*."""
    return [(name, *["–"] * (columns - 1), fault.message) for name, fault in faults.items()]


def _version(component: _Component) -> str:
    return str(component.version)


def _about(component: object) -> str:
    # Components of other people's packages need not have `about`; a class nearly always has a docstring.
    return str(getattr(component, "about", "") or (component.__doc__ or "").strip().partition("\n")[0])


def _keys(component: _Component) -> str:
    return ", ".join(
        f"{name}*" if info.is_required() else name for name, info in component.config_type.model_fields.items()
    )


def _models(workspace: Workspace) -> Rows:
    catalogue = lazy("raysweep.models.sources.catalogue").CATALOGUE
    known: Rows = [(entry.name, entry.kind, entry.about) for entry in catalogue.values()]
    # Folders that somebody put there; fetched models have a line already.
    local = sorted(p.name for p in workspace.models.iterdir()) if workspace.models.is_dir() else []
    return known + [(name, "local", "") for name in local if name not in catalogue and not name.startswith(".")]


def _metrics(workspace: Workspace) -> Rows:
    metrics, faults = every_metric()
    return [
        (m.name, str(m.version), m.needs, "more" if m.higher_is_better else "less", m.doc) for m in metrics.values()
    ] + _broken(faults, 4)


def _protocols(workspace: Workspace) -> Rows:
    protocols = lazy("raysweep.protocols").PROTOCOLS
    return [
        (p.id, str(p.version), ", ".join(p.prompts), ", ".join(n.name for n in p.scorers), p.about)
        for p in protocols.values()
    ]


def _layouts(workspace: Workspace) -> Rows:
    registry: Registry[object] = lazy("raysweep.models.layout").LAYOUTS
    # Those that are shipped are not imported.
    faults = registry.faults()
    known: Rows = [(n, registry.origin(n).partition(":")[0]) for n in registry.names() if n not in faults]
    return known + _broken(faults, 1)


def _spaces(workspace: Workspace) -> Rows:
    return [(name, _question(path)) for name, path in workspace.spaces().items()]


def _published(workspace: Workspace) -> Rows:
    published_numbers = lazy("raysweep.reports.published_numbers")
    published = {name: published_numbers.read(path) for name, path in published_numbers.names(workspace).items()}
    return [
        (name, str(len(n)), *(_each(n, of) for of in ("paper", "table", "model", "dataset")))
        for name, n in published.items()
    ]


def _each(rows: Sequence[object], attribute: str) -> str:
    return ", ".join(dict.fromkeys(getattr(row, attribute) for row in rows))


def _question(path: Path) -> str:
    """Return the ``# Question:`` line of a search space, else its first comment."""
    try:
        # A file that nobody can plan with is listed all the same, with the reason.
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    lines = [line.lstrip("# ").strip() for line in text.splitlines() if line[:1] == "#"]
    questions = [line.removeprefix("Question:").strip() for line in lines if line.startswith("Question:")]
    return (questions or lines or [""])[0]


# Headings beside how their rows are made; each maker imports its table when it is asked.
_TABLES: Mapping[Kind, tuple[Sequence[str], Callable[[Workspace], Rows]]] = {
    Kind.EDITORS: (
        ("name", "version", "patch", "keys (* required)", "paper"),
        _registry("raysweep.editors", "EDITORS", _version, lambda e: str(e.patch_kind), _keys, lambda e: str(e.paper)),
    ),
    Kind.WRAPPERS: (
        ("name", "version", "wraps", "keys (* required)", "paper"),
        _registry(
            "raysweep.editors.wrappers",
            "WRAPPERS",
            _version,
            lambda w: ", ".join(w.accepts),
            _keys,
            lambda w: str(getattr(w, "paper", "")),
        ),
    ),
    Kind.DATASETS: (("name", "version", "about"), _registry("raysweep.data", "DATASETS", _version, _about)),
    Kind.MODELS: (("name", "kind", "about"), _models),
    Kind.STUDIES: (("name", "version", "about"), _registry("raysweep.studies", "STUDIES", _version, _about)),
    Kind.METRICS: (("name", "version", "compares with", "better", "about"), _metrics),
    Kind.PROTOCOLS: (("name", "version", "prompts", "numbers", "about"), _protocols),
    Kind.LAYOUTS: (("model_type", "file"), _layouts),
    Kind.SPACES: (("name", "question"), _spaces),
    Kind.PUBLISHED: (("name", "numbers", "paper", "table", "models", "data"), _published),
}


def _print(title: str, headings: Sequence[str], rows: Rows) -> None:
    """Print a table; text is folded where the terminal is narrow, and nothing is ever cut."""
    print(lazy("raysweep.reports.fit").listing(headings, rows, title=title), end="\n\n")
