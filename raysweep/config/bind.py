"""One arm and one point → one closed trial: defaults filled in, digests taken, every mistake located."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysweep.artifact_kinds import VERSIONS as ARTIFACTS
from raysweep.config import limits, rows, selection
from raysweep.config.bind_data import DataBinder
from raysweep.config.bind_editor import EditorBinder, Target
from raysweep.config.checks import unfit
from raysweep.config.components import Components, ModelFacts
from raysweep.config.editor_schema import EditorConfig
from raysweep.config.lookups import Lookups
from raysweep.config.lookups import Point as Point
from raysweep.config.merge import MergedTree
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, Spec, Threads, TrialSpec
from raysweep.config.selection import Selection
from raysweep.config.sweep_schema import ArmSpec, SweepSpec
from raysweep.errors import ModelError, Problem
from raysweep.measures import DRIFT_VERSION
from raysweep.metrics import metric_of
from raysweep.protocols import PROTOCOLS
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.studies.base import Study

_BLAME = {"E-DATA": ("data", "size"), "E-RECORD": ("data", "name"), "E-MODEL": ("model", "name")}


class _SeedAndThreads(Spec):
    """The keys of a trial that stand alone."""

    seed: int = 0
    threads: Threads = 1


class Binder:
    """Binds points of one sweep; what it learns about files is asked once and kept for its own life.

    ``problems`` collects what :meth:`bind` found wrong; :meth:`bind` returns None where there was something. ``left_out`` holds,
    by arm, the rows that ``data.invalid: skip`` passed over.
    """

    def __init__(self, sweep: SweepSpec, workspace: Workspace, components: Components) -> None:
        self.sweep, self.workspace, self.components = sweep, workspace, components
        self._lookups = Lookups(sweep, workspace, components)
        self._data, self._editor = DataBinder(self._lookups), EditorBinder(self._lookups)

    @property
    def problems(self) -> list[Problem]:
        """What was found wrong so far."""
        return self._lookups.problems

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader should know, though it is no mistake."""
        return tuple(self._lookups.notes)

    @property
    def left_out(self) -> Mapping[str, Selection]:
        """The rows that were skipped, by arm."""
        return self._data.left_out

    def bind(self, arm: ArmSpec, point: Point) -> TrialSpec | None:
        """Return the trial of *point* in *arm*, or None after noting what is wrong."""
        before = len(self.problems)
        sections = {s: self._lookups.section(arm, point, s) for s in ("model", "data", "protocol")}
        # Every section is read although an earlier one was wrong: a plan reports all mistakes at once.
        model, facts = (None, None) if self._unread(arm, "model") else self._model(sections["model"])
        data = None if self._unread(arm, "data") else self._data.open(sections["data"])
        protocol = None if self._unread(arm, "protocol") else self._protocol(sections["protocol"])
        plain = self._seed_and_threads(arm, point)
        known = data.spec if data and data.rows is not None else None
        editor = self._editor.editor(Target(arm, point, model, facts or ModelFacts(), known))
        study = self._study()
        if not (data and protocol and study):
            return None
        chosen = self._data.choose(data, arm, editor, facts or ModelFacts(), sections["data"])
        chosen = self._with_template(chosen, model, study, sections["data"])
        plain = plain or _SeedAndThreads()
        if model and facts and editor and data.rows is not None:
            self._check_rows(model, chosen, editor, sections["model"])
        if facts and editor:
            self._check_layout(facts, editor, sections["model"])
        if model and editor and model.devices > 1:
            self._check_devices(model, editor, sections["model"])
        sound = model and facts and editor and len(self.problems) == before
        # model_construct: each part was validated above, and some may be stand-ins for what was not.
        trial = TrialSpec.model_construct(
            study=self.sweep.study,
            model=model or ModelSpec(),
            data=chosen,
            editor=editor or EditorSpec.model_construct(name=arm.editor.name, config=EditorConfig(), wrap=()),
            protocol=_with_rounds(protocol, chosen.size),
            seed=plain.seed,
            threads=plain.threads,
            versions=self._versions(editor, model or ModelSpec(), chosen.name, study, protocol) if editor else {},
            environment=dict(self.components.environment),
        )
        if protocol.also or protocol.drift:
            self._check_further(protocol, study, chosen, sections["protocol"])
            sound = sound and len(self.problems) == before
        fits = self._check_study(trial, chosen.size or limits.LARGEST, study, sections)
        return trial if sound and fits else None

    def _unread(self, arm: ArmSpec, section: str) -> bool:
        """Tell whether the form of a *section* was so wrong that its defaults would only breed more complaints."""
        return section in self.sweep.unread and section not in arm.base

    def _seed_and_threads(self, arm: ArmSpec, point: Point) -> _SeedAndThreads | None:
        source = self.sweep.source
        merged = MergedTree(source.key(("base",)))
        for tree, where in ((self.sweep.base, ("base",)), (arm.base, ("arms", arm.name))):
            merged.put({k: tree[k] for k in ("seed", "threads") if k in tree}, source, where)
        for key in ("seed", "threads"):
            if key in point:
                merged.put_at((key,), point[key], source, self._lookups.written(arm, key, point[key]))
        return self._lookups.validated(merged, _SeedAndThreads, "base")

    def _model(self, merged: MergedTree) -> tuple[ModelSpec | None, ModelFacts | None]:
        """Return the model with its digests, and what is known of it before it is loaded; None after noting what is wrong.

        The facts are asked first: they say in one sentence what opening a tokenizer or a configuration would stumble over.
        """
        spec = self._lookups.validated(merged, ModelSpec, "model")
        if spec is None:
            return None, None
        place = merged.place(("path",) if spec.path else ("name",))
        question = ("facts", spec.name, spec.path, spec.bos, spec.trust_remote_code)
        facts: ModelFacts | None = self._lookups.ask_once(
            question, lambda: self.components.facts(spec, self.workspace), place
        )
        if facts is None:
            return None, None
        with_digests: ModelSpec | None = self._lookups.ask_once(
            ("model", spec), lambda: self.components.model(spec, self.workspace), place
        )
        return with_digests, facts

    def _protocol(self, merged: MergedTree) -> ProtocolSpec | None:
        """Return the protocol; without ``rounds`` its rounds are those at 0 and at the end, once the end is known."""
        spec = self._lookups.validated(merged, ProtocolSpec, "protocol")
        if spec and spec.measured_by:
            hint = "leave it out: raysweep import says it of what another program measured"
            self._lookups.note(merged.place(("measured_by",)), "protocol.measured_by cannot be set", hint)
        return spec.model_copy(update={"rounds": ()}) if spec and "rounds" not in merged.tree else spec

    def _with_template(
        self, data: DataSpec, model: ModelSpec | None, study: type[Study], merged: MergedTree
    ) -> DataSpec:
        """Return the data section with the digest of the chat template that its prompts are put into."""
        if data.prompt != "chat":
            return data
        place = merged.place(("prompt",))
        if not study.takes_chat:
            self._lookups.note(place, f"data.prompt: chat, but the study '{study.name}' has prompts of its own")
        if model is None:
            return data
        found: str | None = self._lookups.ask_once(
            ("chat", model), lambda: self.components.chat(model, self.workspace), place
        )
        return data.model_copy(update={"template": found or ""})

    def _check_rows(self, model: ModelSpec, data: DataSpec, editor: EditorSpec, merged: MergedTree) -> None:
        """Note what may be longer than the model's rows can be (`rope_type` dynamic and longrope)."""
        place = merged.place(("path",) if model.path else ("name",))
        ask = lambda: self.components.row_limit(model, self.workspace)  # noqa: E731
        # Only models whose position embedding depends on the length of the row have such a limit.
        limit = self._lookups.ask_once(("limit", model.name, model.path), ask, place)
        if limit is None:
            return
        longest = self._lookups.ask_once(("longest", data), lambda: self._longest(data), place) or (0, "")
        for message, hint in rows.refusals(model.name, limit, data.name, longest, editor):
            self._lookups.note(place, message, hint, ModelError.code)

    def _check_layout(self, facts: ModelFacts, editor: EditorSpec, merged: MergedTree) -> None:
        """Note that the editor needs what models of this family do not have."""
        editors = self.components.editors
        found = unfit(editors.get(editor.name), facts, editors)
        if found is not None:
            self._lookups.note(merged.place(("path",) if "path" in merged.tree else ("name",)), *found, ModelError.code)

    def _check_devices(self, model: ModelSpec, editor: EditorSpec, merged: MergedTree) -> None:
        """Note which parts of the editor know of one device only, and that a trial gets fewer GPUs than it needs."""
        have, place, asked = self.components, merged.place(("devices",)), f"model.devices = {model.devices}"
        parts = {editor.name: have.editors.get(editor.name), **{w.name: have.wrappers.get(w.name) for w in editor.wrap}}
        for name in (name for name, kind in parts.items() if not kind.spans_devices):
            tables = (have.editors.loadable(), have.wrappers.loadable())
            able = [n for table in tables for n, kind in sorted(table.items()) if kind.spans_devices]
            hint = f"over several: {', '.join(able)}"
            self._lookups.note(place, f"{asked}, but {name} edits a model on one device only", hint)
        gpu = self.sweep.resources.gpu
        if gpu == "auto" or gpu < model.devices:
            hint = f"resources.gpu: {model.devices} gives a trial as many GPUs"
            self._lookups.note(place, f"{asked}, but resources.gpu = {gpu if gpu == 'auto' else f'{gpu:g}'}", hint)

    def _check_further(self, protocol: ProtocolSpec, study: type[Study], data: DataSpec, merged: MergedTree) -> None:
        """Note protocols that the study does not ask, or that compare with what the data do not have."""
        place, have = merged.place(("also",)), self.components
        # Ignored, they would stand in the key of trials that measure nothing by them.
        if not study.asks_further:
            able = [name for name in have.studies.names() if have.studies.get(name).asks_further]
            hint = f"leave it out, or study: {', '.join(able)}"
            if protocol.also:
                self._lookups.note(place, f"study '{self.sweep.study}' asks no further protocols (protocol.also)", hint)
            if protocol.drift:
                where = merged.place(("drift",))
                self._lookups.note(where, f"study '{self.sweep.study}' measures no drift (protocol.drift)", hint)
        # With data.prompt: chat every question is a turn already, and would be wrapped once more.
        for one in (one for one in protocol.also if data.prompt == "chat" and one.prompt in ("qa_inst", "chat")):
            message = (
                f"protocol.also: {one.label} puts a text around questions, which data.prompt: chat has done already"
            )
            self._lookups.note(place, message, f"ask {one.id} with its prompt question-only, or data.prompt: plain")
        gives = {name for name in have.datasets.names() if getattr(have.datasets.get(name), "gives_true", False)}
        for one in (one for one in protocol.also if PROTOCOLS[one.id].needs_true and data.name not in gives):
            message = (
                f"protocol.also: {one.id} compares with what was true before, which dataset '{data.name}' does not give"
            )
            self._lookups.note(place, message, f"datasets that do: {', '.join(sorted(gives))}")

    def _longest(self, data: DataSpec) -> tuple[int, str]:
        """Return the most tokens that a text of the chosen records may have, and the record."""
        dataset = self.components.datasets.get(data.name)()
        reading = dataset.read(dataset.locate(data, self.workspace))
        return rows.longest_text(selection.chosen(reading.every, data).records)

    def _study(self) -> type[Study] | None:
        """Return the study's class, or None after noting that there is none of its name."""
        name = self.sweep.study
        place = self.sweep.source.value(("study",))
        return self._lookups.ask_once(("studies", name), lambda: self.components.studies.get(name), place)

    def _versions(
        self, editor: EditorSpec, model: ModelSpec, data: str, study: type[Study], protocol: ProtocolSpec
    ) -> dict[str, int]:
        """Return the version of every component and metric the trial names, and of the artifacts they may ask for."""
        have = self.components
        named: dict[str, Any] = {
            f"editor/{editor.name}": have.editors.get(editor.name),
            **{f"wrapper/{w.name}": have.wrappers.get(w.name) for w in editor.wrap},
            f"dataset/{data}": have.datasets.get(data),
            f"study/{self.sweep.study}": study,
            "protocol": ProtocolSpec,
            **{f"metric/{name}": metric_of(name) for name in protocol.metrics},
            **{f"protocol/{one.id}": PROTOCOLS[one.id] for one in protocol.also},
        }
        # An artifact's version is part of a key only where something in the trial may ask for such an artifact.
        kinds = {kind for component in named.values() for kind in getattr(component, "artifact_kinds", ())}
        versions = {name: component.version for name, component in named.items()}
        versions |= {f"artifact/{kind}": ARTIFACTS[kind] for kind in kinds}
        versions |= {"drift": DRIFT_VERSION} if protocol.drift else {}
        # Where only numbers of narrow models moved, fp32 keys stay, and with them the results of a cluster's nights.
        narrow = have.editors.get(editor.name).narrow_version
        if model.dtype != "float32" and narrow > 1:
            versions[f"editor/{editor.name}/narrow"] = narrow
        return dict(sorted(versions.items()))

    def _check_study(
        self, trial: TrialSpec, available: int, study: type[Study], sections: Mapping[str, MergedTree]
    ) -> bool:
        """Tell whether the study accepts *trial*, noting what it does not."""
        complaints: list[Problem] = study().check(trial, available)
        for one in complaints:
            section, key = _BLAME.get(one.code, ("protocol", "rounds"))
            place = sections[section].place((key,))
            if one.file:
                self.problems.append(one)
            else:
                self._lookups.note(place, one.message, one.hint, one.code)
        return not complaints


def _with_rounds(protocol: ProtocolSpec, size: int) -> ProtocolSpec:
    """Return *protocol* with the rounds it does not name: before the first edit, and after the last whole batch."""
    if protocol.rounds:
        return protocol
    last = size - size % protocol.batch_size
    return protocol.model_copy(update={"rounds": (0, last) if last else (0,)})
