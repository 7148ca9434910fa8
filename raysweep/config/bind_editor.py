"""The editor of a trial and its wrappers: defaults filled in, files read, digests taken, every mistake located."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from raysweep.config import hparams
from raysweep.config.checks import missing_blocks
from raysweep.config.components import ModelFacts
from raysweep.config.editor_schema import EditorConfig, EditorSpec, WrapSpec
from raysweep.config.lookups import Lookups, Point
from raysweep.config.merge import MergedTree
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import from_error, from_validation
from raysweep.config.schema import DataSpec, FileSpec, ModelSpec, TextSpec
from raysweep.config.selection import first_few, select
from raysweep.config.space import ValuePath
from raysweep.config.sweep_schema import ArmSpec, WrittenComponent
from raysweep.config.theirs import reading as theirs
from raysweep.config.theirs.rules import Table
from raysweep.config.values import Spec
from raysweep.errors import DataError, WrapError
from raysweep.hashing import file_digest
from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor

EditorT = TypeVar("EditorT", bound="AnyEditor")
SpecT = TypeVar("SpecT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Target:
    """What an editor is configured for; None = not known, which was noted."""

    arm: ArmSpec
    point: Point
    model: ModelSpec | None
    facts: ModelFacts
    data: DataSpec | None


@dataclass(slots=True)
class EditorBinder:
    """Fills in the configuration of an editor and of the wrappers around it."""

    lookups: Lookups

    def editor(self, target: Target) -> EditorSpec | None:
        """Return the editor and its wrappers with every configuration key filled in."""
        editor = target.arm.editor
        where: KeyPath = ("arms", target.arm.name, "editor")
        kind = self._component(self.lookups.components.editors, "editors", editor.name, where)
        config = None if kind is None else self._config(kind, editor, where, "editor.", target)
        wraps: list[WrapSpec | None] = []
        for i in range(len(editor.wrap)):
            # From the inside out: what a wrapper may wrap depends on the one below it.
            wraps.append(self._wrap(i, kind, target, wraps[-1] if wraps else None))
        sound = tuple(w for w in wraps if w is not None)
        if config is None or len(sound) < len(wraps):
            return None
        return EditorSpec(name=editor.name, config=config, wrap=sound)

    def _wrap(
        self, index: int, editor: type[AnyEditor] | None, target: Target, below: WrapSpec | None
    ) -> WrapSpec | None:
        """Return wrapper number *index* with its configuration, having checked that it can wrap what is *below*."""
        arm, written = target.arm, target.arm.editor.wrap[index]
        where = self._wrap_path(arm, index)
        kind = self._component(self.lookups.components.wrappers, "wrappers", written.name, where)
        if kind is None:
            return None
        inner, given = self._wrapped_component(arm, index, editor, below)
        if given and given not in kind.accepts:
            accepted = " or ".join(kind.accepts)
            message = f"{written.name} cannot wrap '{inner}': it changes {given}, not {accepted}"
            hint = f"remove 'wrap: {written.name}', or wrap an editor whose patch is {accepted} (raysweep ls editors)"
            self.lookups.note(self.lookups.sweep.source.value(where), message, hint, WrapError.code)
        config = self._config(kind, written, where, f"wrap.{written.name}.", target)
        if config is None:
            return None
        why = kind.incompatible_with(config, wrapped=index > 0)
        if why:
            message = f"{written.name} around '{inner}': {why}"
            hint = f"change its configuration, or remove 'wrap: {inner}'"
            self.lookups.note(self.lookups.sweep.source.value(where), message, hint, WrapError.code)
        return WrapSpec(name=written.name, config=config)

    def _wrapped_component(
        self, arm: ArmSpec, index: int, editor: type[AnyEditor] | None, below: WrapSpec | None
    ) -> tuple[str, str]:
        """Return the name of what wrapper number *index* wraps, and what that gives (empty = not known)."""
        if index == 0:
            return arm.editor.name, "" if editor is None else editor.patch_kind
        name = arm.editor.wrap[index - 1].name
        # A wrapper that was bound is a known one.
        return name, "" if below is None else self.lookups.components.wrappers.get(name).output_kind(below.config)

    def _component(self, table: Registry[type[EditorT]], what: str, name: str, path: KeyPath) -> type[EditorT] | None:
        """Return the class called *name* of a *table*; None after noting that there is none."""
        place = self.lookups.sweep.source.value((*path, "name"))
        return self.lookups.ask_once((what, name), lambda: table.get(name), place)

    def _wrap_path(self, arm: ArmSpec, index: int) -> KeyPath:
        """Return where the wrapper number *index* of *arm* was written: ``wrap`` is one or a list."""
        listed: KeyPath = ("arms", arm.name, "wrap", index)
        return listed if listed in self.lookups.sweep.source.values else listed[:-1]

    def _config(
        self, kind: type[AnyEditor], written: WrittenComponent, where: KeyPath, prefix: str, target: Target
    ) -> EditorConfig | None:
        """Return one component's configuration: class defaults, hparams file, arm, point.

        Without a model only what the arm and the point say is checked.
        """
        place, name, model = self.lookups.sweep.source.value(where), written.name, target.model
        # Layers, each over the ones before: class defaults, the model's hparams file, the arm, the point.
        before = len(self.lookups.problems)
        if written.file is not None:
            defaults: Source | None = self._given(written.file, name, kind.config_type.theirs, target)
        else:
            defaults = self._defaults(name, model, place) if model else None
        merged = MergedTree(place)
        if defaults is not None:
            of = {"editor": target.arm.editor.name, "data": target.data.name if target.data else ""}
            for tree, path in hparams.layers(defaults, **of):
                merged.put(tree, defaults, path)
        merged.put(written.config, self.lookups.sweep.source, where)
        self.lookups.put_points(merged, target.arm, target.point, prefix)
        self._put_implied(merged, kind, written, where, prefix, target)
        try:
            config = kind.config_type.model_validate(merged.tree)
        except ValidationError as error:
            missing = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing"]
            # A key that the given file says, but not so that it can be read, is not missing.
            unread = written.file is not None and len(self.lookups.problems) > before
            ignore = "missing" if defaults is None or unread else ""
            self.lookups.problems += from_validation(error, kind.config_type, f"'{name}'", merged.place, ignore=ignore)
            if missing and defaults is None and model:
                self._no_hparams(name, model, missing, place)
            return None
        for path, message in missing_blocks(config, target.facts):
            hint = f"see hparams/{name}/ for the layers of other models" if defaults is None else ""
            self.lookups.note(merged.place(path), f"'{name}': {message}", hint)
        return self._with_texts(config, target.data, merged, kind) if target.data else None

    def _put_implied(
        self, merged: MergedTree, kind: type[AnyEditor], written: WrittenComponent, where: KeyPath, prefix: str,
        target: Target,
    ) -> None:  # fmt: skip
        """Set what a path of values implies, having noted where the arm or the point says otherwise."""
        arm, source = target.arm, self.lookups.sweep.source
        for key in (k for k in target.point if k.startswith(prefix)):
            # Only a path implies other values (SimIE's closed form, say); a grid runs each value by itself.
            if not isinstance(arm.space.get(key, self.lookups.sweep.space.get(key)), ValuePath):
                continue
            field = key.removeprefix(prefix)
            for name, value in kind.shareable.get(field.partition(".")[0], {}).items():
                swept = target.point.get(f"{prefix}{name}", value)
                stated = written.config.get(name, value)
                at = self.lookups.written(arm, key, target.point[key])
                if swept == stated == value:
                    merged.put_at((name,), value, source, at)
                    continue
                place = self.lookups.written(arm, f"{prefix}{name}", swept) if swept != value else (*where, name)
                message = f"a path of '{field}' implies {name}: {value}, but here {name} is {swept if swept != value else stated}"
                hint = f"remove '{name}', or write {field}: {{grid: […]}} for one run per value"
                self.lookups.note(source.value(place), message, hint)

    def _defaults(self, name: str, model: ModelSpec, place: Place) -> Source | None:
        """Return the hyper-parameter file of *name* on *model*; None without one, or after noting what is wrong."""
        question = ("hparams", name, hparams.stem(model))
        known = {"editor": self.lookups.components.editors, "data": self.lookups.components.datasets}
        defaults: Source | None = self.lookups.ask_once(
            question, lambda: hparams.find(name, model, self.lookups.workspace, known), place
        )
        return defaults

    def _given(self, file: Source, name: str, table: Table, target: Target) -> Source:
        """Return what the *file* that an arm names says of component *name*, having noted what is wrong with it.

        What becomes of another program's keys is in *table*.
        """
        tree = file.tree if isinstance(file.tree, dict) else {}
        if not theirs.is_theirs(tree):
            return hparams.without_remarks(file)
        reading = self.lookups.ask_once(
            ("file", file.file, name, target.facts.blocks),
            lambda: theirs.read(file, name, table, target.facts),
            file.value(()),
        )
        assert reading is not None  # it raises nothing
        self.lookups.problems += reading.problems
        self.lookups.notes.setdefault(theirs.about(file, reading, target.model))
        return reading.source

    def _no_hparams(self, name: str, model: ModelSpec, missing: list[str], place: Place) -> None:
        """Note that *name* lacks values on *model*, and where they could stand."""
        files = ", ".join(self.lookups.workspace.hparams(name)) or "(none)"
        missing_file = f"hparams/{name}/{hparams.stem(model)}.yaml"
        hint = f"write {missing_file}, or give {', '.join(missing)} in the arm, or model.hparams; files of '{name}': {files}"
        message = f"'{name}' has no hyper-parameters for model '{model.name}': {missing_file} is missing"
        self.lookups.note(place, message, hint)

    def _with_texts(
        self, config: EditorConfig, data: DataSpec, merged: MergedTree, kind: type[AnyEditor]
    ) -> EditorConfig | None:
        """Return *config*, the configuration of *kind*, with the digest of every text it names."""
        before = len(self.lookups.problems)
        resolved = self._filled(config, data, merged, (), kind)
        return resolved if len(self.lookups.problems) == before else None

    def _filled(self, spec: SpecT, data: DataSpec, merged: MergedTree, path: KeyPath, kind: type[AnyEditor]) -> SpecT:
        """Return *spec*, found at *path* of a configuration, with the digests of all texts, files and data below it."""
        idle = spec.idle_fields() if isinstance(spec, Spec) else frozenset()
        below = {k: getattr(spec, k) for k in type(spec).model_fields if k not in idle}
        # model_copy: each part was validated, and what is filled in (paths, digests, sizes) comes from the files themselves.
        return spec.model_copy(update={k: self._texts(v, data, merged, (*path, k), kind) for k, v in below.items()})

    def _texts(self, value: object, data: DataSpec, merged: MergedTree, path: KeyPath, kind: type[AnyEditor]) -> object:
        if isinstance(value, TextSpec):
            question = ("text", value, data.digest, data.path, data.name)
            ask = lambda: self.lookups.components.text(value, data, self.lookups.workspace)  # noqa: E731
            place = merged.place((*path, "path" if value.path else "name"))
            return self.lookups.ask_once(question, ask, place) or value
        if isinstance(value, FileSpec):
            return self._file(value, merged.place((*path, "path"))) if value.path else value
        if isinstance(value, DataSpec):
            return self._training_split(value, data, merged.place(path), kind) or value
        if isinstance(value, tuple):
            return tuple(self._texts(v, data, merged, (*path, i), kind) for i, v in enumerate(value))
        if isinstance(value, BaseModel):
            return self._filled(value, data, merged, path, kind)
        return value

    def _file(self, value: FileSpec, place: Place) -> FileSpec:
        """Return *value* with its path made absolute and its digest filled in."""

        def ask() -> tuple[str, str]:
            where = self.lookups.workspace.resolve(value.path)
            if not where.is_file():
                raise DataError(
                    f"file '{value.path}' does not exist ({where})", hint="make or copy it, or leave it out"
                )
            return str(where), file_digest(where)

        read: tuple[str, str] | None = self.lookups.ask_once(("file", value.path), ask, place)
        return value if read is None else value.model_copy(update={"path": read[0], "digest": read[1]})

    def _training_split(self, value: DataSpec, data: DataSpec, place: Place, kind: type[AnyEditor]) -> DataSpec | None:
        """Return the data that component *kind* itself reads, with digest and size filled in; None after noting what is wrong.

        Without a path of its own it is read from the trial's file if it is of the same dataset.
        """
        # A training split of the trial's own dataset comes from the trial's own file.
        if not value.path and value.name == data.name:
            value = value.model_copy(update={"path": data.path})
        facts = self.lookups.data(value, place)
        if facts is None:
            return None
        rows, where = facts.rows, facts.path or value.name
        selection = self.lookups.ask_once(
            ("training split", value), lambda: select(rows, value, lambda record: None, where), place
        )
        if selection is None:
            return None
        left = facts.count - value.skip if value.invalid == "refuse" else len(selection.records)
        if left < max(value.size, 1):
            message = (
                f"'{value.name}' has {facts.count} records, too few for size = {value.size} after skip = {value.skip}"
            )
            self.lookups.note(place, message, "lower them, or use a larger file", DataError.code)
            return None
        self.lookups.problems += first_few(selection.problems, where)
        error = kind.train_split_error(selection.records) if selection.records else None
        if error is not None:
            self.lookups.problems.append(from_error(error, place))
        resolved = {"path": facts.path if value.path else "", "digest": facts.digest, "size": value.size or left}
        return value.model_copy(update={**resolved, "left_out": selection.left_out})
