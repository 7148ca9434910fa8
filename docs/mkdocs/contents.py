"""What the site shows: files of the repository, and names whose docstrings make the reference. Tests read this without mkdocs."""

from __future__ import annotations

PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "docs/*.png",
    "docs/*.svg",
    "search_spaces/*.md",
    "hparams/*.md",
    "data/*.md",
    "examples/*.md",
)
# Of the reference: a page's title, and the modules or names that it documents.
REFERENCE: dict[str, tuple[str, ...]] = {
    "Edit a model": (
        "raysweep.load_model",
        "raysweep.adopt_model",
        "raysweep.edit",
        "raysweep.EditSession",
        "raysweep.library.session.Comparison",
        "raysweep.models.lm.LanguageModel",
    ),
    "Plan, run, read": (
        "raysweep.plan",
        "raysweep.run_sweep",
        "raysweep.tune.sweep_run.RunOptions",
        "raysweep.results.outcome.SweepOutcome",
        "raysweep.open_sweep",
        "raysweep.reports.opened.OpenedSweep",
        "raysweep.reports.opened.TrialError",
        "raysweep.open_results",
        "raysweep.results.tables.Sweep",
        "raysweep.Workspace",
    ),
    "Records and data": (
        "raysweep.EditRecord",
        "raysweep.records.Fact",
        "raysweep.Probe",
        "raysweep.open_dataset",
        "raysweep.data.base",
        "raysweep.data.files",
    ),
    "Search spaces and trials": (
        "raysweep.load_search_space",
        "raysweep.parse_search_space",
        "raysweep.config.schema",
        "raysweep.config.planned_trial",
    ),
    "Editors": ("raysweep.editors.base", "raysweep.models.patches", "raysweep.models.ledger"),
    "Wrappers": ("raysweep.editors.wrappers.base",),
    "Layouts": ("raysweep.models.layout",),
    "Metrics": ("raysweep.metrics",),
    "Studies": ("raysweep.studies.base", "raysweep.rows"),
    "Contracts": (
        "raysweep.testing.editor_contract",
        "raysweep.testing.dataset_contract",
        "raysweep.testing.layout_contract",
        "raysweep.testing.fixtures",
    ),
    "Errors": ("raysweep.errors",),
}


def reference_pages() -> dict[str, str]:
    """Return the text of each page of the reference, by its path in the site."""
    return {
        f"reference/{title.lower().replace(', ', '_').replace(' ', '_')}.md": f"# {title}\n\n"
        + "".join(f"::: {name}\n\n" for name in names)
        for title, names in REFERENCE.items()
    }
