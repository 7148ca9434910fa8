"""Every parity switch in both regimes: with noise (least true probability < 1) and clean (= 1)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from raysweep.belief.agent.agent import fit_agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.corpus.statements import Statement, StatementKind, statement_columns
from raysweep.belief.corpus.writer import _stale_counts, _StatementPlanner
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import MODAL, SAME_OTHER
from raysweep.belief.spec import CorpusSpec
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_points import points

REGIMES = {"noisy": 0.6, "clean": 1.0}
Items = Counter[tuple[Triple, float]]


@pytest.fixture(params=list(REGIMES))
def regime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(regime: str, parity: dict[str, bool], **values: Any) -> Corpus:
    model = generative(people(), ParitySpec.model_validate(parity), min_true_prob=REGIMES[regime])
    return corpus(model, **{**HEADLINE, **values})


# ------------------------------------------------------------------------------------------- and_evidence_stale (A1)


def fact(subject: int, obj: int) -> Triple:
    return Triple(subject, 0, obj)


def written(subject: int, *, sampled: int, labelled: int, denied: int, joined: int) -> list[Statement]:
    """Sentences of one subject: so many atomic ones, TF, NOT pairs and AND; the objects number them."""
    partner = fact(9, 0)
    return [
        *(Statement(StatementKind.ATOMIC, None, fact(subject, i)) for i in range(sampled)),
        *(Statement(StatementKind.TRUE_FALSE, i % 2 == 0, fact(subject, i)) for i in range(labelled)),
        *(Statement(StatementKind.NOT, i % 2 == 1, fact(subject, 10 + i)) for i in range(2 * denied)),
        *(Statement(StatementKind.AND, True, fact(subject, 20 + i), partner) for i in range(joined)),
    ]


def counts(subjects: list[list[Statement]], order: list[tuple[StatementKind, ...]], *, noisy: bool) -> list[list[int]]:
    """How often each sentence's evidence counts, subject by subject."""
    ranks = {kind: np.array([own.index(kind) for own in order]) for kind in order[0]}
    times = _stale_counts(statement_columns([said for own in subjects for said in own]), ranks, noisy)
    stops = np.cumsum([len(own) for own in subjects])
    return [part.tolist() for part in np.split(times, stops[:-1])]


TF, NOT, AND, OR = StatementKind.TRUE_FALSE, StatementKind.NOT, StatementKind.AND, StatementKind.OR


def test_clean_and_sentences_repeat_what_was_filled_last() -> None:
    """Six subjects by hand, 3 samples, 4 labels, 2 NOT pairs, 2 AND each: 3, 4, 2, 3, 4, 2 stale items for each AND."""
    own = [written(s, sampled=3, labelled=4, denied=2, joined=2) for s in range(6)]
    order = [
        (AND, NOT, TF, OR),  # the atomic sentences
        (OR, TF, AND, NOT),  # all four labels
        (TF, OR, NOT, AND),  # the last of two pairs
        (OR, AND, NOT, TF),
        (NOT, TF, AND, OR),
        (NOT, OR, AND, TF),
    ]
    assert counts(own, order, noisy=False) == [
        [3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 3, 3, 3, 3, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 0, 0],
        [3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 3, 3, 3, 3, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 0, 0],
    ]


def test_noisy_and_sentences_repeat_all_labels_or_the_last_pair() -> None:
    """The labels come before every operation, so the atomic sentences are never what was filled last."""
    own = [written(s, sampled=6, labelled=6, denied=1, joined=3) for s in range(2)]
    assert counts(own, [(AND, OR, NOT), (NOT, AND, OR)], noisy=True) == [
        [1] * 6 + [4] * 6 + [1, 1] + [0] * 3,
        [1] * 6 + [1] * 6 + [4, 4] + [0] * 3,
    ]


def test_an_operation_without_instances_fills_nothing() -> None:
    own = [
        written(0, sampled=1, labelled=2, denied=0, joined=1),
        written(1, sampled=2, labelled=0, denied=0, joined=1),
        written(2, sampled=0, labelled=0, denied=0, joined=1),
    ]
    assert counts(own, [(TF, NOT, AND)] * 3, noisy=False) == [[1, 2, 2, 0], [2, 2, 0], [0]]


