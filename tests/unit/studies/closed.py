"""A stand-in for SimIE's closed form: edits on the pristine weights are summed, and what is reported depends on λ alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from raysweep.config.schema import EditorSpec, Positive, TrialSpec, WrapSpec
from raysweep.editors import build
from raysweep.editors.base import EditorConfig, EditStep, ReportView
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.models.patches import Dense, WeightDelta
from tests.unit.studies.test_lifelong import trial


class ClosedConfig(EditorConfig):
    lam: Positive = 1.0
    jitter: float = 0.0


class Closed(BaseWrapper[ClosedConfig, Any]):
    """Reports ``W_0 + Σ Δ_t / (1 + λ)``; with *jitter* a proposal takes something from its generator."""

    name: ClassVar[str] = "closed"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = ClosedConfig
    paper: ClassVar[str] = "–"

    def __init__(self, config: ClosedConfig, inner: Any) -> None:
        super().__init__(config, inner)
        self.proposed: list[str] = []

    def edited_parameters(self, lm: Any) -> tuple[str, ...]:
        return tuple(self.inner.edited_parameters(lm))

    def artifact_requests(self, lm: Any) -> Mapping[str, Any]:
        return dict(self.inner.artifact_requests(lm))

    def begin(self, lm: Any, artifacts: Any) -> dict[str, Any]:
        return {
            "sums": {n: torch.zeros_like(lm.logical(n), dtype=torch.float64) for n in self.edited_parameters(lm)},
            "count": 0,
        }

    def edit_dependencies(self) -> Mapping[str, Any]:
        return {"jitter": self.config.jitter, "inner": self.inner.description()}

    def can_propose(self) -> bool:
        return True

    def propose(self, lm: Any, batch: Sequence[Any], *, artifacts: Any, rng: torch.Generator) -> dict[str, Any]:
        self.proposed += [r.id for r in batch]
        step = self.inner.edit(lm, batch, None, artifacts=artifacts, rng=rng)
        noise = float(torch.rand(1, generator=rng)) if self.config.jitter else 0.0
        return {"sums": {n: d.dense().double() for n, d in step.patch.deltas.items()}, "noise": [noise]}

    def absorb(self, lm: Any, state: Any, proposal: Mapping[str, Any]) -> EditStep[Any]:
        scale = 1 + self.config.jitter * proposal["noise"][0]
        sums = {n: s + scale * proposal["sums"][n] for n, s in state["sums"].items()}
        return EditStep(WeightDelta({}), {"sums": sums, "count": state["count"] + 1}, {"noise": proposal["noise"][0]})

    def edit(self, lm: Any, batch: Sequence[Any], state: Any, *, artifacts: Any, rng: torch.Generator) -> EditStep[Any]:
        return self.absorb(lm, state, self.propose(lm, batch, artifacts=artifacts, rng=rng))

    def report_view(self, lm: Any, totals: Callable[[], Mapping[str, Any]], state: Any) -> ReportView:
        assert not totals(), "the weights themselves stay pristine"
        changes = {n: Dense((s / (1 + self.config.lam)).float()) for n, s in state["sums"].items()}
        return ReportView(WeightDelta(changes), {f"drift/{n}": c.norm() for n, c in changes.items()})


def install(monkeypatch: Any) -> list[Closed]:
    """Let editors be wrapped in ``closed``; return those that are built from now on."""
    original = build.build_editor
    built: list[Closed] = []

    def with_closed(spec: EditorSpec) -> Any:
        *inside, last = spec.wrap or (None,)
        if last is None or last.name != "closed":
            return original(spec)
        built.append(Closed(last.config, original(spec.model_copy(update={"wrap": tuple(inside)}))))
        return built[-1]

    monkeypatch.setattr(build, "build_editor", with_closed)
    return built


def closed(lam: float = 1.0, *, seed: int = 0, jitter: float = 0.0, order: str = "file", **protocol: Any) -> TrialSpec:
    bare = trial("ft", **({"rounds": (0, 2, 4)} | protocol))
    around = (WrapSpec(name="closed", config=ClosedConfig(lam=lam, jitter=jitter)),)
    return bare.model_copy(
        update={
            "editor": bare.editor.model_copy(update={"wrap": around}),
            "seed": seed,
            "data": bare.data.model_copy(update={"order": order}),
        }
    )
