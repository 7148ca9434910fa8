"""Recorded steps on the device that pretends: the plain way's numbers, few recordings, nothing inside that a GPU refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.locate.base import LocateEditor
from raysweep.editors.specs import ValueSpec
from raysweep.errors import ModelError
from raysweep.models import step_graphs
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.ledger import Ledger, substituted
from raysweep.models.lm import LanguageModel
from raysweep.testing import sham_graph
from raysweep.testing.editor_contract import Exam
from raysweep.testing.sham_device import ShamDevice, device, to_sham
from tests.contracts.test_editors import CONFIGS
from tests.gpu.agree import agree, models

# Of one edit, and after several; filling up takes sums in another order.
TOLERANCE, LATER = 1e-6, 1e-5


@pytest.fixture(autouse=True)
def sham_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs, "graph_on", sham_graph.graph_on)


def spec_of(name: str, *, captured: bool, wrap: tuple[WrapSpec, ...] = (), **value: Any) -> EditorSpec:
    config = dict(CONFIGS[name])
    return EditorSpec(
        name=name, config={**config, "value": {**config["value"], "batch": 1, "captured": captured, **value}}, wrap=wrap
    )


def edits(spec: EditorSpec, count: int, lm: LanguageModel) -> tuple[list[object], list[step_graphs.StaticStep]]:
    """Make some edits one after the other; return what each writes and logs, and the recorded steps."""
    have = Exam(build=lambda: build_editor(spec), lm=lm, fresh=lambda: lm)
    editor = have.build()
    artifacts = have.artifacts(editor, lm)
    state, ledger, found = editor.begin(lm, artifacts), Ledger(lm), []
    for record in have.records[:count]:
        step = editor.edit(lm, [record], state, artifacts=artifacts, rng=torch.Generator().manual_seed(0))
        state = step.state
        found.append(({n: lm.logical(n) + d.dense() for n, d in step.patch.deltas.items()}, step.stats))
        ledger.apply(step.patch)
    ledger.restore()
    inner = editor.innermost()
    assert isinstance(inner, LocateEditor)
    graphs = inner.graphs()
    return found, [] if graphs is None else list(graphs.steps.values())


@pytest.mark.parametrize(
    ("name", "wrap", "value"),
    [
        ("rome", (), {}),
        ("memit", (), {}),
        ("alphaedit", (), {}),
        ("rome", (WrapSpec(name="prune", config={"base": "2"}),), {}),
        # ends before its last step, by the loss and by the arg-max
        ("memit", (), {"steps": 23, "lr": 0.1}),
        ("memit", (), {"steps": 23, "lr": 0.1, "stop_on_argmax": True}),
    ],
)
def test_recorded_steps_find_what_the_plain_ones_find(
    name: str, wrap: tuple[WrapSpec, ...], value: dict[str, Any]
) -> None:
    """One edit after the other, each on the model with the earlier ones in place."""
    _, lm = models("llama")
    with ShamDevice():
        plain, _ = edits(spec_of(name, captured=False, wrap=wrap, **value), 3, lm)
        recorded, steps = edits(spec_of(name, captured=True, wrap=wrap, **value), 3, lm)
    agree(plain[0], recorded[0], TOLERANCE)
    agree(plain, recorded, LATER)
    assert 0 < len(steps) <= 2  # sizes that occur
    assert all(step.captures == 1 for step in steps)
    assert sum(step.graph.warm_ups for step in steps if isinstance(step.graph, sham_graph.ShamGraph)) == len(steps)


def test_records_of_about_the_same_length_share_a_recording() -> None:
    _, lm = models("llama")
    with ShamDevice():
        _, steps = edits(spec_of("rome", captured=True), 5, lm)
    graphs = [step.graph for step in steps if isinstance(step.graph, sham_graph.ShamGraph)]
    assert sum(graph.captures for graph in graphs) == len(graphs) == 2
    # 5 records of 6 steps, of which each size did the first one as it is written
    assert sum(graph.replays for graph in graphs) == 5 * 6 - 2


def times(x: Tensor, by: float | Tensor) -> None:
    x.mul_(by)


def waits(x: Tensor) -> None:
    x.mul_(2 if float(x.sum()) > 0 else 3)


def uploads(x: Tensor) -> None:
    x.add_(torch.ones(3).to(x.device))


@pytest.mark.parametrize("work", [waits, uploads])
def test_a_recording_that_waits_or_uploads_raises(work: Callable[[Tensor], None]) -> None:
    x = to_sham(torch.ones(3))
    with pytest.raises(RuntimeError, match="not permitted while a stream is captured"):
        sham_graph.ShamGraph().capture(lambda: work(x), [x])


def test_recording_does_nothing_and_an_input_that_moved_is_noticed() -> None:
    x, graph = sham_graph.ShamTensor(torch.ones(3), device()), sham_graph.ShamGraph()
    graph.capture(lambda: times(x, 2), [x])
    assert x.held.tolist() == [1, 1, 1]
    graph.replay()
    assert x.held.tolist() == [2, 2, 2]
    x.held = x.held.clone()
    with pytest.raises(RuntimeError, match="has moved"):
        graph.replay()


def test_other_inputs_are_copied_into_place_and_another_model_is_another_recording() -> None:
    _, lm = models("llama")
    graphs = step_graphs.StepGraphs()

    def double(guard: ModelGuard, *numbers: float) -> list[float]:
        # an expanded axis is one number in memory
        inputs = [to_sham(torch.tensor(numbers).float()), to_sham(torch.tensor([[1.0], [2.0]]).expand(2, 2))]
        step, own = graphs.prepare(inputs, guard, lambda x: lambda: times(x[0], x[1][1]))
        with ShamDevice():
            step.run()
        return list(own[0].tolist())

    guard = ModelGuard.record(lm, 1)
    assert [double(guard, 1, 2), double(guard, 3, 4), double(guard, 5, 6)] == [[2, 4], [6, 8], [10, 12]]
    assert (len(graphs.steps), graphs.captures) == (1, 1)
    name = f"{lm.layout.mlp_out.format(2)}.weight"
    with substituted(lm, {name: lm.weight(name).detach().clone()}):
        assert double(ModelGuard.record(lm, 1), 1, 2) == [2, 4]
    assert (len(graphs.steps), graphs.captures) == (2, 1)


def test_a_model_that_others_look_into_is_refused() -> None:
    """Its hooks would run once, while the step is recorded, and never again."""
    _, lm = models("llama")
    lm.part(lm.layout.block.format(lm.n_blocks - 1)).register_forward_hook(lambda *_: None)
    with ShamDevice(), pytest.raises(ModelError, match="blocks that run in few operations"):
        edits(spec_of("rome", captured=True), 1, lm)


def test_the_cpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    lm, _ = models("llama")
    with pytest.raises(ModelError, match="captured steps need a CUDA device"):
        edits(spec_of("memit", captured=True), 1, lm)


def test_several_records_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave batch at 1"):
        ValueSpec(captured=True, batch=2)


def test_it_is_in_the_key_where_it_is_on() -> None:
    assert "captured" not in ValueSpec().model_dump()
    assert ValueSpec(captured=True).model_dump()["captured"] is True
