"""Components that need no files and no torch, so that a plan is a matter of microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from raysweep.config.components import Components
from raysweep.config.load import parse
from raysweep.config.schema import DataSpec, ModelSpec, Positive, Spec, TextSpec, TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.config.sweep_schema import SweepSpec
from raysweep.data.base import Reading
from raysweep.editors.base import BaseEditor, EditorConfig
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.errors import DataError, ModelError, Problem
from raysweep.registry import Registry
from raysweep.studies.base import Study
from raysweep.workspace import Workspace


class Table(Registry[Any]):
    """A registry over objects in hand."""

    def __init__(self, kind: str, objects: Mapping[str, Any]) -> None:
        super().__init__(kind, dict.fromkeys(objects, "tests:none"))
        self.objects = dict(objects)
        self._scanned = True  # no entry points: those cost a walk over site-packages

    def get(self, name: str) -> Any:
        self.check(name)
        return self.objects[name]


class MomentsConfig(Spec):
    text: TextSpec = TextSpec()
    samples: int = 10


class SurgeonConfig(EditorConfig):
    layers: tuple[int, ...] = Field(min_length=1)
    rate: Positive = 1.0
    moments: MomentsConfig = MomentsConfig()


class Surgeon(BaseEditor[Any, None]):
    name: ClassVar[str] = "surgeon"
    version: ClassVar[int] = 3
    config_type: ClassVar[type[EditorConfig]] = SurgeonConfig
    paper: ClassVar[str] = "–"

    def edited_parameters(self, lm: Any) -> tuple[str, ...]:
        return ()

    def edit(self, lm: Any, batch: Any, state: Any, *, artifacts: Any, rng: Any) -> Any:
        raise NotImplementedError


class PlainConfig(EditorConfig):
    pass


class Plain(Surgeon):
    name = "plain"
    version = 1
    config_type = PlainConfig


class Memory(Plain):
    name = "memory"
    patch_kind = "modules"


class BlurConfig(Spec):
    width: Positive = 1.0


class RidgeConfig(EditorConfig):
    lam: Positive = 1.0
    blur: BlurConfig = BlurConfig()
    mode: Literal["sequential", "init"] = "sequential"


class Ridge(BaseWrapper[Any, Any]):
    name: ClassVar[str] = "ridge"
    version: ClassVar[int] = 2
    config_type: ClassVar[type[EditorConfig]] = RidgeConfig
    accepts: ClassVar[tuple[str, ...]] = ("weights",)
    shareable: ClassVar[Mapping[str, Mapping[str, Any]]] = {"lam": {"mode": "init"}, "blur": {"mode": "init"}}

    def edit(self, lm: Any, batch: Any, state: Any, *, artifacts: Any, rng: Any) -> Any:
        raise NotImplementedError

    def edit_dependencies(self) -> Mapping[str, Any] | None:
        """In ``init`` mode everything but λ."""
        inner = self.inner.config.model_dump(mode="json")
        return {"inner": inner} if self.config.mode == "init" else None

    def can_propose(self) -> bool:
        """In ``init`` mode edits do not see each other."""
        return bool(self.config.mode == "init")


class ReportConfig(EditorConfig):
    keep: bool = False


class Report(BaseWrapper[Any, Any]):
    """Wraps anything that gives weights, gives none itself."""

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 2
    accepts: ClassVar[tuple[str, ...]] = ("weights",)
    config_type: ClassVar[type[EditorConfig]] = ReportConfig

    def edit(self, lm: Any, batch: Any, state: Any, *, artifacts: Any, rng: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def output_kind(cls, config: ReportConfig) -> str:
        return "views"

    @classmethod
    def incompatible_with(cls, config: ReportConfig, *, wrapped: bool) -> str:
        return "keep: true needs a bare editor" if config.keep and wrapped else ""


class Hundred:
    """A dataset of a hundred records in no file; ``path: missing`` is not there."""

    name: ClassVar[str] = "hundred"
    version: ClassVar[int] = 5

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path | None:
        if spec.path.endswith("missing"):
            raise DataError(f"data.path '{spec.path}' does not exist", hint="give a file")
        return workspace.resolve(spec.path) if spec.path else None

    def count(self, path: Path | None) -> int:
        return 100

    def digest(self, path: Path | None) -> str:
        return "d1"

    def read(self, path: Path | None) -> Reading:
        return Reading(())


class Lifelong(Study):
    name: ClassVar[str] = "lifelong"
    version: ClassVar[int] = 7

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        beyond = [r for r in trial.protocol.rounds if r > trial.data.size]
        return [Problem(code="E-PROTOCOL", message=f"rounds beyond the data: {beyond}")] if beyond else []

    shares_edits = True

    def execute(self, trial: TrialSpec, deps: Any, resume: Any) -> Any:
        raise NotImplementedError


def model(spec: ModelSpec, workspace: Workspace) -> ModelSpec:
    if spec.name == "nowhere":
        raise ModelError("unknown model 'nowhere'", hint="known: embedded")
    return spec.model_copy(update={"digest": f"m-{spec.name}", "bos": "none" if spec.bos == "auto" else spec.bos})


def text(text: TextSpec, data: DataSpec, workspace: Workspace) -> TextSpec:
    if text.name == "lost":
        raise DataError("no text 'lost'")
    return text.model_copy(update={"digest": f"t-{text.name}-{data.digest}"})


def components(*, fetch: bool = False) -> Components:
    return Components(
        editors=Table("editor", {"surgeon": Surgeon, "plain": Plain, "memory": Memory}),
        wrappers=Table("wrapper", {"ridge": Ridge, "report": Report}),
        datasets=Table("dataset", {"hundred": Hundred, "other": Hundred}),
        studies=Table("study", {"lifelong": Lifelong}),
        model=model,
        text=text,
    )


SWEEP = """\
sweep: x
base:
  model: tiny
  data: {name: hundred, size: 20}
  protocol: {rounds: [0, 5, 20]}
arms:
  plain: {editor: plain}
  surgeon: {editor: {name: surgeon, layers: [2]}}
  ridge: {editor: {name: surgeon, layers: [2]}, wrap: ridge}
"""


def sweep(text: str = SWEEP, *overrides: str) -> SweepSpec:
    return parse_search_space(parse(text, "x.yaml"), overrides)


def with_space(space: str, search: str = "{sampler: random, samples: 4, seed: 7}") -> SweepSpec:
    return sweep(f"{SWEEP}space: {space}\nsearch: {search}\n")
