from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from raysweep.cli.display import Display
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.reports.standing import missing_lines
from raysweep.results.outcome import SweepOutcome
from raysweep.results.state import State, TrialStatus
from raysweep.tune.deps import ModelPool
from raysweep.tune.pending import pending


class Toy:
    """A LanguageModel as far as the pool cares."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).eval().requires_grad_(False)


def make_pool(limit: int = 1 << 20) -> tuple[ModelPool, list[ModelSpec]]:
    loads: list[ModelSpec] = []

    def load(spec: ModelSpec, told: Any) -> Any:
        loads.append(spec)
        return Toy()

    return ModelPool(load, limit=limit), loads


def test_pool_restores_edited_weights_bit_for_bit() -> None:
    pool, loads = make_pool()
    model = pool.get(ModelSpec())
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    with torch.no_grad():
        model.module[0].weight.add_(1e-7)
    model.module.train().requires_grad_(True)
    again = pool.get(ModelSpec())
    assert again is model
    assert len(loads) == 1
    assert all(torch.equal(v, before[k]) for k, v in again.module.state_dict().items())
    assert not again.module.training
    assert not any(p.requires_grad for p in again.module.parameters())


@pytest.mark.parametrize("harm", ["hook", "module", "shape", "spec", "no copies"])
def test_pool_loads_again_what_it_cannot_restore(harm: str) -> None:
    pool, loads = make_pool(0 if harm == "no copies" else 1 << 20)
    model = pool.get(ModelSpec())
    if harm == "hook":
        model.module[0].register_forward_hook(lambda *_: None)
    elif harm == "module":
        model.module[1] = nn.Identity()
    elif harm == "shape":
        model.module[0].weight = nn.Parameter(torch.zeros(4, 3), requires_grad=False)
    elif harm == "no copies":
        model.module[0].weight.zero_()
    assert pool.get(ModelSpec(dtype="bfloat16") if harm == "spec" else ModelSpec()) is not model
    assert len(loads) == 2


def test_exit_codes() -> None:
    def outcome(**given: Any) -> int:
        empty: dict[str, Any] = {"done": (), "failed": {}, "unfinished": (), "interrupted": False, "results": ""}
        return SweepOutcome(**{**empty, **given}).exit_code

    assert outcome() == 0
    assert outcome(failed={"k": "e"}) == outcome(unfinished=("k",)) == 3
    assert outcome(unfinished=("k",), interrupted=True) == 130
    assert outcome(done=("d",), stopped={"k": "after 2 edits the model is no finite numbers (…)"}) == 0


def test_what_a_rule_stopped_is_told_and_nobody_is_asked_to_run_it_again() -> None:
    why = "after 2 edits the model is no finite numbers (SpecError: λ = 0.1 is too small)"
    outcome = SweepOutcome(
        done=("d",), failed={}, unfinished=(), interrupted=False, results="r", stopped={"k": why}
    )  # fmt: skip
    assert missing_lines(outcome, {"k": "memit+simie seed=0"}, {}) == [f"stopped: memit+simie seed=0: {why}"]
    states = {"k": TrialStatus(State.STOPPED, 2, why, rule="collapsed")}
    assert pending(states, retry=True, repair=True) == []


def test_display_prints_a_line_per_round_without_a_terminal(tmp_path: Path) -> None:
    printed: list[str] = []
    display = Display({"k": "memit seed=0"}, {"k": 10}, printer=printed.append, folder=tmp_path)
    display.begin()
    display.started("k")
    display.round("k", {"step": 5, "retained/rel": 0.5, "retained/gen": 0.25, "retained/loc": 1.0})
    display.lost("k", True)
    display.round("k", {"step": 5, "done": True, "failure": "ValueError: no\nmore"})
    display.stopped("k")
    display.end()
    assert printed[0].startswith("[0/1] memit seed=0: 5/10 edits  Rel 0.50 Gen 0.25 Loc 1.00  ")
    assert printed[0].endswith(" edits/s")
    assert printed[1:] == ["memit seed=0: its process died; going on", "memit seed=0: FAILED at 5/10: ValueError: no"]


def test_display_shows_heartbeats_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / ".heartbeat").write_text(
        json.dumps({"done": 7, "total": 10, "doing": "training the model, step 3 of 9"})
    )
    console = Console(force_terminal=True, width=100, record=True, file=(tmp_path / "out").open("w"))
    display = Display(
        {"k": "memit", "d": "rome"}, {"k": 10, "d": 10}, printer=lambda line: None, folder=tmp_path, console=console,
        finished={"d": 10},
    )  # fmt: skip
    display.started("k")
    display.round("k", {"step": 5, "retained/rel": 0.5})
    console.print(display.render())
    text = console.export_text()
    assert "trials 1/2" in text
    assert "edits 17/20" in text
    assert "7/10" in text
    assert "training the model, step 3 of 9" in text
    assert "Rel 0.50" in text


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"done": null, "doing": 1}', "7"])
def test_display_survives_any_heartbeat(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / ".heartbeat").write_text(text)
    display = Display({"k": "memit"}, {"k": 10}, printer=lambda line: None, folder=tmp_path)
    display.started("k")
    display.render()


def test_display_lets_a_pass_get_on_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".heartbeat").write_text(json.dumps({"done": 4, "total": 10, "doing": "edit"}))
    console = Console(force_terminal=True, width=100, record=True, file=(tmp_path / "out").open("w"))
    display = Display(
        dict.fromkeys("abc", "x"), dict.fromkeys("abc", 10), printer=lambda line: None, folder=tmp_path,
        console=console, edit_groups={"a": "p", "b": "p"},
    )  # fmt: skip
    display.started("a")
    console.print(display.render())
    assert "edits 8/30" in console.export_text()


def test_trials_of_one_pass_wait_for_each_other() -> None:
    from raysweep.tune.trial_order import GroupByGroup

    search = GroupByGroup({"a1": "a", "a2": "a", "b": "b"})
    assert search.suggest("1") == {"trial": "a1"}
    assert search.suggest("2") == {"trial": "b"}
    assert search.suggest("3") is None
    search.on_trial_complete("2")
    assert search.suggest("3") is None
    search.on_trial_complete("1", error=True)
    assert search.suggest("3") == {"trial": "a2"}
    assert search.suggest("4") == "FINISHED"


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"immediate/rel": 0.5}, "Rel 0.50"),  # a study that retains nothing
        ({"immediate/rel": 0.5, "retained/rel": 0.25}, "Rel 0.25"),
        ({"retained/rel": 0.25, "non_finite_step": 3}, "Rel 0.25 not finite from step 3"),
        ({"non_finite_step": 3}, "not finite from step 3"),
        ({"non_finite_step": None}, ""),
    ],
)
def test_a_round_s_line_follows_the_study_and_says_what_is_not_finite(result: dict[str, Any], shown: str) -> None:
    printed: list[str] = []
    display = Display({"k": "a"}, {"k": 4}, printer=printed.append)
    display.round("k", {"step": 4, **result})
    assert printed == [f"[0/1] a: 4/4 edits{'  ' if shown else ''}{shown}"]


def test_ray_gets_no_names_that_the_next_plan_may_change() -> None:
    """Names belong to the plan: what Ray logs says which trial by its key, and what it is made of."""
    from raysweep.results.runner import RoundReport
    from raysweep.tune.trainable import Trainable

    trial = TrialSpec(
        study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name="null"), protocol=ProtocolSpec(), seed=3
    )  # fmt: skip
    one = Trainable.__new__(Trainable)
    one.job = PlannedTrial("an arm", {"seed": 3, "wrap.simie.lam": 10}, trial)
    one._ended = iter([RoundReport(4, {"retained/rel": 0.5}, False, non_finite_step=2), RoundReport(6, {}, True)])
    first, second = one.step(), one.step()
    assert first == {
        "retained/rel": 0.5, "step": 4, "done": False, "editor": "null", "seed": 3, "non_finite_step": 2, "replayed": True,
    }  # fmt: skip
    assert "non_finite_step" not in second


def test_waiting_for_nodes_is_said_and_shown_until_a_trial_runs(tmp_path: Path) -> None:
    printed: list[str] = []
    display = Display({"k": "memit"}, {"k": 10}, printer=printed.append, folder=tmp_path)
    display.waiting("a trial asks for 1 CPU, 1 GPU; 3 nodes up, none free")
    assert printed == ["waiting for nodes: a trial asks for 1 CPU, 1 GPU; 3 nodes up, none free"]
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    live = Display({"k": "memit"}, {"k": 10}, printer=printed.append, folder=tmp_path, console=console)
    live.waiting("a trial asks for 2 CPU; no node is up")
    assert len(printed) == 1, "the live display shows it instead"

    def shown() -> str:
        with console.capture() as captured:
            console.print(live.render())
        return captured.get()

    assert "waiting for nodes: a trial asks for 2 CPU; no node is up" in shown()
    live.started("k")
    assert "waiting" not in shown()


def test_a_trial_that_hangs_is_said(tmp_path: Path) -> None:
    printed: list[str] = []
    display = Display({"k": "memit"}, {"k": 10}, printer=printed.append, folder=tmp_path)
    display.hung("k", "no sign of life for 10 minutes at edit 3")
    assert printed == ["memit: hung: no sign of life for 10 minutes at edit 3; ending its process"]
