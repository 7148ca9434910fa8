"""A search-space file → a :class:`SweepSpec`, with every mistake of form reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from raysweep.config.load import examine
from raysweep.config.overrides import Override, apply
from raysweep.config.places import Source
from raysweep.config.sweep_reader import SweepReader
from raysweep.config.sweep_schema import SweepSpec
from raysweep.errors import NameUnknownError, Problem, ProblemsError, nearest
from raysweep.jsontypes import Json
from raysweep.workspace import Workspace


def load_search_space(file: str, workspace: Workspace, overrides: Iterable[str | Override] = ()) -> SweepSpec:
    """Return the search space in *file*, a path or the name of one in ``search_spaces/``.

    Args:
        file: ``search_spaces/demo.yaml`` or ``demo``.
        workspace: where names are looked up.
        overrides: ``key=value`` texts laid over the file.

    Raises:
        NameUnknownError: there is no such file and no such name.
        YamlError: the file is not well-formed.
        ProblemsError: it is, but says things it may not say.
    """
    spec, problems = examine_sweep(*examine(find_file(file, workspace)), overrides, workspace)
    if problems or spec is None:
        raise ProblemsError(problems)
    return spec


def find_file(file: str, workspace: Workspace) -> Path:
    """Return the path of a search space given by path or name.

    Raises:
        NameUnknownError: there is none.
    """
    with suppress(OSError, ValueError, RuntimeError):  # a name too long, a NUL, the home of a user who is not
        # As typed, from the current folder, first; then from the workspace's root.
        for given in (Path(file), workspace.resolve(file)):
            if given.is_file():
                return given
        path = workspace.find_space(file.removesuffix(".yaml"))
        if path is not None:
            return path
    raise NameUnknownError(
        f"no search space '{file}': neither a file nor a name in search_spaces/",
        hint=nearest(Path(file).name.removesuffix(".yaml"), workspace.spaces()),
    )


def parse_search_space(
    source: Source | Mapping[str, Json], overrides: Iterable[str | Override] = (), *, file: str = ""
) -> SweepSpec:
    """Return the search space that *source* holds, with *overrides* laid over it.

    Args:
        source: a file that has been read, or plain data, as ``raysweep edit`` makes it from flags.
        overrides: ``key=value`` texts.
        file: what messages call plain data.

    Raises:
        ProblemsError: every mistake of form, with its place.
    """
    if not isinstance(source, Source):
        source = Source(file, tree=dict(source))
    spec, problems = examine_sweep(source, (), overrides)
    if problems or spec is None:
        raise ProblemsError(problems)
    return spec


def examine_sweep(
    source: Source,
    noted: Iterable[Problem] = (),
    overrides: Iterable[str | Override] = (),
    workspace: Workspace | None = None,
) -> tuple[SweepSpec | None, list[Problem]]:
    """Return what can be read of *source* with *overrides* laid over it, and every mistake of form.

    With mistakes, what cannot be read is missing from the sweep (an arm, a swept key), so that a plan can look for further
    mistakes in the rest; None if there is no rest.

    Args:
        source: the file.
        noted: what was found wrong with its YAML.
        overrides: ``key=value`` texts.
        workspace: from where paths of hyper-parameter files count; None = from the root as it is found here.
    """
    source, problems = apply(source, overrides)
    reader = SweepReader(source, workspace)
    spec = reader.sweep()
    return spec, [*noted, *problems, *reader.problems]
