"""An editor from its name and a few values, as a search space would configure it, for a model in hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config.bind_data import DataBinder
from raysweep.config.bind_editor import EditorBinder, Target
from raysweep.config.components import Components, ModelFacts, assemble
from raysweep.config.lookups import Lookups
from raysweep.config.places import Source
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec
from raysweep.config.sweep import examine_sweep
from raysweep.editors.base import BaseEditor
from raysweep.errors import Problem, ProblemsError, SpecError
from raysweep.jsontypes import Json
from raysweep.lazy import lazy
from raysweep.registry import Registry
from raysweep.workspace import Workspace, resolve_from_cwd

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor
    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
else:
    tokens = lazy("raysweep.models.tokens")

Wrap = str | Mapping[str, Json]
"""A wrapper's name, or a mapping of its name and its values: ``{"name": "simie", "lam": 10}``."""
_ARM = "edit"


@dataclass(frozen=True, slots=True)
class ChosenEditor:
    """An editor, and what it was built from.

    Attributes:
        editor: with its wrappers around it.
        spec: every value of its configuration, and of theirs.
        data: whose text stands for ``text: {name: dataset}``, with its digest.
    """

    editor: AnyEditor
    spec: EditorSpec
    data: DataSpec


def choose_editor(
    editor: str | type[AnyEditor] | AnyEditor,
    lm: LanguageModel,
    workspace: Workspace,
    *,
    wrap: Wrap | Sequence[Wrap] = (),
    config: Mapping[str, Json] | None = None,
    hparams: str | Path = "",
    data: str = "world",
) -> ChosenEditor:
    """Return *editor* as a search space would configure it for *lm*.

    Values come from the class's defaults, then from ``hparams/<editor>/<model>.yaml`` or the file that is named, then from
    *config*.

    Args:
        editor: a name of ``raysweep ls editors``, or a class or an object of your own.
        lm: the model that is to be edited.
        workspace: where files are looked for.
        wrap: wrappers, innermost first.
        config: values of the editor's own keys.
        hparams: a hyper-parameter file, of EasyEdit, SimIE or MEMIT too, instead of the model's own; empty = the model's own.
        data: the dataset whose text serves an editor that asks for one.

    Raises:
        ProblemsError: everything that is wrong: names, keys, values, blocks that the model does not have.
    """
    components = Components.installed()
    values: dict[str, Json] = dict(config or {})
    if isinstance(editor, str):
        name = editor.lower()
    else:
        kind = editor if isinstance(editor, type) else type(editor)
        name = kind.name
        components = replace(components, editors=_WithOneMore(components.editors, kind))
        if isinstance(editor, BaseEditor):
            values = {**editor.config.model_dump(mode="json"), **values}
    if hparams:
        # said in Python, a path counts from the current folder, not from the workspace
        values["file"] = resolve_from_cwd(str(hparams))
    # A search space of one arm: names, keys and values are examined by the code that examines a sweep's.
    tree: dict[str, Json] = {
        "sweep": _ARM,
        "base": {"model": {"name": lm.name or "embedded"}, "data": {"name": data}},
        "arms": {_ARM: {"editor": {"name": name, **values}, "wrap": _wraps(wrap)}},
    }
    sweep, problems = examine_sweep(Source("raysweep.edit", tree=tree), workspace=workspace)
    if sweep is None or problems:
        raise ProblemsError(problems)
    lookups = Lookups(sweep, workspace, components)
    opened = DataBinder(lookups).open(lookups.section(sweep.arms[0], {}, "data"))
    found = None if opened is None or opened.rows is None else opened.spec
    # A model without a name has no files, so whatever has no default must be said.
    model = ModelSpec(name=lm.name or "unnamed")
    bound = EditorBinder(lookups).editor(Target(sweep.arms[0], {}, model, _facts(lm), found))
    if bound is None or found is None or lookups.problems:
        # two look-ups may note the same mistake; it is told once, in order
        raise ProblemsError(dict.fromkeys(_for_python(one) for one in lookups.problems))
    return ChosenEditor(assemble(bound, components.editors, components.wrappers), bound, found)


def _for_python(problem: Problem) -> Problem:
    """Return *problem* with the cure that there is without a search space."""
    cure = "as config={…}, or name a model whose files fit: load_model(…, hparams=…)"
    return replace(problem, hint=problem.hint.replace("in the arm, or model.hparams", cure))


def _wraps(wrap: Wrap | Sequence[Wrap]) -> list[Json]:
    if isinstance(wrap, str | Mapping):
        wrap = (wrap,)
    return [one if isinstance(one, str) else dict(one) for one in wrap]


def _facts(lm: LanguageModel) -> ModelFacts:
    """Return what a plan would know of *lm* before it is loaded; here the model itself is asked."""
    return ModelFacts(lm.n_blocks, lm.positions, lambda text: len(tokens.encode(lm, text)), lm.layout.parts())


class _WithOneMore(Registry[type["AnyEditor"]]):
    """A table of editors with one more class, which is at hand and need not be importable: one of a notebook, say."""

    def __init__(self, table: Registry[type[AnyEditor]], kind: type[AnyEditor]) -> None:
        super().__init__(table.kind, {name: table.origin(name) for name in table.names() if name != kind.name})
        self._one = kind
        # The same class may be there already, by an entry point; only another one of that name is refused.
        if kind.name in table and table.get(kind.name) is not kind:
            raise SpecError(
                f"an editor called '{kind.name}' is there already ({table.origin(kind.name)})",
                hint="give the class another name",
            )
        self.add(kind.name, f"{kind.__module__}:{kind.__qualname__}")

    def get(self, name: str) -> type[AnyEditor]:
        """Return the class called *name*."""
        return self._one if name == self._one.name else super().get(name)
