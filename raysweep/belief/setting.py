"""Settings of the belief testbed as files, ``hparams/belief/<name>.yaml``: found by name or path, read, laid over, resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from raysweep.belief.graph import name_length
from raysweep.belief.graph.artifact import resolve_graph
from raysweep.belief.spec import BeliefSpec
from raysweep.config.hparams import REMARKS
from raysweep.config.load import read
from raysweep.config.overrides import Override, parse_overrides
from raysweep.config.places import KeyPath, Source
from raysweep.config.problems import from_error, from_validation, problem
from raysweep.errors import DataError, Problem, ProblemsError, YamlError, nearest
from raysweep.hashing import file_digest
from raysweep.workspace import Workspace

FOLDER = "belief"  # below hparams/
_DIGESTS: tuple[KeyPath, ...] = (
    ("graph", "digest"),
    ("graph", "tokenizer_digest"),
    ("pretrain", "tokenizer_digest"),
)


def find_setting(text: str, workspace: Workspace) -> Path:
    """Return the file of the setting *text*: a name, or a path (from the current folder, else the workspace, else the package).

    Raises:
        DataError: there is no setting of that name; the hint names the nearest ones.
        YamlError: there is no such file.
    """
    # A file that is there wins over a name; then the workspace, then the package.
    path = Path(text).expanduser()
    if path.is_file():
        return path.absolute()
    settings = workspace.hparams(FOLDER)
    file = workspace.find(*path.parts) if path.parts else None
    if file is not None and file.is_file():
        return file
    if text in settings:
        return settings[text]
    # An ending or a folder says that a file was meant, else a name.
    hint = f"{nearest(path.stem, settings)}; or a YAML file"
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise YamlError(f"{text}  cannot be read: there is no such file", hint=hint)
    raise DataError(f"there is no belief setting '{text}'", hint=hint)


def read_setting(path: Path | None, overrides: Sequence[str | Override] = ()) -> BeliefSpec:
    """Return the belief spec written in *path* (None = the defaults) without its remarks, with *overrides* laid over it.

    Args:
        path: a YAML file; its keys ``source`` and ``notes`` are left out.
        overrides: ``key=value`` with dotted keys, as after ``--set``.

    Raises:
        YamlError: the file is not well-formed.
        DataError: it holds no mapping.
        ProblemsError: every key that is wrong, with its place; an override is not written ``key=value``.
    """
    return _spec_of(_source(path, overrides))


def open_setting(text: str, overrides: Sequence[str | Override], workspace: Workspace) -> BeliefSpec:
    """Return the spec of the setting *text* (empty = the defaults) with *overrides* laid over it and its graph's files found.

    Args:
        text: name or path of the setting.
        overrides: ``key=value`` with dotted keys.
        workspace: where settings and files are found.

    Raises:
        as :func:`find_setting` and :func:`read_setting`.
        ProblemsError: a file of the graph is missing; with the place where the setting asks for it.
    """
    source = _source(find_setting(text, workspace) if text else None, overrides)
    spec = _spec_of(source)
    try:
        return spec.model_copy(update={"graph": resolve_graph(spec.graph, workspace)})
    except DataError as error:
        raise ProblemsError([from_error(error, source.value(("graph", "source")))]) from error


def _source(path: Path | None, overrides: Sequence[str | Override]) -> Source:
    """Return the tree of *path* with *overrides* laid over it, each value with its place."""
    source = Source(tree={}) if path is None else read(path)
    if not isinstance(source.tree, dict):
        raise DataError(f"{source.file} holds no mapping", hint="keys: " + ", ".join(BeliefSpec.model_fields))
    for override in parse_overrides(overrides):
        keys = tuple(override.key.split("."))
        tree = _with_value(source.tree, keys, _as_integer(override.value))
        # The override's own place goes with the value, so that an error names the flag.
        source = source.replaced(keys, tree, override.place, override.text)
    return source


def _spec_of(source: Source) -> BeliefSpec:
    """Return the spec that *source* states, or raise every problem with its place."""
    # Remarks are for readers; they are no keys of the spec.
    tree = {key: value for key, value in source.tree.items() if key not in REMARKS}
    locate = lambda at, key: source.key(at) if key else source.value(at)  # noqa: E731
    # Every problem of the file at once, not the first one only.
    problems = _digest_problems(tree, source)
    try:
        # Problems of the values join those about digests, each with its line.
        spec = BeliefSpec.model_validate(tree)
    except ValidationError as error:
        raise ProblemsError([*problems, *from_validation(error, BeliefSpec, "belief", locate)]) from error
    if problems:
        raise ProblemsError(problems)
    return spec


def resolve_setting(spec: BeliefSpec, workspace: Workspace) -> BeliefSpec:
    """Return *spec* with the digests of the files it names.

    Raises:
        DataError: a file is missing; the message says where it belongs.
    """
    resolved = spec.model_copy(update={"graph": resolve_graph(spec.graph, workspace)})
    recipe = resolved.pretrain
    if recipe is None or recipe.tokenizer == "words":
        return resolved
    file = name_length.tokenizer_file(workspace.resolve(recipe.tokenizer))
    return resolved.model_copy(update={"pretrain": recipe.model_copy(update={"tokenizer_digest": file_digest(file)})})


def _with_value(tree: object, path: Sequence[str], value: object) -> object:
    """Return *tree* with *value* at *path*; mappings that are not there are made."""
    if not path:
        return value
    # A scalar in the way is replaced; validation says what is wrong with that.
    branch: Mapping[str, object] = tree if isinstance(tree, dict) else {}
    return {**branch, path[0]: _with_value(branch.get(path[0]), path[1:], value)}


def _as_integer(value: object) -> object:
    """Return a float that is a whole number, such as ``2e6``, as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest_problems(tree: Mapping[str, object], source: Source) -> list[Problem]:
    """Return a complaint for each digest that the file states: it is taken of what is there."""
    problems = []
    for path in _DIGESTS:
        above = tree.get(str(path[0]))
        if isinstance(above, dict) and above.get(path[1]):
            message = f"belief: {path[0]}.{path[1]} is taken of the file that is there; it cannot be set"
            problems.append(problem(source.key(path), message, "leave it out"))
    return problems