@pytest.mark.parametrize("instances", [20, 5, 3])
def test_the_items_are_those_of_the_published_loop(regime: str, instances: int) -> None:
    """A writer that goes through the sentences one by one, keeps one list, and hands that list on."""
    stale = made(regime, {"and_evidence_stale": True}, connective_instances_per_subject=instances)
    spec = CorpusSpec.model_validate(
        {"num_atomic_facts": 601, **HEADLINE, "connective_instances_per_subject": instances}
    )
    planner = _StatementPlanner(stale.model, spec, stale.seed, stale.subjects)
    ranks, _ = planner._share_budget()
    items, filled = Items(), list[tuple[Triple, float]]()
    said: list[list[Statement]] = [[] for _ in range(stale.subjects)]
    for i, owner in enumerate(stale.statements.owner.tolist()):
        said[owner].append(stale.statements[i])
    for subject, own in enumerate(said):
        steps = [TF] * (regime == "noisy") + sorted(ranks, key=lambda kind: int(ranks[kind][subject]))
        for kind in (StatementKind.ATOMIC, *steps):
            lists = [
                [(Triple(e.subject, e.relation, e.object), e.amount) for e in s.evidence()]
                for s in own
                if s.kind == kind
            ]
            if kind in (StatementKind.ATOMIC, TF):
                whole = [item for one in lists for item in one]
                filled = whole if whole or kind is StatementKind.ATOMIC else filled
                items.update(whole)
            elif kind is NOT:
                for one, other in zip(lists[::2], lists[1::2], strict=True):
                    filled = [*one, *other]
                    items.update(filled)
            else:
                for one in lists:
                    items.update(filled if kind is AND else one)
    table = stale.evidence
    rows = zip(table.subject.tolist(), table.relation.tolist(), table.object.tolist(), strict=True)
    ours = {(Triple(*row), w): c for row, w, c in zip(rows, table.weight.tolist(), table.count.tolist(), strict=True)}
    assert ours == dict(items)
    assert stale.evidence.items == items.total()
    assert 1 / 3 not in stale.evidence.weight


def test_and_evidence_changes_no_document(regime: str) -> None:
    fresh, stale = (made(regime, {"and_evidence_stale": on}) for on in (False, True))
    assert list(fresh.documents()) == list(stale.documents())
    assert fresh.evidence.items != stale.evidence.items


# ------------------------------------------------------------------------------------------------- the other switches


def test_partners_from_seen(regime: str) -> None:
    for seen in (False, True):
        said = made(regime, {"partners_from_seen": seen}).statements
        later = np.maximum(said.first[:, 0], said.second[:, 0]) > said.owner
        assert later.any() == (not seen)


def test_third_object_prob(regime: str) -> None:
    """Without noise the distractor has probability 0, and so has any third object, either way."""
    ours, theirs = (made(regime, {"third_object_prob": on}).model for on in (False, True))
    rows = np.flatnonzero(ours.upstream < 0)
    third = np.array(
        [
            next(o for o in range(len(ours.graph.objects)) if o not in (ours.true_objects[r], ours.distractor[r]))
            for r in rows
        ]
    )
    distractor = theirs.probability(rows, theirs.distractor[rows])
    assert theirs.probability(rows, third) == pytest.approx(distractor, abs=1e-12)
    assert not ours.probability(rows, third).any()
    assert distractor.any() == (regime == "noisy")


def test_mgtp1_additive(regime: str) -> None:
    """It is about least probability 1, and nothing else."""
    ours, theirs = (made(regime, {"mgtp1_additive": on}).model for on in (False, True))
    if regime == "noisy":
        assert (ours.conditionals.counts == theirs.conditionals.counts).all()
        return
    assert (ours.true_probability == 1).all()
    mixed = theirs.conditionals.totals > theirs.conditionals.counts[theirs.conditionals.modes]
    assert mixed.any(), "one more observation does not make it certain"
    plain = generative(people(), min_true_prob=0.01).conditionals
    raised = theirs.conditionals.counts[theirs.conditionals.modes] - plain.counts[plain.modes]
    assert (raised == mixed).all()


def test_double_child_update(regime: str) -> None:
    once, twice = (made(regime, {"double_child_update": on}) for on in (False, True))
    row = int(np.flatnonzero(once.model.upstream[: once.facts] >= 0)[0])
    s, r, _ = once.model.graph.facts[row].tolist()
    obj = int(once.model.distractor[row])
    told = Evidence(s, r, obj, 40.0, kind="mass")
    before, *after = (
        fit_agent(c.evidence, c.model.arrows, len(c.model.graph.objects), parity=c.model.parity).given(e)
        .marginal(s, r).at(np.array([obj]))[0]
        for c, e in ((once, ()), (once, told), (twice, told))
    )  # fmt: skip
    assert before < after[0] < after[1]


def test_pi_by_items(regime: str) -> None:
    """Denied objects get a share of the subject's downstream evidence only as published."""
    ours, theirs = (made(regime, {"pi_by_items": on}) for on in (False, True))
    keys = [
        fit_agent(
            c.evidence, c.model.arrows, len(c.model.graph.objects), parity=c.model.parity
        ).fitted.conditionals.keys
        for c in (ours, theirs)
    ]
    assert set(keys[0].tolist()) < set(keys[1].tolist())


def test_n1000_weight_one_and_unfiltered_downstream_request(regime: str) -> None:
    plain = points(made(regime, {}), size=100)
    theirs = points(made(regime, {"n1000_weight_one": True, "unfiltered_downstream_request": True}), size=100)
    assert {p.request.updates["items"].amount for p in plain if p.request} == {1000}
    assert {p.request.updates["items"].amount for p in theirs if p.request} == {1}

    def unchanged(some: list[Any]) -> int:
        """Updates of an upstream fact to an upstream object that leave the downstream answer as it is."""
        above = {o for p in some if p.flags.diff_r_is_dependent_rel for o in [p.fact.object]}
        return sum(
            p.watched[SAME_OTHER].objects[MODAL] == p.watched[SAME_OTHER].fact.object
            for p in some
            if p.flags.diff_r_is_dependent_rel and p.request.object in above
        )

    assert unchanged(theirs) > unchanged(plain)
