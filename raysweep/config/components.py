"""What a plan asks of the rest of the package, as values: tables of names, and three questions about files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep import environment
from raysweep.config.schema import DataSpec, ModelSpec, TextSpec
from raysweep.lazy import lazy
from raysweep.registry import Registry
from raysweep.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The tables and look-ups that turn names into facts; none of them loads torch.

    Attributes:
        editors: editor classes (``config_type``, ``patch_kind``, ``version``).
        wrappers: wrapper classes (``config_type``, ``accepts``, ``version``; optional: ``gives``, what the wrapped editor is
            to a wrapper around it, or a function of its configuration, else ``weights``; ``unfit(config, wrapped)``, why it cannot
            wrap a wrapped editor; ``path_implies``, which of its keys may be a path of values, and the configuration that implies).
            Editors, wrappers and studies may have ``artifacts``, the kinds of artifacts they ask for.
        datasets: datasets (``locate``, ``count``, ``digest``, ``version``).
        studies: study classes (``check``, ``version``).
        model: fills in a model's digest and BOS policy.
        text: fills in a text's digest.
        environment: the environment variables that are set and move numbers.
        row_limit: says how many tokens a row may have, and why (None: any number); raises ``ModelError`` where a model attends
            in a way that is not modelled.
    """

    editors: Registry[Any]
    wrappers: Registry[Any]
    datasets: Registry[Any]
    studies: Registry[Any]
    model: Callable[[ModelSpec, Workspace], ModelSpec]
    text: Callable[[TextSpec, DataSpec, Workspace], TextSpec]
    environment: Mapping[str, str] = field(default_factory=dict)
    row_limit: Callable[[ModelSpec, Workspace], tuple[int, str] | None] = lambda spec, workspace: None

    @staticmethod
    def installed(*, fetch: bool = False) -> Components:
        """Return what this installation has; *fetch* = ask the hub about hub models that are not here."""
        return Components(
            editors=lazy("raysweep.editors").EDITORS,
            wrappers=lazy("raysweep.editors.wrappers").WRAPPERS,
            datasets=lazy("raysweep.data").DATASETS,
            studies=lazy("raysweep.studies").STUDIES,
            model=lambda spec, workspace: lazy("raysweep.models.catalogue").resolve(spec, workspace, fetch=fetch),
            text=lambda text, data, workspace: lazy("raysweep.data.texts").resolve(text, data, workspace),
            environment=environment.stated(),
            row_limit=lambda spec, workspace: lazy("raysweep.models.attention").examine(spec, workspace),
        )
