"""How the questions and edits of a plan are computed: with shared beginnings, or row by row."""

from __future__ import annotations

from raysweep.config.planned_trial import Plan
from raysweep.lazy import lazy
from raysweep.workspace import Workspace

_SAYS = {
    True: "questions that begin alike share their beginning, with the numbers that each has alone",
    False: "questions and edits go row by row, each row whole, since the layout says that sharing beginnings would move numbers",
    None: "whether questions share beginnings is not known before the model is here",
}


def sharing(plan: Plan, workspace: Workspace) -> dict[str, bool | None]:
    """Return, for each model of *plan*, whether its layout shares prefixes; None: its layout is not known here."""
    models = {t.trial.model.path or t.trial.model.name: t.trial.model for t in plan.trials}
    catalogue = lazy("raysweep.models.sources.catalogue")
    return {name: catalogue.shares_prefixes(spec, workspace) for name, spec in models.items()}


def lines(plan: Plan, workspace: Workspace) -> list[str]:
    """Return a line for each way in which questions are computed, with the models that go that way."""
    by_model = sharing(plan, workspace)
    models = {says: [name for name, shares in by_model.items() if shares is says] for says in _SAYS}
    return [f"{_SAYS[says]} ({', '.join(names)})" for says, names in models.items() if names]
