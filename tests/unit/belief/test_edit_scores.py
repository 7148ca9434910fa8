"""Tables of edits: a model that believes what the agent does has no error; groups are those published."""

from __future__ import annotations

import pytest

from raysweep.belief.lm.asking import Reply
from raysweep.belief.points.types import MODAL, ORIGINAL, REQUESTED, SAME_SAME, EvalPoint
from raysweep.belief.report import edit_scores
from raysweep.belief.report.metrics import agent_probability
from raysweep.errors import BeliefError
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_points import points


def replies(point: EvalPoint, objects: tuple[str, ...], state: str) -> dict[str, Reply]:
    """The agent's own replies in *state*: its probabilities, its modal object; every sentence is undecided."""
    found = {name: Reply(0.5, "", False, False) for name in point.questions}
    assert point.watched is not None
    for name, watch in point.watched.items():
        role = ORIGINAL if state == "pre" else (REQUESTED if name == SAME_SAME else MODAL)
        said = objects[watch.objects[role]]
        for other, obj in watch.objects.items():
            target = watch.targets[state][other]
            edited = name == SAME_SAME and state == "target"
            p = target.posterior_prob_o_given_s_r if edited else agent_probability(target)
            found[f"editing_{name}_{other}"] = Reply(p, said, objects[obj] in said, objects[obj] == said)
        if name == SAME_SAME:
            found["new_fact_case"] = Reply(0.5, said, False, False)
    return found


@pytest.fixture(scope="module")
def made() -> tuple[list[EvalPoint], tuple[str, ...]]:
    written = corpus(generative(people()), **HEADLINE)
    return points(written, size=40), written.model.graph.objects


def test_the_agent_itself_makes_no_error(made):
    asked, objects = made
    pre, post = ([replies(p, objects, state) for p in asked] for state in ("pre", "target"))
    scored = edit_scores.score_edits(asked, pre, post)
    for one, point in zip(scored, asked, strict=True):
        for side in (one.before, one.after):
            assert all(v == 1 for n, v in side.items() if n.endswith("_acc"))
            assert all(v == pytest.approx(0) for n, v in side.items() if n.endswith("s_same_r_coherence"))
            assert side["negation"] == pytest.approx(0)
            assert side["multiplication"] == pytest.approx(0.25)
        assert one.after["req_prob"] >= 0.95 - 1e-9 or one.reinforces
        assert one.implies == point.flags.downstream_answer_changes
        assert one.correct
        assert one.new_request != one.reinforces
    lines = edit_scores.group_means(scored)
    by = {(line.group, line.time): line for line in lines}
    assert by["implications", "pre-edit"].n + by["no implications", "pre-edit"].n == len(asked)
    assert by["breaking", "delta"].n == sum(not s.reinforces for s in scored)
    assert not any(group == "fixing" for group, _ in by)


def test_a_model_that_does_not_move_fails_where_the_agent_moves(made):
    asked, objects = made
    pre = [replies(p, objects, "pre") for p in asked]
    lines = edit_scores.group_means(edit_scores.score_edits(asked, pre, pre), ("implications",))
    values = {line.time: line.values for line in lines}
    n = lines[0].n
    accuracy = values["pre-edit"]["same_s_diff_r_acc"]
    assert (accuracy.mean, accuracy.se, accuracy.n, accuracy.high) == (1.0, 0.0, n, 1.0)
    assert values["post-edit"]["same_s_diff_r_acc"].mean == 0
    assert values["delta"]["same_s_diff_r_acc"].mean == -1
    assert values["delta"]["same_s_same_r_coherence"].mean > 0.5
    fates = edit_scores.downstream_outcomes(asked, pre, pre)
    assert fates["old"] == fates["known"] == accuracy
    assert fates["new"].mean == fates["other"].mean == 0
    kinds = edit_scores.mean_flags(edit_scores.score_edits(asked, pre, pre), asked)
    assert sum(means["new_fact_reinforces"].n for _, _, means in kinds) == len(asked)
    assert {(kind, means["new_fact_reinforces"].mean) for _, kind, means in kinds} == {
        ("reinforcing", 1.0),
        ("counterfactual", 0.0),
    }
    with pytest.raises(BeliefError, match="no group 'mending'"):
        edit_scores.group_means([], ("mending",))
    with pytest.raises(BeliefError, match="0 after"):
        edit_scores.score_edits(asked, pre, [])
