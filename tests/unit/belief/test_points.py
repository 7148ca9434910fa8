"""Evaluation points: cases, requests, watched facts, targets, novel subjects, streams, files."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.belief.agent.agent import Agent, fit_agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.evidence import Evidence
from raysweep.belief.corpus.statements import read_label
from raysweep.belief.graph.graph import graph_from_names
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.build import build_points, refusal_reason
from raysweep.belief.points.jsonl import from_line, read_points, to_line
from raysweep.belief.points.types import (
    AGENT_STATES,
    MODAL,
    OBJECT_ROLES,
    ORIGINAL,
    OTHER_OTHER,
    OTHER_SAME,
    REQUESTED,
    SAME_OTHER,
    SAME_SAME,
    WATCHED_FACTS,
    EvalPoint,
)
from raysweep.belief.spec import PointSpec
from raysweep.errors import BeliefError, DataError
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people

PUBLISHED = {
    "o_given_s_r", "A_TF_case", "B_TF_case", "A_sentence", "A_and_B_case", "B_and_A_case", "A_or_B_case", "not_A_case",
    "new_fact_case", *(f"editing_{c}_{t}" for c in WATCHED_FACTS for t in OBJECT_ROLES),
}  # fmt: skip


def agent_of(made: Corpus) -> Agent:
    return fit_agent(made.evidence, made.model.arrows, len(made.model.graph.objects), parity=made.model.parity)


def points(made: Corpus, agent: Agent | None = None, seed: int = 0, **values: Any) -> list[EvalPoint]:
    return list(build_points(made, agent or agent_of(made), PointSpec.model_validate({"size": 60, **values}), seed))


@pytest.fixture(scope="module")
def made() -> Corpus:
    return corpus(generative(people()), **HEADLINE)


@pytest.fixture(scope="module")
def agent(made: Corpus) -> Agent:
    return agent_of(made)


@pytest.fixture(scope="module")
def some(made: Corpus, agent: Agent) -> list[EvalPoint]:
    return points(made, agent, size=150, novel=12)


def known(some: list[EvalPoint]) -> list[EvalPoint]:
    return [p for p in some if p.known]


# ------------------------------------------------------------------------------------------------------- cases


def test_a_point_has_the_21_published_cases(some: list[EvalPoint]) -> None:
    assert len(PUBLISHED) == 21
    for point in known(some):
        ours = set(point.questions) - PUBLISHED
        assert set(point.questions) >= PUBLISHED
        requested = {"requested_TF_case", "not_requested_case", "requested_and_B_case", "B_and_requested_case",
                     "requested_or_B_case"}  # fmt: skip
        assert ours - {"paraphrase_case"} == requested
        scored = {name for name, q in point.questions.items() if q.scored}
        assert scored - {"paraphrase_case"} == {
            "o_given_s_r", "A_TF_case", "B_TF_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "not_A_case",
        }  # fmt: skip


def test_cases_follow_the_sentence_types() -> None:
    plain = points(corpus(generative(people())), editing=False, size=5)
    assert {n for p in plain for n in p.questions} <= {"o_given_s_r", "paraphrase_case"}
    assert all(p.request is p.watched is p.flags is None for p in plain)
    tf = points(corpus(generative(people()), true_false=True, atomic=False), editing=False, size=5)
    assert {n for p in tf for n in p.questions} == {"A_TF_case", "B_TF_case", "A_sentence"}
    implied = points(corpus(generative(people()), true_false=True, implications=True), editing=False, size=5)
    assert all("if_A_then_B_case" in p.questions for p in implied)


def test_ids_count_through_whole_subjects(made: Corpus, some: list[EvalPoint]) -> None:
    assert [p.id for p in some] == list(range(162))
    runs = [s for s, _ in itertools.groupby(known(some), key=lambda p: p.fact.subject)]
    assert len(runs) == len(set(runs))
    facts = made.model.graph.facts
    whole = [row for s in runs for row in facts[facts[:, 0] == s, :2].tolist()]
    assert [[p.fact.subject, p.fact.relation] for p in known(some)] == whole[:150]


def test_answers_agree_with_what_is_true(made: Corpus, some: list[EvalPoint]) -> None:
    graph, model = made.model.graph, made.model
    true = {
        graph.atomic(s, r, o) for (s, r, _), o in zip(graph.facts.tolist(), model.true_objects.tolist(), strict=True)
    }
    for point in known(some):
        q = point.questions
        assert f"{q['o_given_s_r'].prompt} {q['o_given_s_r'].target}" in true
        a, b = (q[f"{x}_TF_case"].prompt[1:-4] for x in "AB")
        is_a, is_b = a in true, b in true
        assert q["A_sentence"].truth is is_a
        assert f"{q['A_sentence'].prompt} {q['A_sentence'].target}" == a
        for name, prompt, label in (
            ("A_TF_case", f'"{a}" is', is_a),
            ("B_TF_case", f'"{b}" is', is_b),
            ("A_and_B_case", f'"{a} and {b}" is', is_a and is_b),
            ("B_and_A_case", f'"{b} and {a}" is', is_a and is_b),
            ("A_or_B_case", f'"{b} or {a}" is', is_a or is_b),
            ("not_A_case", f'"not {a}" is', not is_a),
        ):
            assert q[name].prompt == prompt
            assert read_label(q[name].target) is label
            assert q[name].truth is True
        assert f"{q['A_and_B_case'].prompt} {q['A_and_B_case'].target}" in point.sentences
        assert len(point.sentences) == 8
    coins = [p.questions[f"{x}_TF_case"].target == "true" for p in known(some) for x in "AB"]
    assert 0.4 < np.mean(coins) < 0.6


def test_requested_cases_take_the_request_as_true(some: list[EvalPoint]) -> None:
    for point in known(some):
        q, b = point.questions, point.questions["B_TF_case"].target == "true"
        assert point.request is not None
        assert q["requested_TF_case"].target == "true"
        assert q["requested_TF_case"].truth is point.request.reinforces
        assert q["not_requested_case"].target == "false"
        assert q["requested_and_B_case"].target == q["B_TF_case"].target
        assert q["requested_or_B_case"].target == "true"
        assert q["requested_or_B_case"].truth is (b or point.request.reinforces)
        assert q["requested_and_B_case"].truth is (point.request.reinforces or not b)


def test_paraphrases_use_another_name_of_the_relation(made: Corpus, some: list[EvalPoint]) -> None:
    graph = made.model.graph
    for point in known(some):
        subject, _, obj = point.names
        others = graph.wordings[point.fact.relation]
        assert ("paraphrase_case" in point.questions) is bool(others)
        if others:
            question = point.questions["paraphrase_case"]
            assert question.prompt in {f"{subject} {w}" for w in others}
            assert (question.target, question.seen) == (obj, False)
    told = points(corpus(generative(people()), wordings=3), editing=False)
    assert any(p.questions["paraphrase_case"].seen for p in told if "paraphrase_case" in p.questions)


# ---------------------------------------------------------------------------------------------------- requests


def test_requests_meant_to_change_the_downstream_answer_do(made: Corpus, agent: Agent, some: list[EvalPoint]) -> None:
    active = [p for p in known(some) if p.flags and p.flags.diff_r_is_dependent_rel]
    assert len(active) > 30
    free = {p.id: p for p in points(*_with(made, ParitySpec(unfiltered_downstream_request=True)), size=150)}
    changed = np.mean([p.flags.downstream_answer_changes for p in active])  # type: ignore[union-attr]
    changed_free = np.mean([free[p.id].flags.downstream_answer_changes for p in active])  # type: ignore[union-attr]
    assert changed_free < 0.4
    assert 0.7 < changed < 0.95  # .8 by choice, some of the others by chance
    always = points(made, agent, size=150, downstream_share=1.0)
    size, kept = agent.fitted.objects, 0
    for point in (p for p in always if p.flags and p.flags.diff_r_is_dependent_rel):
        assert point.request is not None
        assert point.watched is not None
        watch = point.watched[SAME_OTHER]
        assert not point.request.reinforces
        if not point.flags.downstream_answer_changes:  # type: ignore[union-attr]
            kept += 1
            continue
        assert (agent.fitted.conditionals.keys == watch.fact.relation * size + point.request.object).any()
        assert watch.objects[MODAL] != watch.fact.object
    assert kept <= 2


def _with(made: Corpus, parity: ParitySpec) -> tuple[Corpus, Agent]:
    other = corpus(generative(people(), parity), **HEADLINE)
    return other, agent_of(other)


def test_other_requests_reinforce_or_contradict(made: Corpus, some: list[EvalPoint]) -> None:
    rest = [p for p in known(some) if p.flags and not p.flags.diff_r_is_dependent_rel]
    share = np.mean([p.request.reinforces for p in rest])  # type: ignore[union-attr]
    assert 0.45 < share < 0.75
    row_of, model = made.model.graph.row_of, made.model
    for point in rest:
        row = row_of[point.fact.subject, point.fact.relation]
        assert point.request is not None
        if not point.request.reinforces and model.upstream[row] < 0:
            assert point.request.object == model.distractor[row]
        assert point.request.reinforces is (point.request.object == point.fact.object)


@pytest.mark.parametrize("scope", ["relation_range", "all"])
def test_scope_of_counterfactual_requests(made: Corpus, agent: Agent, scope: str) -> None:
    found = points(made, agent, request_scope=scope, reinforce_share=0.0, downstream_share=0.0)
    graph = made.model.graph
    inside = []
    for p in found:
        assert p.request is not None
        assert p.request.object != p.fact.object
        inside.append(p.request.object in graph.facts[graph.facts[:, 1] == p.fact.relation, 2])
    assert all(inside) is (scope == "relation_range")


def test_the_targeted_update_reaches_95_percent(some: list[EvalPoint]) -> None:
    for point in some:
        assert point.watched is not None
        assert point.request is not None
        edited = point.watched[SAME_SAME].targets
        now = edited["pre"][REQUESTED].posterior_prob_o_given_s_r
        after = edited["target"][REQUESTED].posterior_prob_o_given_s_r
        if point.request.reinforces and now > 0.95:
            assert after >= now + (1 - now) / 2 - 1e-12
        else:
            assert 0.95 - 1e-12 <= after < 0.96


def test_updates_are_data() -> None:
    for parity, weight in ((ParitySpec(), 1000.0), (ParitySpec(n1000_weight_one=True), 1.0)):
        point = points(corpus(generative(people(), parity), **HEADLINE), size=2)[0]
        assert point.request is not None
        updates = {state: (u.kind, u.amount) for state, u in point.request.updates.items()}
        assert updates["pre"] == ("none", 0.0)
        assert updates["item"] == ("item", 1.0)
        assert updates["items"] == ("item", weight)
        assert updates["target"][0] == "mass"
    assert list(updates) == list(AGENT_STATES)


# ----------------------------------------------------------------------------------------------------- targets


def test_targets_are_the_agents_beliefs(made: Corpus, agent: Agent, some: list[EvalPoint]) -> None:
    model = made.model
    for point in some[::9] + some[-4:]:
        assert point.watched is not None
        assert point.request is not None
        for state, update in point.request.updates.items():
            edited = point.fact._replace(object=point.request.object)
            then = agent if update.kind == "none" else agent.given(Evidence(*edited, update.amount, kind=update.kind))
            for watch in point.watched.values():
                s, r, _ = watch.fact
                row = int(model.graph.row_of[s, r]) if s < len(model.graph.subjects) else -1
                for role, o in watch.objects.items():
                    t = watch.targets[state][role]
                    one = np.array([o])
                    assert t.posterior_prob_o_given_s_r == pytest.approx(then.pair(s, r).at(one)[0], abs=1e-12)
                    assert t.data_frequency_o_given_s_r == pytest.approx(
                        then.pair(s, r, "frequency").at(one)[0], abs=1e-12
                    )
                    assert t.o_given_s_r_sample_size == pytest.approx(then.sample_size(s, r))
                    assert (t.posterior_prob_marginalized is not None) is then.has_parent(s, r)
                    if t.posterior_prob_marginalized is not None:
                        assert t.posterior_prob_marginalized == pytest.approx(then.marginal(s, r).at(one)[0], abs=1e-12)
                    assert (t.generative_prob is not None) is (state == "pre" and row >= 0)
                    if t.generative_prob is not None:
                        assert t.generative_prob == model.probability(np.array([row]), one)[0]
                    upstream = row >= 0 and bool(model.upstream[row] >= 0)
                    assert (t.posterior_prob_true_conditional is not None) is upstream
                if state == "target":
                    assert watch.objects[MODAL] == then.marginal(s, r).mode()


def test_a_points_own_targets_are_those_of_its_true_object(some: list[EvalPoint]) -> None:
    for point in some:
        assert point.watched is not None
        assert point.targets == point.watched[SAME_SAME].targets["pre"][ORIGINAL]
        assert point.watched[SAME_SAME].objects[ORIGINAL] == point.fact.object


def test_facts_that_do_not_depend_keep_their_beliefs(some: list[EvalPoint]) -> None:
    seen = 0
    for point in known(some):
        if not (point.flags and point.flags.all_cases_independent and point.watched):
            continue
        seen += 1
        for name in (OTHER_SAME, SAME_OTHER, OTHER_OTHER):
            watch = point.watched[name]
            if watch.targets["pre"][ORIGINAL].posterior_prob_marginalized is None:
                before, after = (watch.targets[s][ORIGINAL] for s in ("pre", "target"))
                assert before._replace(generative_prob=None) == after
                assert watch.targets["pre"][REQUESTED].generative_prob is not None
    assert seen > 5


# ----------------------------------------------------------------------------------------------- watched facts


def test_watched_facts_and_flags(made: Corpus, agent: Agent, some: list[EvalPoint]) -> None:
    arrows, row_of = made.model.arrows, made.model.graph.row_of
    for point in known(some):
        assert point.watched is not None
        assert point.flags is not None
        assert tuple(point.watched) == WATCHED_FACTS
        s, r, _ = point.fact
        facts = {name: w.fact for name, w in point.watched.items()}
        other = facts[SAME_OTHER].relation
        assert (facts[SAME_OTHER].subject, facts[OTHER_SAME].relation, facts[OTHER_OTHER].relation) == (s, r, other)
        assert other != r
        assert s not in (facts[OTHER_SAME].subject, facts[OTHER_OTHER].subject)
        for fact in facts.values():
            assert agent.knows(fact.subject, fact.relation)
            assert fact.object == made.model.true_objects[row_of[fact.subject, fact.relation]]
        active = [c for c in arrows.children[r] if row_of[s, c] >= 0]
        assert point.flags.diff_r_is_dependent_rel is bool(active)
        assert not active or other == active[0]
        assert point.flags.same_r_is_dependent_rel is point.has_relevant_property is agent.has_parent(s, r)
        assert point.flags.using_diff_s_with_both_r_s is (facts[OTHER_SAME].subject == facts[OTHER_OTHER].subject)
        changed = point.watched[SAME_OTHER].objects[MODAL] != facts[SAME_OTHER].object
        assert point.flags.downstream_answer_changes is changed


def test_two_other_subjects_may_serve() -> None:
    """p has r and t, q only r and u, v only t and u: nobody else has r and t."""
    facts = [("p", "r", "a"), ("p", "t", "b"), ("q", "r", "c"), ("q", "u", "d"), ("v", "t", "e"), ("v", "u", "d")]
    small = corpus(generative(graph_from_names(facts), min_true_prob=1.0), num_atomic_facts=6)
    found = points(small, size=6)
    assert not any(p.flags.using_diff_s_with_both_r_s for p in found)  # type: ignore[union-attr]
    alone = corpus(generative(graph_from_names([*facts, ("p", "w", "f")]), min_true_prob=1.0), num_atomic_facts=7)
    counted: Counter[str] = Counter()
    kept = list(build_points(alone, agent_of(alone), PointSpec(size=7), 0, passed_over=counted))
    assert ("p", "w", "f") not in {p.names for p in kept}
    assert set(counted) == {"no other subject has relation 'w'"}
    assert 0 < len(kept) == 7 - counted.total()


def test_a_fact_that_cannot_be_edited_is_replaced_and_counted() -> None:
    """The kind: as many points as were asked for, the same ones but for those passed over, whatever the reason."""
    rows = [(f"s{i} n", r, o) for i in range(12) for r, o in (("up", f"a{i % 3}"), ("down", f"b{i % 3}"))]
    whole = corpus(generative(graph_from_names(rows), min_true_prob=1.0), num_atomic_facts=24)
    wanted = list(build_points(whole, agent_of(whole), PointSpec(size=8), 0))
    assert len(wanted) == 8
    bad = {"s1 n": "s{1} n", "s2 n": "up", "s3 n": "u"}  # a brace; a relation's name; a letter of one
    for old, new in bad.items():
        renamed = corpus(
            generative(graph_from_names([(new if s == old else s, r, o) for s, r, o in rows]), min_true_prob=1.0),
            num_atomic_facts=24,
        )
        counted: Counter[str] = Counter()
        made = list(build_points(renamed, agent_of(renamed), PointSpec(size=20), 0, spares=9, passed_over=counted))
        assert [p.id for p in made] == list(range(len(made)))
        assert sum(counted.values()) + len(made) == 24
        assert counted, new
        assert all(refusal_reason(p) == "" for p in made)
        assert made == list(build_points(renamed, agent_of(renamed), PointSpec(size=20), 0, spares=9))
        same = [p for p in list(build_points(whole, agent_of(whole), PointSpec(size=24), 0)) if p.names[0] != old]
        kept = {(p.names, p.request.object if p.request else -1) for p in same}
        assert sum((p.names, p.request.object if p.request else -1) in kept for p in made) >= len(made) - 1


def test_novel_points_are_replaced_too() -> None:
    rows = [(f"s{i} n{i % 7}", r, o) for i in range(12) for r, o in (("up n3", f"a{i % 3}"), ("down", f"b{i % 3}"))]
    made = corpus(generative(graph_from_names(rows), min_true_prob=1.0), num_atomic_facts=24)
    counted: Counter[str] = Counter()
    found = list(build_points(made, agent_of(made), PointSpec(size=4, novel=6), 0, passed_over=counted))
    assert [p.known for p in found] == [True] * 4 + [False] * 6
    assert len({p.names[0] for p in found if not p.known}) == 6


def test_where_nothing_can_be_edited_that_is_said() -> None:
    rows = [(f"{{s{i}}}", r, o) for i in range(4) for r, o in (("up", f"a{i % 3}"), ("down", f"b{i % 3}"))]
    none = corpus(generative(graph_from_names(rows), min_true_prob=1.0), num_atomic_facts=8)
    with pytest.raises(BeliefError, match="no fact of the training subjects can be edited: the prompt holds a brace"):
        points(none)
    assert len(points(none, editing=False)) == 8


def test_subjects_need_two_facts_for_editing() -> None:
    rows = [(f"s{i}", f"r{i % 2}", f"o{i % 4}") for i in range(8)]
    small = corpus(generative(graph_from_names(rows), min_true_prob=1.0), num_atomic_facts=8)
    with pytest.raises(BeliefError, match="no training subject has two facts"):
        points(small)
    assert len(points(small, editing=False)) == 8


# -------------------------------------------------------------------------------------------------- novel subjects


def test_novel_subjects_are_new_and_believed_like_their_relation(
    made: Corpus, agent: Agent, some: list[EvalPoint]
) -> None:
    novel = [p for p in some if not p.known]
    assert len(novel) == 12
    assert len({p.names[0] for p in novel}) == 12
    subjects = set(made.model.graph.subjects)
    followed = 0
    for p in novel:
        assert p.names[0] not in subjects
        assert p.watched is not None
        assert p.request is not None
        assert p.questions["o_given_s_r"].prompt == f"{p.names[0]} {p.names[1]}"
        assert (p.questions["o_given_s_r"].truth, p.questions["o_given_s_r"].seen) == (None, False)
        assert set(p.questions) == {"o_given_s_r", "new_fact_case", *(n for n in PUBLISHED if n.startswith("editing_"))}
        prior = agent.pair(10**6, p.fact.relation)
        assert p.fact.object == prior.mode()
        assert p.targets.posterior_prob_o_given_s_r == prior.at(np.array([p.fact.object]))[0]
        assert p.targets.o_given_s_r_sample_size == 0
        assert not p.request.reinforces
        if p.flags and p.flags.diff_r_is_dependent_rel:
            child = p.watched[SAME_OTHER].fact.relation
            assert p.watched[SAME_OTHER].objects[MODAL] == agent.conditional(child, p.request.object).mode()
            followed += 1
    assert followed > 2


def test_too_many_novel_names_are_refused() -> None:
    rows = [("ada k", "r", "a"), ("ada k", "t", "b"), ("bo l", "r", "c"), ("bo l", "t", "d")]
    small = corpus(generative(graph_from_names(rows), min_true_prob=1.0), num_atomic_facts=4)
    assert {p.names[0] for p in points(small, novel=2)[4:]} == {"ada l", "bo k"}
    with pytest.raises(BeliefError, match="only 2 of 3 novel names can be made"):
        points(small, novel=3)


# ------------------------------------------------------------------------------------------------ streams, files


def test_points_do_not_depend_on_their_number_or_on_the_cases(
    made: Corpus, agent: Agent, some: list[EvalPoint]
) -> None:
    assert points(made, agent, size=40) == some[:40]
    assert points(made, agent, seed=1, size=40) != some[:40]
    without = points(corpus(made.model, **{**HEADLINE, "conjunctions": False}), agent, size=40)
    assert [p.request for p in without] == [p.request for p in some[:40]]
    assert [p.watched for p in without] == [p.watched for p in some[:40]]


def test_points_survive_their_file(some: list[EvalPoint], tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text("".join(to_line(p) + "\n" for p in some), encoding="utf-8")
    assert list(read_points(path)) == some
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert from_line(to_line(points(corpus(generative(people())), editing=False, size=1)[0])).request is None


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": "points/0"}', '{"schema": "points/1"}'])
def test_lines_that_are_no_points_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1: (not an evaluation point|evaluation points of schema)"):
        list(read_points(tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match="does not exist"):
        list(read_points(tmp_path / "none.jsonl"))
