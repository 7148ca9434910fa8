"""One arm and one point → one closed trial: defaults filled in, digests taken, every mistake located."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysweep.config import hparams, limits
from raysweep.config.checks import missing_blocks, refusal
from raysweep.config.components import Components, ModelFacts
from raysweep.config.merge import Merged
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import from_error, from_validation, problem
from raysweep.config.schema import (
    ArmSpec,
    DataSpec,
    EditorSpec,
    FileSpec,
    ModelSpec,
    ProtocolSpec,
    Spec,
    SweepSpec,
    TextSpec,
    Threads,
    TrialSpec,
    WrapSpec,
)
from raysweep.config.selection import Row, Selection, first_few, select
from raysweep.config.space import Grid, Scalar, ValuePath
from raysweep.errors import DataError, Problem, RaysweepError, WrapError
from raysweep.evals.metrics import METRICS
from raysweep.hashing import canonical_json, file_digest
from raysweep.workspace import Workspace

P = TypeVar("P", bound=BaseModel)
Point = Mapping[str, Scalar]
_BLAME = {"E-DATA": ("data", "size"), "E-RECORD": ("data", "name"), "E-MODEL": ("model", "name")}


class _Plain(Spec):
    """The keys of a trial that stand alone."""

    seed: int = 0
    threads: Threads = 1


@dataclass(frozen=True, slots=True)
class _Target:
    """What an editor is configured for; None = not known, which was noted."""

    arm: ArmSpec
    point: Point
    model: ModelSpec | None
    facts: ModelFacts
    data: DataSpec | None


@dataclass(frozen=True, slots=True)
class _Data:
    """The data section of a trial.

    Attributes:
        spec: as written, with path and digest filled in where the file could be read.
        rows: of the file; None = it could not be read, or too few are left in it, which was noted.
        where: the file, for messages.
        count: of its rows; 0 = not known.
    """

    spec: DataSpec
    rows: Sequence[Row] | None
    where: str = ""
    count: int = 0


@dataclass(slots=True)
class Binder:
    """Binds points of one sweep; what it learns about files is asked once and kept for its own life.

    ``problems`` collects what :meth:`bind` found wrong; :meth:`bind` returns None where there was something. ``left_out`` holds,
    by arm, the rows that ``data.invalid: skip`` passed over.
    """

    sweep: SweepSpec
    workspace: Workspace
    components: Components
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, Selection] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def bind(self, arm: ArmSpec, point: Point) -> TrialSpec | None:
        """Return the trial of *point* in *arm*, or None after noting what is wrong."""
        before = len(self.problems)
        sections = {s: self._section(arm, point, s) for s in ("model", "data", "protocol")}
        model = None if self._unread(arm, "model") else self._model(sections["model"])
        facts = self._facts(model, sections["model"]) if model else None
        data = None if self._unread(arm, "data") else self._data(sections["data"])
        protocol = None if self._unread(arm, "protocol") else self._protocol(sections["protocol"])
        plain = self._plain(arm, point)
        known = data.spec if data and data.rows is not None else None
        editor = self._editor(_Target(arm, point, model, facts or ModelFacts(), known))
        study = self._study()
        if not (data and protocol and study):
            return None
        chosen = self._chosen(data, arm, editor, facts or ModelFacts(), sections["data"])
        plain = plain or _Plain()
        sound = model and facts and editor and len(self.problems) == before
        trial = TrialSpec.model_construct(
            study=self.sweep.study,
            model=model or ModelSpec(),
            data=chosen,
            editor=editor or EditorSpec(name=arm.editor.name),
            protocol=_with_rounds(protocol, chosen.size),
            seed=plain.seed,
            threads=plain.threads,
            versions=self._versions(editor, chosen.name, study) if editor else {},
        )
        fits = self._fits(trial, chosen.size or limits.LARGEST, study, sections)
        return trial if sound and fits else None

    def _unread(self, arm: ArmSpec, section: str) -> bool:
        """Tell whether the form of a *section* was so wrong that its defaults would only breed more complaints."""
        return section in self.sweep.unread and section not in arm.base

    def _section(self, arm: ArmSpec, point: Point, section: str) -> Merged:
        """Return one section of the trial: base, then arm, then point."""
        source = self.sweep.source
        merged = Merged(source.key(("base", section)), section=section)
        merged.put(self.sweep.base.get(section, {}), source, ("base", section))
        merged.put(arm.base.get(section, {}), source, ("arms", arm.name, section))
        self._put_points(merged, arm, point, f"{section}.")
        return merged

    def _put_points(self, merged: Merged, arm: ArmSpec, point: Point, prefix: str) -> None:
        names_first = sorted(point, key=lambda k: k != f"{prefix}name")
        for key in (k for k in names_first if k.startswith(prefix)):
            path = tuple(key.removeprefix(prefix).split("."))
            merged.put_at(path, point[key], self.sweep.source, self._written(arm, key, point[key]))

    def _written(self, arm: ArmSpec, key: str, value: Scalar) -> KeyPath:
        """Return where the domain of *key* was written; in a grid, where *value* was."""
        own = key in arm.space
        path: KeyPath = ("arms", arm.name, "space", key) if own else ("space", key)
        domain = arm.space.get(key, self.sweep.space.get(key))
        if isinstance(domain, Grid):
            for i, candidate in enumerate(domain.values):
                if candidate == value and type(candidate) is type(value):
                    return (*path, domain.kind, i)
        return path

    def _plain(self, arm: ArmSpec, point: Point) -> _Plain | None:
        source = self.sweep.source
        merged = Merged(source.key(("base",)))
        for tree, where in ((self.sweep.base, ("base",)), (arm.base, ("arms", arm.name))):
            merged.put({k: tree[k] for k in ("seed", "threads") if k in tree}, source, where)
        for key in ("seed", "threads"):
            if key in point:
                merged.put_at((key,), point[key], source, self._written(arm, key, point[key]))
        return self._validated(merged, _Plain, "base")

    def _validated(self, merged: Merged, spec: type[P], what: str) -> P | None:
        try:
            return spec.model_validate(merged.tree)
        except ValidationError as error:
            self.problems += from_validation(error, spec, what, merged.place)
            return None

    def _once(self, question: Any, ask: Callable[[], Any], place: Place) -> Any:
        """Return the answer to *question*, asking only the first time; None after noting why there is none."""
        if question not in self._kept:
            try:
                self._kept[question] = (ask(), None)
            except RaysweepError as error:
                self._kept[question] = (None, error)
            except (OSError, ValueError, RuntimeError) as error:  # a path that no file can have, say
                said = " ".join(str(error).split()) or type(error).__name__
                self._kept[question] = (
                    None,
                    DataError(f"cannot be looked up: {said}", hint="see what is written here"),
                )
        answer, complaint = self._kept[question]
        if complaint is not None:
            self.problems.append(from_error(complaint, place))
        return answer

    def _model(self, merged: Merged) -> ModelSpec | None:
        spec = self._validated(merged, ModelSpec, "model")
        if spec is None:
            return None
        place = merged.place(("path",) if spec.path else ("name",))
        found: ModelSpec | None = self._once(
            ("model", spec), lambda: self.components.model(spec, self.workspace), place
        )
        return found

    def _facts(self, model: ModelSpec, merged: Merged) -> ModelFacts | None:
        """Return what is known of *model* before it is loaded; None after noting why it cannot be used."""
        place = merged.place(("path",) if model.path else ("name",))
        question = ("facts", model.name, model.path, model.bos, model.trust_remote_code)
        found: ModelFacts | None = self._once(question, lambda: self.components.facts(model, self.workspace), place)
        return found

    def _protocol(self, merged: Merged) -> ProtocolSpec | None:
        """Return the protocol; without ``rounds`` its rounds are those at 0 and at the end, once the end is known."""
        spec = self._validated(merged, ProtocolSpec, "protocol")
        return spec.model_copy(update={"rounds": ()}) if spec and "rounds" not in merged.tree else spec

    def _data(self, merged: Merged) -> _Data | None:
        """Return the data section with path and digest filled in; None after noting that it is no data section."""
        spec = self._validated(merged, DataSpec, "data")
        if spec is None:
            return None
        return self._opened(spec, merged)

    def _opened(self, spec: DataSpec, merged: Merged) -> _Data:
        """Return what the file of *spec* holds."""
        place = merged.place(("path",) if spec.path else ("name",))
        facts = self._once(("data", spec.name, spec.path), lambda: self._data_facts(spec), place)
        if facts is None:
            return _Data(spec, None)
        path, count, digest, rows = facts
        spec = spec.model_copy(update={"path": path if spec.path else "", "digest": digest})
        where = path or spec.name
        if self._too_few(count, spec, merged, f"the {count} records"):
            return _Data(spec, None, where)
        return _Data(spec, rows, where, count)

    def _too_few(self, count: int, spec: DataSpec, merged: Merged, what: str) -> bool:
        """Tell whether *count* records are too few for *spec*, having noted it."""
        available = count - spec.skip
        if available >= max(spec.size, 1):
            return False
        left = f"data.skip = {spec.skip} leaves {max(0, available)} of {what} of '{spec.name}'"
        said = f"{left}, but data.size = {spec.size}" if spec.size else left
        place = merged.place(("size",) if spec.size and available > 0 else ("skip",))
        self.problems.append(problem(place, said, "lower them, or use a larger file", DataError.code))
        return True

    def _data_facts(self, spec: DataSpec) -> tuple[str, int, str, Sequence[Row]]:
        """Return where the data lie, how many rows there are, their digest, and the rows."""
        dataset = self.components.datasets.get(spec.name)()
        path = dataset.locate(spec, self.workspace)
        reading = dataset.read(path)
        return str(path or ""), dataset.count(path), dataset.digest(path), reading.every

    def _chosen(
        self, data: _Data, arm: ArmSpec, editor: EditorSpec | None, facts: ModelFacts, merged: Merged
    ) -> DataSpec:
        """Return the data section with ``size`` and ``left_out`` filled in, having noted the rows that cannot be used.

        Where nobody knows how many rows there are, ``size`` stays as written.
        """
        spec = data.spec
        if data.rows is None:
            return spec
        if spec.invalid == "refuse" and not spec.size:
            spec = spec.model_copy(update={"size": data.count - spec.skip})
        kind = self.components.editors.get(editor.name) if editor else None
        matters = editor is not None and (hasattr(kind, "record_error") or "contexts" in editor.config)
        config = canonical_json(editor.config) if editor and matters else ""
        question = ("rows", spec, editor and editor.name, config, facts.positions)
        if question not in self._kept:
            resolved = kind.config_type.model_validate(dict(editor.config)) if editor and kind else None
            self._kept[question] = select(data.rows, spec, refusal(kind, resolved, facts), data.where)
        found: Selection = self._kept[question]
        if spec.invalid == "refuse":
            self.problems += first_few(found.problems, data.where)
            return spec
        usable = spec.skip + len(found.records)
        if self._too_few(usable, spec, merged, f"the {usable} records that arm '{arm.name}' can use"):
            self.problems += first_few(found.reasons, data.where)
            return spec
        self.left_out[arm.name] = found
        return spec.model_copy(update={"size": len(found.records), "left_out": found.left_out})

    def _editor(self, target: _Target) -> EditorSpec | None:
        """Return the editor and its wrappers with every configuration key filled in."""
        editor = target.arm.editor
        where: KeyPath = ("arms", target.arm.name, "editor")
        kind = self._component("editors", editor.name, where)
        config = None if kind is None else self._config(kind, editor, where, "editor.", target)
        wraps: list[WrapSpec | None] = []
        for i in range(len(editor.wrap)):
            wraps.append(self._wrap(i, kind, target, wraps[-1] if wraps else None))
        sound = tuple(w for w in wraps if w is not None)
        if config is None or len(sound) < len(wraps):
            return None
        return EditorSpec(name=editor.name, config=config, wrap=sound)

    def _wrap(self, index: int, editor: Any, target: _Target, below: WrapSpec | None) -> WrapSpec | None:
        """Return wrapper number *index* with its configuration, having checked that it can wrap what is *below*."""
        arm, written = target.arm, target.arm.editor.wrap[index]
        where = self._wrap_path(arm, index)
        kind = self._component("wrappers", written.name, where)
        if kind is None:
            return None
        inner, given = self._inside(arm, index, editor, below)
        if given and given not in kind.accepts:
            wanted = " or ".join(kind.accepts)
            said = f"{written.name} cannot wrap '{inner}': it changes {given}, not {wanted}"
            hint = f"remove 'wrap: {written.name}', or wrap an editor whose patch is {wanted} (raysweep ls editors)"
            self.problems.append(problem(self.sweep.source.value(where), said, hint, WrapError.code))
        config = self._config(kind, written, where, f"wrap.{written.name}.", target)
        if config is None:
            return None
        why = kind.unfit(kind.config_type.model_validate(config), index > 0) if hasattr(kind, "unfit") else ""
        if why:
            said = f"{written.name} around '{inner}': {why}"
            hint = f"change its configuration, or remove 'wrap: {inner}'"
            self.problems.append(problem(self.sweep.source.value(where), said, hint, WrapError.code))
        return WrapSpec(name=written.name, config=config)

    def _inside(self, arm: ArmSpec, index: int, editor: Any, below: WrapSpec | None) -> tuple[str, str]:
        """Return the name of what wrapper number *index* wraps, and what that gives (empty = not known)."""
        if index == 0:
            return arm.editor.name, "" if editor is None else editor.patch_kind
        name = arm.editor.wrap[index - 1].name
        known = self._kept.get(("wrappers", name), (None, None))[0]
        if known is None or below is None:
            return name, ""
        gives = getattr(known, "gives", "weights")
        return name, gives(known.config_type.model_validate(below.config)) if callable(gives) else gives

    def _component(self, table: str, name: str, path: KeyPath) -> Any:
        source = self.sweep.source
        place = source.value((*path, "name"))
        return self._once((table, name), lambda: getattr(self.components, table).get(name), place)

    def _wrap_path(self, arm: ArmSpec, index: int) -> KeyPath:
        """Return where the wrapper number *index* of *arm* was written: ``wrap`` is one or a list."""
        listed: KeyPath = ("arms", arm.name, "wrap", index)
        return listed if listed in self.sweep.source.values else listed[:-1]

    def _config(
        self, kind: Any, written: EditorSpec | WrapSpec, where: KeyPath, prefix: str, target: _Target
    ) -> dict[str, Any] | None:
        """Return one component's configuration: class defaults, hparams file, arm, point.

        Without a model only what the arm and the point say is checked.
        """
        place, name, model = self.sweep.source.value(where), written.name, target.model
        defaults = self._defaults(name, model, place) if model else None
        merged = Merged(place)
        if defaults is not None:
            of = {"editor": target.arm.editor.name, "data": target.data.name if target.data else ""}
            for tree, path in hparams.layers(defaults, **of):
                merged.put(tree, defaults, path)
        merged.put(written.config, self.sweep.source, where)
        self._put_points(merged, target.arm, target.point, prefix)
        self._put_implied(merged, kind, written, where, prefix, target)
        try:
            config = kind.config_type.model_validate(merged.tree)
        except ValidationError as error:
            missing = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing"]
            ignore = "missing" if defaults is None else ""
            self.problems += from_validation(error, kind.config_type, f"'{name}'", merged.place, ignore=ignore)
            if missing and ignore and model:
                self.problems.append(self._no_hparams(name, model, missing, place))
            return None
        for path, said in missing_blocks(config, target.facts):
            hint = f"see hparams/{name}/ for the layers of other models" if defaults is None else ""
            self.problems.append(problem(merged.place(path), f"'{name}': {said}", hint))
        return self._with_texts(config, target.data, merged, kind) if target.data else None

    def _put_implied(
        self, merged: Merged, kind: Any, written: EditorSpec | WrapSpec, where: KeyPath, prefix: str, target: _Target
    ) -> None:  # fmt: skip
        """Set what a path of values implies, having noted where the arm or the point says otherwise."""
        arm, source = target.arm, self.sweep.source
        for key in (k for k in target.point if k.startswith(prefix)):
            if not isinstance(arm.space.get(key, self.sweep.space.get(key)), ValuePath):
                continue
            field = key.removeprefix(prefix)
            for name, value in getattr(kind, "path_implies", {}).get(field.partition(".")[0], {}).items():
                swept = target.point.get(f"{prefix}{name}", value)
                said = written.config.get(name, value)
                at = self._written(arm, key, target.point[key])
                if swept == said == value:
                    merged.put_at((name,), value, source, at)
                    continue
                place = self._written(arm, f"{prefix}{name}", swept) if swept != value else (*where, name)
                told = f"a path of '{field}' implies {name}: {value}, but here {name} is {swept if swept != value else said}"
                hint = f"remove '{name}', or write {field}: {{grid: […]}} for one run per value"
                self.problems.append(problem(source.value(place), told, hint))

    def _defaults(self, name: str, model: ModelSpec, place: Place) -> Source | None:
        """Return the hyper-parameter file of *name* on *model*; None without one, or after noting what is wrong."""
        question = ("hparams", name, hparams.stem(model))
        known = {"editor": self.components.editors, "data": self.components.datasets}
        found: Source | None = self._once(question, lambda: hparams.find(name, model, self.workspace, known), place)
        return found

    def _no_hparams(self, name: str, model: ModelSpec, missing: list[str], place: Place) -> Problem:
        files = ", ".join(self.workspace.hparams(name)) or "(none)"
        wanted = f"hparams/{name}/{hparams.stem(model)}.yaml"
        hint = f"write {wanted}, or give {', '.join(missing)} in the arm, or model.hparams; files of '{name}': {files}"
        return problem(place, f"'{name}' has no hyper-parameters for model '{model.name}': {wanted} is missing", hint)

    def _with_texts(self, config: Spec, data: DataSpec, merged: Merged, kind: Any) -> dict[str, Any] | None:
        """Return *config*, the configuration of *kind*, as plain data, with the digest of every text it names."""
        before = len(self.problems)
        resolved = self._texts(config, data, merged, (), kind)
        return resolved.model_dump(mode="json") if len(self.problems) == before else None

    def _texts(self, value: Any, data: DataSpec, merged: Merged, path: KeyPath, kind: Any) -> Any:
        if isinstance(value, TextSpec):
            question = ("text", value, data.digest, data.path, data.name)
            ask = lambda: self.components.text(value, data, self.workspace)  # noqa: E731
            place = merged.place((*path, "path" if value.path else "name"))
            return self._once(question, ask, place) or value
        if isinstance(value, FileSpec):
            return self._file(value, merged.place((*path, "path"))) if value.path else value
        if isinstance(value, DataSpec):
            return self._fold(value, data, merged.place(path), kind) or value
        if isinstance(value, tuple):
            return tuple(self._texts(v, data, merged, (*path, i), kind) for i, v in enumerate(value))
        if isinstance(value, BaseModel):
            below = {k: getattr(value, k) for k in type(value).model_fields}
            return value.model_copy(
                update={k: self._texts(v, data, merged, (*path, k), kind) for k, v in below.items()}
            )
        return value

    def _file(self, value: FileSpec, place: Place) -> FileSpec:
        """Return *value* with its path made absolute and its digest filled in."""
        where = self.workspace.resolve(value.path)

        def digest() -> str:
            if not where.is_file():
                raise DataError(
                    f"file '{value.path}' does not exist ({where})", hint="make or copy it, or leave it out"
                )
            return file_digest(where)

        found = self._once(("file", where), digest, place)
        return value.model_copy(update={"path": str(where), "digest": found or ""})

    def _fold(self, value: DataSpec, data: DataSpec, place: Place, kind: Any) -> DataSpec | None:
        """Return the data that component *kind* itself reads, with digest and size filled in; None after noting what is wrong.

        Without a path of its own it is read from the trial's file if it is of the same dataset.
        """
        if not value.path and value.name == data.name:
            value = value.model_copy(update={"path": data.path})
        facts = self._once(("data", value.name, value.path), lambda: self._data_facts(value), place)
        if facts is None:
            return None
        path, count, digest, rows = facts
        found = select(rows, value, lambda record: None, path or value.name)
        left = count - value.skip if value.invalid == "refuse" else len(found.records)
        if left < max(value.size, 1):
            said = f"'{value.name}' has {count} records, too few for size = {value.size} after skip = {value.skip}"
            self.problems.append(problem(place, said, "lower them, or use a larger file", DataError.code))
            return None
        self.problems += first_few(found.problems, path or value.name)
        error = kind.fold_error(found.records) if hasattr(kind, "fold_error") and found.records else None
        if error is not None:
            self.problems.append(from_error(error, place))
        resolved = {"path": path if value.path else "", "digest": digest, "size": value.size or left}
        return value.model_copy(update={**resolved, "left_out": found.left_out})

    def _study(self) -> Any:
        """Return the study's class, or None after noting that there is none of its name."""
        name = self.sweep.study
        place = self.sweep.source.value(("study",))
        return self._once(("studies", name), lambda: self.components.studies.get(name), place)

    def _versions(self, editor: EditorSpec, data: str, study: Any) -> dict[str, int]:
        """Return the version of every component the trial names."""
        have = self.components
        named = {
            f"editor/{editor.name}": have.editors.get(editor.name),
            **{f"wrapper/{w.name}": have.wrappers.get(w.name) for w in editor.wrap},
            f"dataset/{data}": have.datasets.get(data),
            f"study/{self.sweep.study}": study,
            "protocol": ProtocolSpec,
            **{f"metric/{name}": metric for name, metric in METRICS.items()},
        }
        return {name: component.version for name, component in sorted(named.items())}

    def _fits(self, trial: TrialSpec, available: int, study: Any, sections: Mapping[str, Merged]) -> bool:
        """Tell whether the study accepts *trial*, noting what it does not."""
        found: list[Problem] = study().check(trial, available)
        for one in found:
            section, key = _BLAME.get(one.code, ("protocol", "rounds"))
            place = sections[section].place((key,))
            self.problems.append(one if one.file else problem(place, one.message, one.hint, one.code))
        return not found


def _with_rounds(protocol: ProtocolSpec, size: int) -> ProtocolSpec:
    """Return *protocol* with the rounds it does not name: before the first edit, and after the last whole batch."""
    if protocol.rounds:
        return protocol
    last = size - size % protocol.batch_size
    return protocol.model_copy(update={"rounds": (0, last) if last else (0,)})
