"""Builds the evaluation points of a corpus: what a model is asked about a fact, its update, and what the agent then believes.

The facts come in one order, drawn from the seed. Every point has random streams of its own, one per purpose, so that a point that
cannot be made, or one more kind of question, moves no other point. See docs/methods/belief.md.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.corpus.statements import Statement, StatementKind
from raysweep.belief.points.context import PointContext
from raysweep.belief.points.edits import EditChooser
from raysweep.belief.points.questions import QuestionWriter
from raysweep.belief.points.targets import agents_by_state, claim_with_beliefs, target_probabilities, watched_fact
from raysweep.belief.points.types import (
    MODAL,
    SAME_OTHER,
    Claim,
    EditFlags,
    EvalPoint,
    NotEditableError,
    PointQuestion,
    TargetProbabilities,
    UpdateRequest,
    WatchedFact,
)
from raysweep.belief.spec import PointSpec
from raysweep.errors import BeliefError

Edit = tuple[UpdateRequest, dict[str, WatchedFact], EditFlags]
"""Request, watched facts and flags of a point."""


def build_points(
    corpus: Corpus,
    agent: Agent,
    spec: PointSpec,
    seed: int,
    *,
    spares: int = 0,
    passed_over: Counter[str] | None = None,
) -> Iterator[EvalPoint]:
    """Yield the evaluation points: ``spec.size`` about training subjects, ``spec.novel`` about new ones, then *spares*.

    With editing, a fact that cannot be edited is passed over and the next one takes its place, and subjects need two facts.

    Args:
        corpus: what was written.
        agent: who has read it.
        spec: which points.
        seed: root of every random choice.
        spares: further points about training subjects, for those who refuse one of the others; fewer if there are no more facts.
        passed_over: counts the facts that could not be edited, by reason.

    Raises:
        BeliefError: no subject can be asked about, or no fact (or not one of the new subjects' that are wanted) can be edited.
    """
    builder = PointBuilder(corpus, agent, spec, seed)
    refusals: Counter[str] = Counter() if passed_over is None else passed_over
    # A point's number is its place among all candidates, so that its streams stay its own when another is passed over.
    rows = enumerate(builder.context.fact_rows())
    known_points = builder.editable(((builder.point, i, row) for i, row in rows), refusals)
    count = 0
    for point in itertools.islice(known_points, spec.size):
        yield replace(point, id=count)
        count += 1
    if not count:
        reason, _ = refusals.most_common(1)[0]
        raise BeliefError(f"no fact of the training subjects can be edited: {reason}", hint="a larger graph or corpus")
    # Numbers below 0, so that no known point shares their streams.
    novel = ((builder.novel_point, -1 - i, i) for i in range(len(builder.context.novel)))
    planned = count + spec.novel
    for point in itertools.islice(builder.editable(novel, refusals), spec.novel):
        yield replace(point, id=count)
        count += 1
    if count < planned:
        raise BeliefError(
            f"only {spec.novel - planned + count} of {spec.novel} novel points can be edited: "
            f"{'; '.join(f'{reason} ({n})' for reason, n in refusals.most_common())}",
            hint="ask for fewer novel points",
        )
    for point in itertools.islice(known_points, spares):
        yield replace(point, id=count)
        count += 1


def refusal_reason(point: EvalPoint) -> str:
    """Return why no editor can be given *point*, or nothing: rules of :func:`raysweep.records.check_record` on the prompt.

    A Wikidata name may hold a brace, occur within another, or be blank.
    """
    subject, relation, _ = point.names
    prompt = f"{subject} {relation}"
    if "new_fact_case" not in point.questions:
        return "there is no update to ask for"
    if not (subject.strip() and relation.strip() and all(q.target.strip() for q in point.questions.values())):
        return "a name is blank"
    if set(prompt) & set("{}"):
        return "the prompt holds a brace"
    # Editors look the subject up in the prompt; twice would be ambiguous.
    times = prompt.count(subject)
    return "" if times == 1 else f"the subject occurs {times} times in the prompt"


class PointBuilder:
    """Builds points one by one.

    Attributes:
        context: corpus, agent and random streams.
        questions: writes the questions.
        edits: chooses the edits.
    """

    def __init__(self, corpus: Corpus, agent: Agent, spec: PointSpec, seed: int) -> None:
        self.context = PointContext(corpus, agent, spec, seed)
        self.questions = QuestionWriter(self.context)
        self.edits = EditChooser(self.context)

    def editable(
        self, candidates: Iterable[tuple[Callable[[int, int], EvalPoint], int, int]], refusals: Counter[str]
    ) -> Iterator[EvalPoint]:
        """Yield the points of *candidates* (how to build one, number and row) that can be edited; count the others."""
        for build, number, row in candidates:
            try:
                point = build(number, row)
            except NotEditableError as error:
                refusals[error.message] += 1
                continue
            if self.context.spec.editing and (reason := refusal_reason(point)):
                refusals[reason] += 1
                continue
            yield point

    def point(self, number: int, row: int) -> EvalPoint:
        """Return point *number*, about the fact in *row* of the graph.

        Raises:
            NotEditableError: it is to be edited, and cannot be.
        """
        context = self.context
        fact = context.true_fact(row)
        a, b = self._claims(number, row)
        questions, sentences = self.questions.fact_questions(number, fact, a, b)
        # The agent's beliefs in the claims after the edit need the request, so it is chosen first.
        request, watched, flags = self._edit(number, fact, row, b, questions)
        agents = agents_by_state(context.agent, fact, request)
        return EvalPoint(
            id=number,
            fact=fact,
            names=context.fact_names(fact),
            known=True,
            has_relevant_property=bool(context.model.upstream[row] >= 0),
            targets=self._targets(fact),
            questions=questions,
            sentences=sentences,
            request=request,
            watched=watched,
            flags=flags,
            claims={name: claim_with_beliefs(claim, fact, agents) for name, claim in (("A", a), ("B", b))},
        )

    def novel_point(self, number: int, index: int) -> EvalPoint:
        """Return a point about novel subject *index*, nobody has written about: its beliefs are those about the relation.

        Raises:
            NotEditableError: it is to be edited, and cannot be.
        """
        context = self.context
        # A relation that somebody was written about: there is something to believe.
        relations = [r for r in range(len(context.graph.relations)) if len(context.subjects_with(r, r))]
        relation = int(context.rng(number, "claims").choice(relations))
        fact = context.best_fact(len(context.graph.subjects) + index, relation)
        statement = Statement(StatementKind.ATOMIC, None, fact)
        questions = {"o_given_s_r": self.questions.question("o_given_s_r", statement, None, False)}
        request, watched, flags = self._edit(number, fact, -1, None, questions)
        return EvalPoint(
            id=number,
            fact=fact,
            names=context.fact_names(fact),
            known=False,
            has_relevant_property=False,
            targets=self._targets(fact),
            questions=questions,
            sentences=(),
            request=request,
            watched=watched,
            flags=flags,
        )

    def _claims(self, number: int, row: int) -> tuple[Claim, Claim]:
        """Draw the claims: A is the fact in *row*, B a random one of a random subject; each is made false by a coin."""
        context = self.context
        # One stream for all of it: another order of the draws would be other claims.
        rng = context.rng(number, "claims")
        coins = rng.random(2) < 0.5
        a = Claim(context.false_fact(row, rng), False) if coins[0] else Claim(context.true_fact(row), True)
        subject = int(rng.integers(context.corpus.subjects))
        starts = context.graph.starts
        other = int(rng.integers(starts[subject], starts[subject + 1]))
        b = Claim(context.false_fact(other, rng), False) if coins[1] else Claim(context.true_fact(other), True)
        return a, b

    def _targets(self, fact: Triple) -> TargetProbabilities:
        """Return what is to be believed of the fact's own object before any edit."""
        return target_probabilities(self.context, self.context.agent, fact, (fact.object,), generative=True)[0]

    def _edit(
        self, number: int, fact: Triple, row: int, b: Claim | None, questions: dict[str, PointQuestion]
    ) -> Edit | tuple[None, None, None]:
        """Choose request and watched facts, ask the agent, and add the questions about the edit to *questions*."""
        context = self.context
        if not context.spec.editing:
            return None, None, None
        child = self.edits.active_child(fact, row)
        request = self.edits.request(number, fact, row, child)
        facts, one_subject = self.edits.watched_facts(number, fact, row, child)
        agents = agents_by_state(context.agent, fact, request)
        watched = {name: watched_fact(context, watch, request.object, agents) for name, watch in facts.items()}
        # A novel subject has no row in the graph, and so no upstream fact.
        has_upstream = row >= 0 and bool(context.model.upstream[row] >= 0)
        flags = EditFlags(
            diff_r_is_dependent_rel=child is not None,
            same_r_is_dependent_rel=has_upstream,
            all_cases_independent=child is None and not has_upstream,
            using_diff_s_with_both_r_s=one_subject,
            new_fact_reinforces=request.reinforces,
            downstream_answer_changes=watched[SAME_OTHER].objects[MODAL] != facts[SAME_OTHER].object,
        )
        for question in self.questions.edit_questions(fact, request, watched, b):
            questions[question.name] = question
        return request, watched, flags
