"""The defaults of one editor on one model: ``hparams/<component>/<model>.yaml``.

Besides configuration keys a file has ``source:`` (paper and table, or repository path:line) and may have ``notes:``.
"""

from __future__ import annotations

from dataclasses import replace

from raysweep.config.load import read
from raysweep.config.places import Source
from raysweep.config.schema import ModelSpec
from raysweep.errors import YamlError
from raysweep.workspace import Workspace

REMARKS = ("source", "notes")


def stem(model: ModelSpec) -> str:
    """Return the file name (without ``.yaml``) under which a model's hyper-parameters are kept.

    >>> stem(ModelSpec(name="EleutherAI/GPT-J-6b"))
    'gpt-j-6b'
    """
    return (model.hparams or model.name).rstrip("/").rsplit("/", 1)[-1].lower()


def find(component: str, model: ModelSpec, workspace: Workspace) -> Source | None:
    """Return the hyper-parameters of *component* on *model* without the remarks, or None where there is no file.

    Raises:
        YamlError: the file is not a well-formed mapping.
    """
    path = workspace.find_hparams(component, stem(model))
    if path is None:
        return None
    source = read(path)
    if not isinstance(source.tree, dict):
        raise YamlError(f"{path}:1:1  a hyper-parameter file holds 'key: value' lines")
    return replace(source, tree={k: v for k, v in source.tree.items() if k not in REMARKS})
