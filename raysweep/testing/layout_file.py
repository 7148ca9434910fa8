"""The file of a proposed layout, ready to be saved, and what is to be done with it."""

from __future__ import annotations

from dataclasses import MISSING, fields

from raysweep.models.layout import BlockForm
from raysweep.testing.layout_measures import Proposal
from raysweep.testing.layout_probe import FORMS

_WIDTH = 120
_ABOUT_SCALE = '"""Return by how much the model multiplies a row of the embedding."""'


def layout_file(proposal: Proposal) -> str:
    """Return the text of ``raysweep/models/layouts/FAMILY.py`` with the proposed layout in it."""
    layout = proposal.layout
    form = None if layout.form is None else _form(layout.form)
    # functions are written by their names, apart from the rest
    values = {
        f.name: getattr(layout, f.name) for f in fields(layout) if f.name not in ("form", "embed_scale", "windows")
    }
    blank = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(layout)}
    lines = [_line(name, value) for name, value in values.items() if value != blank[name]]
    lines += [f"    windows=attention.{layout.windows.__name__},"] if layout.windows is not None else []
    lines += ["    embed_scale=embed_scale,"] if layout.embed_scale is not None else []
    lines += [_call(form[1])] if form is not None else []
    head = ['"""' + f'{layout.model_type}: proposed by `raysweep models probe`; look it through."""', ""]
    head += ["from dataclasses import replace"] if form is not None and len(form[1]) > 1 else []
    head += ["from math import sqrt"] if "sqrt" in proposal.scale else []
    head += ["from typing import Any"] if layout.embed_scale is not None else []
    # a blank line ends the standard library's imports, and would be one too many without them
    head += [""] if head[-1] else []
    head += ["from raysweep.models import attention"] if layout.windows is not None else []
    head += ["from raysweep.models.layout import Layout"]
    head += [f"from raysweep.models.layouts.{form[0]} import FORM"] if form is not None else []
    # … is no Python, so the file cannot be used before somebody has filled it in
    scale = proposal.scale or "…  # how it follows from the configuration is not known"
    function = ["", "", "def embed_scale(config: Any) -> float:", f"    {_ABOUT_SCALE}", f"    return {scale}"]
    function = function if layout.embed_scale is not None else []
    gap = ["", ""] if function else [""]
    return "\n".join([*head, *function, *gap, "LAYOUT = Layout(", *lines, ")", ""])


def _line(name: str, value: object) -> str:
    """Return one field as it is written: short values in one line, others an entry a line."""
    whole = f"    {name}={_quoted(value)},"
    if len(whole) <= _WIDTH or not isinstance(value, dict):
        return whole
    entries = [f"        {_quoted(key)}: {_quoted(entry)}," for key, entry in value.items()]
    return "\n".join([f"    {name}={{", *entries, "    },"])


def _quoted(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return (
            "(" + "".join(f"{_quoted(v)}, " for v in value).rstrip(" ") + ")"
            if len(value) == 1
            else f"({', '.join(map(_quoted, value))})"
        )
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)}: {_quoted(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _call(arguments: list[str]) -> str:
    """Return how the form is made, in one line or an argument a line."""
    if len(arguments) == 1:
        return f"    form={arguments[0]},"
    whole = f"    form=replace({', '.join(arguments)}),"
    return (
        whole
        if len(whole) <= _WIDTH
        else "\n".join(["    form=replace(", *(f"        {a}," for a in arguments), "    ),"])
    )


def _form(form: BlockForm) -> tuple[str, list[str]]:
    """Return the module whose form *form* was made of, and that form's name with what differs."""
    changed = {"block_class": form.block_class, "norm": form.norm, "head_norms": form.head_norms}
    # a proposed form differs from the known one in these three fields only
    for module, known in FORMS.items():
        if (known.qkv, known.attention_norm, known.angles) == (form.qkv, form.attention_norm, form.angles):
            said = [f"{name}={_quoted(value)}" for name, value in changed.items() if getattr(known, name) != value]
            return module, ["FORM", *said]
    raise ValueError(f"{form.block_class} is made of no known form")


def what_to_do(proposal: Proposal) -> list[str]:
    """Return what the layout contract said, and how the layout gets into use, a sentence each."""
    kind = proposal.layout.model_type
    if proposal.broken:
        return [
            f"not right yet: {proposal.broken}",
            "docs/add_an_architecture.md says of each promise why it may be broken",
        ]
    return [
        "the layout contract is kept by a small random model of this configuration",
        f"save the file as raysweep/models/layouts/{kind}.py, with a line in the table LAYOUTS of raysweep/models/layout.py: "
        f'"{kind}": "raysweep.models.layouts.{kind}:LAYOUT",',
        f'or in a package of your own, under [project.entry-points."raysweep.layouts"]: {kind} = "MODULE:LAYOUT"',
        f"then examine it: python -m pytest tests/contracts/test_layouts.py -k {kind}",
    ]
