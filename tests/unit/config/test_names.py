"""Names belong to the plan: labels that stay different, trials with several names, and what a study ranks by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysweep.config.names import TrialName, labels, unique
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.errors import ProblemsError
from raysweep.registry import Registry
from raysweep.studies import STUDIES, default_metric, phases
from raysweep.workspace import Workspace
from tests.unit.config.fakes import SWEEP, components, sweep


def points(*values: dict[str, object]) -> list[str]:
    return labels([("a", value) for value in values])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"wrap.simie.lam": 1.0}, {"wrap.simie.lam": 10.0}, ["a lam=1", "a lam=10"]),
        (  # two swept keys whose last parts are the same
            {"editor.lr": 0.1, "editor.value.lr": 0.5},
            {"editor.lr": 0.5, "editor.value.lr": 0.1},
            ["a editor.lr=0.1 value.lr=0.5", "a editor.lr=0.5 value.lr=0.1"],
        ),
        ({"lr": 1, "a.lr": 2}, {"lr": 2, "a.lr": 1}, ["a a.lr=2 lr=1", "a a.lr=1 lr=2"]),
        ({"editor.seed": 0}, {"editor.seed": 1}, ["a editor.seed=0", "a editor.seed=1"]),  # `seed` is the trial's
        ({"x": 0.12341}, {"x": 0.12342}, ["a x=0.12341", "a x=0.12342"]),  # equal in four digits
        ({"x": 1 / 3}, {"x": 0.3333333333}, ["a x=0.3333333333333333", "a x=0.3333333333"]),
        ({"x": "10"}, {"x": 10}, ["a x='10'", "a x=10"]),
        ({"x": 1, "y": 2}, {"x": 1}, ["a y=2", "a"]),
    ],
)
def test_labels_of_different_points_differ(
    first: dict[str, object], second: dict[str, object], said: list[str]
) -> None:
    assert points(first, second) == said
    assert len(set(said)) == 2


def test_a_label_never_cuts_a_value() -> None:
    path = "/a/long/way/" + "x" * 200
    assert points({"data.path": path + "1"}, {"data.path": path + "2"}) == [f"a path={path}{i}" for i in (1, 2)]


def test_a_point_that_is_drawn_twice_is_one_name() -> None:
    names = [TrialName("a", {"x": 1}, "k"), TrialName("a", {"x": 1.0}, "k"), TrialName("b", {"x": 1}, "k")]
    assert [name.arm for name in unique(names)] == ["a", "b"]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, share=tmp_path)


def planned(text: str, workspace: Workspace, *overrides: str) -> Plan:
    return plan(parse_search_space(sweep(text).source, overrides), workspace, components())


def test_every_arm_of_equal_content_has_its_names_and_runs_once(workspace):
    found = planned(SWEEP + "  again: {editor: plain}\n", workspace)
    assert len(found.trials) == 3
    assert [n.arm for n in found.names].count("again") == 1
    again = next(n for n in found.names if n.arm == "again")
    assert again.key in {t.key for t in found.trials if t.arm != "again"}
    assert len(found.names) == 4
    written = found.as_json()
    assert [(e["arm"], e["key"]) for e in written["trials"]] == [(n.arm, n.key) for n in found.names]
    assert all(e["rounds"] and e["seed"] is not None for e in written["trials"])


def test_an_override_that_makes_two_arms_equal_keeps_both_names(workspace):
    text = SWEEP + "  other: {editor: {name: surgeon, layers: [3]}}\n"
    before = planned(text, workspace)
    after = planned(text, workspace, "arms.other.editor.layers=[2]")
    assert len(before.trials) == len(after.trials) + 1
    assert [n.arm for n in before.names] == [n.arm for n in after.names]


def test_the_default_metric_follows_the_study(workspace):
    assert planned(SWEEP, workspace).sweep.search.metric == "retained/avg"
    assert (phases("belief"), default_metric("belief")) == (("immediate",), "immediate/rel")
    assert phases("belief_lifelong")[0] == phases("lifelong")[0] == "retained"
    assert default_metric("no such study") == "retained/avg"  # rows of one that is not installed here can still be read
    for study in STUDIES.names():
        assert default_metric(study).partition("/")[0] == phases(study)[0]


def test_a_metric_that_the_study_does_not_have_is_refused(workspace):
    kinds = replace(components(), studies=Registry("study", {"lifelong": "raysweep.studies.belief:Belief"}))
    with pytest.raises(ProblemsError) as caught:
        plan(parse_search_space(sweep(SWEEP).source, ["search.metric=retained/rel"]), workspace, kinds)
    assert any("no round has a value 'retained/rel'" in p.message for p in caught.value.problems)
