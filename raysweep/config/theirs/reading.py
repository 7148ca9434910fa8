"""Another program's hyper-parameter file → the keys of our editor, each with the place where theirs was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config.load import examine, parse_json, shown
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import problem
from raysweep.config.theirs import lora, parts, tables
from raysweep.config.theirs.rules import Becomes, Corpus, Ignored, LastBlock, Matrices, Only, Part, Rule, Table
from raysweep.errors import Problem, nearest
from raysweep.jsontypes import Json, JsonObject

if TYPE_CHECKING:
    from raysweep.config.components import ModelFacts
    from raysweep.config.schema import ModelSpec

_TABLES = (tables.ROME, tables.MEMIT, tables.ALPHAEDIT, tables.FT, tables.GRACE, tables.WISE, tables.MEND, lora.LORA)
_ROW = 4096  # their rows are cut at the model's positions; without that number, at what most of their models have


@dataclass(slots=True)
class Reading:
    """What was read of one file.

    Attributes:
        source: our keys, with the places of theirs.
        ignored: their keys that change no number, with the reason.
        problems: everything that is wrong.
    """

    source: Source
    ignored: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def open_file(path: Path) -> tuple[Source, list[Problem]]:
    """Return the tree of a YAML or JSON file, and what is wrong with its form.

    Raises:
        YamlError: it cannot be read at all.
    """
    return parse_json(path) if path.suffix == ".json" else examine(path)


def is_theirs(tree: Mapping[str, Json]) -> bool:
    """Tell whether *tree* has the keys of another program's file, not those of ``hparams/`` here.

    >>> is_theirs({"alg_name": "ROME"}), is_theirs({"layers": [5], "v_lr": 0.5}), is_theirs({"layers": [5], "steps": 3})
    (True, True, False)
    """
    # Keys that both sides have (layers, lr, steps) tell nothing; one that only they have tells all.
    rules = [(key, rule) for table in _TABLES for key, rule in table.items()]
    ours = {key.partition(".")[0] for _, rule in rules if isinstance(rule, Becomes) for key in rule.keys}
    foreign = {key for key, _ in rules} - ours
    return bool(foreign & tree.keys()) or "alg_name" in tree


def editor_of(source: Source) -> str:
    """Return our name of the editor that a file is of: by its ``alg_name``, else by its folder, ``hparams/MEMIT``; else nothing.

    >>> editor_of(Source("a.yaml", tree={"alg_name": "AlphaEdit"})), editor_of(Source("hparams/MEMIT/gpt2-xl.json", tree={}))
    ('alphaedit', 'memit')
    """
    tree = source.tree if isinstance(source.tree, dict) else {}
    # Their JSON files have no alg_name; their folder is all that says it.
    folder = Path(source.file).absolute().parent
    by_folder = folder.name if folder.parent.name == "hparams" else ""
    return str(tree.get("alg_name") or by_folder).lower()


def read(source: Source, editor: str, table: Table, facts: ModelFacts) -> Reading:
    """Return *source*, a file of theirs, as keys of *editor*, for the model of *facts*.

    Args:
        source: the file.
        editor: our name of it.
        table: what becomes of their keys; empty = such files are not read here.
        facts: what is known of the model; where nothing is, its parts are not compared.
    """
    tree = source.tree if isinstance(source.tree, dict) else {}
    reading = Reading(Source(file=source.file, text=source.text, tree={}))
    named = str(tree.get("alg_name") or editor)
    if named.lower() != editor:
        _say(reading, source, "alg_name", f"alg_name: this file is of {named}, not of '{editor}'")
    if not table:
        message = f"hyper-parameter files of other programs are not read for '{editor}'"
        _say(reading, source, "alg_name", message, "write the values in our keys (raysweep ls editors)")
        return reading
    known = {**tables.EVERYWHERE, **table}
    # Every key is looked at, so that all that is wrong is said at once.
    for key in tree:
        if key in ("alg_name", "model_name"):
            continue
        if key not in known:
            message = f"{key}: no key that is known of a file of '{editor}'"
            _say(reading, source, key, message, nearest(key, known))
            continue
        try:
            _apply(reading, source, key, known[key], facts)
        except ValueError as error:
            _say(reading, source, key, f"{key}: {error}")
    # What their code does without being told must be told here, where the default may be another.
    for key, rule in known.items():
        if isinstance(rule, Becomes) and rule.absent is not None and key not in tree:
            put(reading, source, rule.keys[0], rule.absent, ())
    return reading


def _apply(reading: Reading, source: Source, key: str, rule: Rule, facts: ModelFacts) -> None:
    """Do with one key of theirs what its *rule* says.

    Raises:
        ValueError: its value cannot be what it is.
    """
    value: Json = source.tree[key]
    match rule:
        # kept for the plan, which says what has no effect and why
        case Ignored():
            reading.ignored[key] = rule.why
        case Becomes():
            for i, (ours, one) in enumerate(zip(rule.keys, _values(rule, value, source.tree), strict=True)):
                put(reading, source, ours, one, (key, i) if len(rule.keys) > 1 else (key,))
        case Only():
            # True == 1 in Python, but not in a file
            if not any(type(value) is type(v) and value == v for v in rule.values):
                raise ValueError(f"{value!r} would mean {rule.else_}; here it is always {rule.values[0]!r}")
        case LastBlock():
            parts.check_last_block(value, facts)
        case Part():
            parts.check(value, rule, facts)
            if rule.bias and not str(value).endswith(".weight"):
                put(reading, source, rule.bias, True, (key,))
        case Corpus():
            if value not in rule.names:
                raise ValueError(f"{value!r} is not known here; {' or '.join(rule.names)} is")
            # one key of theirs decides two of ours: which text, and where its rows are cut
            put(reading, source, "moments.text.name", value, (key,))
            put(reading, source, "moments.width", min(facts.positions or _ROW, _ROW), (key,))
        case Matrices():
            for ours, found in parts.matrices(value, rule, facts).items():
                put(reading, source, ours, found, (key,))


def _values(rule: Becomes, value: Json, tree: Mapping[str, Json]) -> list[Json]:
    """Return what each of our keys of *rule* is.

    Raises:
        ValueError: *value* cannot be so many, or not of this kind.
    """
    converted = rule.convert(value)
    if len(rule.keys) > 1:
        if not isinstance(converted, list) or len(converted) != len(rule.keys):
            raise ValueError(f"must be a list of {len(rule.keys)} numbers, got {value!r}")
        return converted
    # they count records, we count updates of so many records each
    by = tree.get(rule.per) if rule.per else None
    if isinstance(converted, int) and isinstance(by, int) and by > 0:
        return [max(converted // by, 1)]
    return [converted]


def put(reading: Reading, source: Source, dotted: str, value: Json, written: KeyPath) -> None:
    """Set our key *dotted* to *value*, whose place is that of *written* in *source*."""
    path = tuple(dotted.split("."))
    here: JsonObject = reading.source.tree
    for part in path[:-1]:
        below = here.setdefault(part, {})
        assert isinstance(below, dict)  # the tables name no key below another one
        here = below
    here[path[-1]] = value
    # a mistake in our key is then shown at theirs, in their file
    at_key, at_value = source.key(written), source.value(written)
    keys: dict[KeyPath, Place] = {**reading.source.keys, path: at_key}
    reading.source = replace(reading.source, keys=keys, values={**reading.source.values, path: at_value})


def _say(reading: Reading, source: Source, key: str, message: str, hint: str = "") -> None:
    place = source.value((key,)) if key in (source.tree or {}) else Place(source.file, 1, 1)
    reading.problems.append(problem(place, message, hint))


def about(source: Source, reading: Reading, model: ModelSpec | None) -> str:
    """Return one line on what was made of a file: for which model it was written, and what of it changes no number.

    Where that is not *model* by any of its names, both are named: layers and rates may not fit. None = not known.
    """
    theirs = _last(str((source.tree or {}).get("model_name") or ""))
    by_reason: dict[str, list[str]] = {}
    for key, why in reading.ignored.items():
        by_reason.setdefault(why, []).append(key)
    ignored = "; ".join(f"{', '.join(keys)} ({why})" for why, keys in by_reason.items())
    written = f", written for {theirs}" if theirs else ""
    if theirs and model and _letters(theirs) not in {_letters(n) for n in (model.name, model.path, model.hparams)}:
        written += f" and used on {model.name}: see that layers and rates fit it"
    return f"hyper-parameters of {shown(Path(source.file))}{written}" + (
        f"; without effect: {ignored}" if ignored else ""
    )


def _last(name: str) -> str:
    """Return the last part of a path or of a hub id."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def _letters(name: str) -> str:
    """Return what two spellings of a model's name have in common.

    >>> _letters("meta-llama/Llama-2-7b-hf"), _letters("./hugging_cache/llama2-7b/")
    ('llama27b', 'llama27b')
    """
    return "".join(c for c in _last(name).lower().removesuffix("-hf") if c.isalnum())
