"""The defaults of one editor on one model: ``hparams/<component>/<model>.yaml``.

Besides configuration keys a file has ``source:`` (paper and table, or repository path:line) and may have ``notes:`` and
``for:``, values for one editor (what a wrapper wraps, innermost) or one dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raysweep.config.load import read
from raysweep.config.places import KeyPath, Source
from raysweep.config.schema import ModelSpec
from raysweep.errors import YamlError, nearest
from raysweep.jsontypes import Json
from raysweep.registry import Registry
from raysweep.workspace import Workspace

REMARKS = ("source", "notes")
FOR = "for"
FITS = ("editor", "data")


def stem(model: ModelSpec) -> str:
    """Return the file name (without ``.yaml``) under which a model's hyper-parameters are kept.

    >>> stem(ModelSpec(name="EleutherAI/GPT-J-6b"))
    'gpt-j-6b'
    """
    return (model.hparams or model.name).rstrip("/").rsplit("/", 1)[-1].lower()


def find(
    component: str, model: ModelSpec, workspace: Workspace, known: Mapping[str, Registry[object]] | None = None
) -> Source | None:
    """Return the hyper-parameters of *component* on *model* without the remarks, or None where there is no file.

    Args:
        component: an editor or a wrapper.
        model: on which model.
        workspace: where to look.
        known: tables of the names that ``for`` may use, by ``editor`` and ``data``; None = any name.

    Raises:
        YamlError: the file is not a well-formed mapping, or an entry of ``for`` is not, or names what there is not.
    """
    path = workspace.find_hparams(component, stem(model))
    if path is None:
        return None
    source = read(path)
    if not isinstance(source.tree, dict):
        raise YamlError(f"{path}:1:1  a hyper-parameter file holds 'key: value' lines")
    defaults = without_remarks(source)
    _check_for(defaults, known or {})
    return defaults


def without_remarks(source: Source) -> Source:
    """Return a hyper-parameter file without what reaches no trial."""
    return replace(source, tree={k: v for k, v in source.tree.items() if k not in REMARKS})


def layers(defaults: Source, *, editor: str, data: str) -> list[tuple[Mapping[str, Json], KeyPath]]:
    """Return what *defaults* says of *editor* on the dataset *data*, later parts over earlier ones, each with its place.

    The keys of the file come first, then the entries of ``for`` that fit, in order.
    """
    actual = {"editor": editor, "data": data}
    parts: list[tuple[Mapping[str, Json], KeyPath]] = [({k: v for k, v in defaults.tree.items() if k != FOR}, ())]
    for i, entry in enumerate(defaults.tree.get(FOR, [])):
        # What an entry does not name, it does not restrict.
        if all(entry.get(k, actual[k]) == actual[k] for k in FITS):
            parts.append(({k: v for k, v in entry.items() if k not in FITS}, (FOR, i)))
    return parts


def _check_for(defaults: Source, known: Mapping[str, Registry[object]]) -> None:
    entries = defaults.tree.get(FOR, [])
    for i, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = defaults.value((FOR, i))
        at = f"{where.file}:{where.line}:{where.column}"
        if not isinstance(entries, list) or not isinstance(entry, dict) or not set(FITS) & set(entry):
            hint = "for: [{editor: rome, data: zsre, lam: 50}]"
            raise YamlError(f"{at}  'for' is a list of mappings, each with 'editor' or 'data' and keys", hint=hint)
        for kind in (k for k in FITS if k in entry):
            name = entry[kind]
            if kind in known and (not isinstance(name, str) or name not in known[kind]):
                raise YamlError(f"{at}  for: unknown {kind} {name!r}", hint=nearest(str(name), known[kind]))
