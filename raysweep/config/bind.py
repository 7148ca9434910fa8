"""One arm and one point → one closed trial: defaults filled in, digests taken, every mistake located."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysweep.artifacts import VERSIONS as ARTIFACTS
from raysweep.config import hparams, rows
from raysweep.config.components import Components
from raysweep.config.merge import Merged
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import from_error, from_validation, problem
from raysweep.config.schema import (
    ArmSpec,
    Count,
    DataSpec,
    EditorSpec,
    FileSpec,
    ModelSpec,
    ProtocolSpec,
    Spec,
    SweepSpec,
    TextSpec,
    TrialSpec,
    WrapSpec,
)
from raysweep.config.space import Grid, Scalar, ValuePath
from raysweep.errors import DataError, ModelError, Problem, RaysweepError, WrapError
from raysweep.evals.metrics import METRICS
from raysweep.hashing import file_digest
from raysweep.workspace import Workspace

P = TypeVar("P", bound=BaseModel)
Point = Mapping[str, Scalar]
_BLAME = {"E-DATA": ("data", "size"), "E-RECORD": ("data", "name"), "E-MODEL": ("model", "name")}


class _Plain(Spec):
    """The keys of a trial that stand alone."""

    seed: int = 0
    threads: Count = 1


@dataclass(frozen=True, slots=True)
class _Target:
    """What an editor is configured for; None = not known, which was noted."""

    arm: ArmSpec
    point: Point
    model: ModelSpec | None
    data: DataSpec | None


@dataclass(slots=True)
class Binder:
    """Binds points of one sweep; what it learns about files is asked once and kept for its own life.

    ``problems`` collects what :meth:`bind` found wrong; :meth:`bind` returns None where there was something.
    """

    sweep: SweepSpec
    workspace: Workspace
    components: Components
    problems: list[Problem] = field(default_factory=list)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def bind(self, arm: ArmSpec, point: Point) -> TrialSpec | None:
        """Return the trial of *point* in *arm*, or None after noting what is wrong."""
        before = len(self.problems)
        sections = {s: self._section(arm, point, s) for s in ("model", "data", "protocol")}
        model = self._model(sections["model"])
        data, available = self._data(sections["data"])
        protocol = self._validated(sections["protocol"], ProtocolSpec, "protocol")
        plain = self._plain(arm, point)
        editor = self._editor(_Target(arm, point, model, data))
        study = self._study()
        if model and data and editor:
            self._check_rows(model, data, editor, sections["model"])
        if not (data and protocol and study):
            return None
        plain = plain or _Plain()
        sound = model and editor and len(self.problems) == before
        trial = TrialSpec.model_construct(
            study=self.sweep.study,
            model=model or ModelSpec(),
            data=data,
            editor=editor or EditorSpec(name=arm.editor.name),
            protocol=protocol,
            seed=plain.seed,
            threads=plain.threads,
            versions=self._versions(editor, data.name, study) if editor else {},
            environment=dict(self.components.environment),
        )
        fits = self._fits(trial, available, study, sections)
        return trial if sound and fits else None

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

    def _data(self, merged: Merged) -> tuple[DataSpec | None, int]:
        """Return the data with digest and size filled in, and how many records there are from ``skip`` on."""
        spec = self._validated(merged, DataSpec, "data")
        if spec is None:
            return None, 0
        place = merged.place(("path",) if spec.path else ("name",))
        facts = self._once(("data", spec.name, spec.path), lambda: self._data_facts(spec), place)
        if facts is None:
            return None, 0
        path, count, digest = facts
        available = count - spec.skip
        if available < max(spec.size, 1):
            left = f"data.skip = {spec.skip} leaves {max(0, available)} of the {count} records of '{spec.name}'"
            said = f"{left}, but data.size = {spec.size}" if spec.size else left
            place = merged.place(("size",) if spec.size and available > 0 else ("skip",))
            self.problems.append(problem(place, said, "lower them, or use a larger file", DataError.code))
            return None, 0
        where = path if spec.path else ""
        return spec.model_copy(update={"path": where, "digest": digest, "size": spec.size or available}), available

    def _data_facts(self, spec: DataSpec) -> tuple[str, int, str]:
        """Return where the data lie, how many records there are, and their digest; note what is wrong with a record."""
        dataset = self.components.datasets.get(spec.name)()
        path = dataset.locate(spec, self.workspace)
        self.problems.extend(dataset.read(path).problems)
        return str(path or ""), dataset.count(path), dataset.digest(path)

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
        return self._with_texts(config, target.data, merged) if target.data else None

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

    def _with_texts(self, config: Spec, data: DataSpec, merged: Merged) -> dict[str, Any] | None:
        """Return *config* as plain data, with the digest of every text it names."""
        before = len(self.problems)
        resolved = self._texts(config, data, merged, ())
        return resolved.model_dump(mode="json") if len(self.problems) == before else None

    def _texts(self, value: Any, data: DataSpec, merged: Merged, path: KeyPath) -> Any:
        if isinstance(value, TextSpec):
            question = ("text", value, data.digest, data.path, data.name)
            ask = lambda: self.components.text(value, data, self.workspace)  # noqa: E731
            place = merged.place((*path, "path" if value.path else "name"))
            return self._once(question, ask, place) or value
        if isinstance(value, FileSpec):
            return self._file(value, merged.place((*path, "path"))) if value.path else value
        if isinstance(value, DataSpec):
            return self._fold(value, data, merged.place(path)) or value
        if isinstance(value, tuple):
            return tuple(self._texts(v, data, merged, (*path, i)) for i, v in enumerate(value))
        if isinstance(value, BaseModel):
            below = {k: getattr(value, k) for k in type(value).model_fields}
            return value.model_copy(update={k: self._texts(v, data, merged, (*path, k)) for k, v in below.items()})
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

    def _fold(self, value: DataSpec, data: DataSpec, place: Place) -> DataSpec | None:
        """Return the data a component itself reads, with digest and size filled in; None after noting what is wrong.

        Without a path of its own it is read from the trial's file if it is of the same dataset.
        """
        if not value.path and value.name == data.name:
            value = value.model_copy(update={"path": data.path})
        facts = self._once(("data", value.name, value.path), lambda: self._data_facts(value), place)
        if facts is None:
            return None
        path, count, digest = facts
        left = count - value.skip
        if left < max(value.size, 1):
            said = f"'{value.name}' has {count} records, too few for size = {value.size} after skip = {value.skip}"
            self.problems.append(problem(place, said, "lower them, or use a larger file", DataError.code))
            return None
        return value.model_copy(
            update={"path": path if value.path else "", "digest": digest, "size": value.size or left}
        )

    def _check_rows(self, model: ModelSpec, data: DataSpec, editor: EditorSpec, merged: Merged) -> None:
        """Note what may be longer than the model's rows can be (`rope_type` dynamic and longrope)."""
        place = merged.place(("path",) if model.path else ("name",))
        ask = lambda: self.components.row_limit(model, self.workspace)  # noqa: E731
        limit = self._once(("rows", model.name, model.path), ask, place)
        if limit is None:
            return
        longest = self._once(("longest", data), lambda: self._longest(data), place) or (0, "")
        for said, hint in rows.refusals(model.name, limit, data.name, longest, editor):
            self.problems.append(problem(place, said, hint, ModelError.code))

    def _longest(self, data: DataSpec) -> tuple[int, str]:
        """Return the most tokens that a text of the chosen records may have, and the record."""
        dataset = self.components.datasets.get(data.name)()
        records = dataset.read(dataset.locate(data, self.workspace)).records
        return rows.longest_text(records[data.skip : data.skip + data.size])

    def _study(self) -> Any:
        """Return the study's class, or None after noting that there is none of its name."""
        name = self.sweep.study
        place = self.sweep.source.value(("study",))
        return self._once(("studies", name), lambda: self.components.studies.get(name), place)

    def _versions(self, editor: EditorSpec, data: str, study: Any) -> dict[str, int]:
        """Return the version of every component the trial names, and of the artifacts they may ask for."""
        have = self.components
        named = {
            f"editor/{editor.name}": have.editors.get(editor.name),
            **{f"wrapper/{w.name}": have.wrappers.get(w.name) for w in editor.wrap},
            f"dataset/{data}": have.datasets.get(data),
            f"study/{self.sweep.study}": study,
            "protocol": ProtocolSpec,
            **{f"metric/{name}": metric for name, metric in METRICS.items()},
        }
        kinds = {kind for component in named.values() for kind in getattr(component, "artifacts", ())}
        versions = {name: component.version for name, component in named.items()}
        versions |= {f"artifact/{kind}": ARTIFACTS[kind] for kind in kinds}
        return dict(sorted(versions.items()))

    def _fits(self, trial: TrialSpec, available: int, study: Any, sections: Mapping[str, Merged]) -> bool:
        """Tell whether the study accepts *trial*, noting what it does not."""
        found: list[Problem] = study().check(trial, available)
        for one in found:
            section, key = _BLAME.get(one.code, ("protocol", "rounds"))
            place = sections[section].place((key,))
            self.problems.append(one if one.file else problem(place, one.message, one.hint, one.code))
        return not found
