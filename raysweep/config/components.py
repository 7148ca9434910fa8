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


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan knows of a model that is not loaded.

    Attributes:
        blocks: how many it has; 0 = not known.
        positions: the longest row in tokens; 0 = not known.
        count: counts the tokens of a text, with special ones; None = not known before the model is loaded.
    """

    blocks: int = 0
    positions: int = 0
    count: Callable[[str], int] | None = None


def _nothing(spec: ModelSpec, workspace: Workspace) -> ModelFacts:
    """Know nothing of a model."""
    return ModelFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The tables and look-ups that turn names into facts; none of them loads torch.

    Attributes:
        editors: editor classes (``config_type``, ``patch_kind``, ``version``; optional: ``record_error(config, record)``, why a
            record cannot be written, and ``fold_error(records)``, why records cannot be trained on, each an error or None).
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
        facts: what is known of a model before it is loaded; refuses one that cannot be loaded or edited.
    """

    editors: Registry[Any]
    wrappers: Registry[Any]
    datasets: Registry[Any]
    studies: Registry[Any]
    model: Callable[[ModelSpec, Workspace], ModelSpec]
    text: Callable[[TextSpec, DataSpec, Workspace], TextSpec]
    environment: Mapping[str, str] = field(default_factory=dict)
    row_limit: Callable[[ModelSpec, Workspace], tuple[int, str] | None] = lambda spec, workspace: None
    facts: Callable[[ModelSpec, Workspace], ModelFacts] = _nothing

    @staticmethod
    def installed(*, fetch: bool = False) -> Components:
        """Return what this installation has; *fetch* = ask the hub about hub models that are not here."""
        return Components(
            editors=lazy("raysweep.editors").EDITORS,
            wrappers=lazy("raysweep.editors.wrappers").WRAPPERS,
            datasets=lazy("raysweep.data").DATASETS,
            studies=lazy("raysweep.studies").STUDIES,
            model=lambda spec, workspace: lazy("raysweep.models.sources.catalogue").resolve(
                spec, workspace, fetch=fetch
            ),
            text=lambda text, data, workspace: lazy("raysweep.data.texts").resolve(text, data, workspace),
            environment=environment.stated(),
            row_limit=lambda spec, workspace: lazy("raysweep.models.attention").examine(spec, workspace),
            facts=lambda spec, workspace: lazy("raysweep.models.sources.facts").facts(spec, workspace),
        )
