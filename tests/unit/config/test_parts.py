"""``--shard i/n``: the parts of a plan are disjoint, are together the plan, and never tear an edit group."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.parts import Part
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.config.sweep_schema import ArmSpec, SweepSpec, WrittenEditor
from raysweep.errors import SpecError


def plan_of(groups: list[str]) -> Plan:
    """Return a plan with a trial per entry of *groups*; equal entries share their edits, empty ones share nothing."""
    trials = [
        PlannedTrial(
            arm="a", point={"seed": seed}, edit_key=group,
            trial=TrialSpec(
                study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name="x", config=UnreadConfig()),
                protocol=ProtocolSpec(rounds=(0, 2)), seed=seed,
            ),
        )
        for seed, group in enumerate(groups)
    ]  # fmt: skip
    return Plan(
        SweepSpec(name="s", arms=(ArmSpec(name="a", editor=WrittenEditor(name="x")),)),
        tuple(trials),
    )


@given(groups=st.lists(st.sampled_from(["", "g1", "g2", "g3"]), min_size=1, max_size=12), total=st.integers(1, 15))
def test_parts_are_the_plan(groups: list[str], total: int) -> None:
    plan = plan_of(groups)
    parts = [Part(number, total).trials_of(plan) for number in range(1, total + 1)]
    keys = [trial.key for part in parts for trial in part]
    assert sorted(keys) == sorted(trial.key for trial in plan.trials), "every trial once"
    for group in plan.edit_groups:
        assert sum(any(trial in part for trial in group) for part in parts) == 1, "a group is in one part"
    sizes = [len({t.edit_key or t.key for t in part}) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    order = {trial.key: i for i, trial in enumerate(plan.trials)}
    assert all([order[t.key] for t in part] == sorted(order[t.key] for t in part) for part in parts)


def test_every_seed_of_an_arm_goes_to_another_part() -> None:
    plan = plan_of([""] * 8)
    assert [[t.trial.seed for t in Part(i, 4).trials_of(plan)] for i in (1, 2, 3, 4)] == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]


def test_a_part_as_a_plan_has_the_names_of_its_trials() -> None:
    plan = plan_of(["", "", ""])
    twice = replace(plan, places=(*plan.names, replace(plan.names[1], arm="b")))
    assert [name.arm for name in Part(2, 3).of(twice).names] == ["a", "b"]
    assert Part(2, 3).of(twice).sweep is plan.sweep


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/", "/2", "1/0", "-1/3", "a/b", "1/2/3", "1.0/2", "1 / 2"])
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="names no part"):
        Part.parse(text)


def test_a_part_is_written_as_it_is_read() -> None:
    assert Part.parse(" 2/10 ") == Part(2, 10)
    assert str(Part(2, 10)) == "2/10"
