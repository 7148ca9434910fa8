"""The questions of a point: about its fact, about sentences on two claims, and about its edit; names as published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.corpus.statements import Statement, StatementKind, label_word
from raysweep.belief.points.context import PointContext
from raysweep.belief.points.types import Claim, PointQuestion, UpdateRequest, WatchedFact


@dataclass(frozen=True, slots=True)
class QuestionWriter:
    """Writes questions of the kinds of sentences that the corpus has."""

    context: PointContext

    def question(self, name: str, statement: Statement, truth: bool | None, scored: bool) -> PointQuestion:
        """Return the question that asks for the last part of *statement*: its object or its label.

        Args:
            name: of the question.
            statement: to ask about.
            truth: whether it is true; None where nothing makes it so.
            scored: its answer counts towards accuracy.
        """
        context = self.context
        if statement.label is None:
            target = context.graph.objects[statement.first.object]
        else:
            target = label_word(statement.label)
        return PointQuestion(
            name, statement.prompt(context.names), target, truth, context.corpus.has_seen(statement), scored
        )

    def fact_questions(
        self, number: int, fact: Triple, a: Claim, b: Claim
    ) -> tuple[dict[str, PointQuestion], tuple[str, ...]]:
        """Return the questions that are not about an edit, by name, and the point's true sentences.

        Args:
            number: of the point.
            fact: of the point.
            a: claim A, the fact or a false version of it.
            b: claim B, another fact or a false version of it.
        """
        context = self.context
        statements = _statements(context, fact, a, b)
        questions = {name: self.question(name, *rest) for name, rest in statements.items()}
        # One of the relation's other names, if it has any.
        wordings = len(context.graph.wordings[fact.relation])
        if context.corpus.spec.atomic and wordings:
            which = 1 + int(context.rng(number, "paraphrase").integers(wordings))
            reworded = Statement(StatementKind.ATOMIC, None, fact, wording=which)
            questions["paraphrase_case"] = self.question("paraphrase_case", reworded, True, True)
        return questions, tuple(statement.text(context.names) for statement, _, _ in statements.values())

    def edit_questions(
        self, fact: Triple, request: UpdateRequest, watched: Mapping[str, WatchedFact], b: Claim | None
    ) -> Iterator[PointQuestion]:
        """Yield the published cases of an edit, then logical ones about the requested fact (ruling G6).

        Args:
            fact: of the point.
            request: its update.
            watched: the four watched facts, by name.
            b: claim B; None for a novel subject, which has no logical questions.
        """
        context = self.context
        requested = fact._replace(object=request.object)
        # Nothing makes a sentence about a novel subject true or false.
        truth = request.reinforces if context.is_known(fact.subject) else None
        yield self.question("new_fact_case", Statement(StatementKind.ATOMIC, None, requested), truth, False)
        for name, watch in watched.items():
            for role, obj in watch.objects.items():
                statement = Statement(StatementKind.ATOMIC, None, watch.fact._replace(object=obj))
                truth = obj == watch.fact.object if context.is_known(watch.fact.subject) else None
                yield self.question(f"editing_{name}_{role}", statement, truth, False)
        if b is not None and context.corpus.spec.true_false:
            yield from self._request_questions(requested, request.reinforces, b)

    def _request_questions(self, requested: Triple, reinforces: bool, b: Claim) -> Iterator[PointQuestion]:
        """Yield sentences about the requested fact, and about it and claim B; *reinforces*: it is true already."""
        corpus = self.context.corpus.spec
        statement = Statement(StatementKind.TRUE_FALSE, True, requested)
        yield self.question("requested_TF_case", statement, reinforces, False)
        if corpus.negations:
            statement = Statement(StatementKind.NOT, False, requested)
            yield self.question("not_requested_case", statement, reinforces, False)
        if corpus.conjunctions:
            # The label is B's truth: what it should be once the requested fact is believed.
            truth = (reinforces and b.truth) == b.truth
            for name, pair in (
                ("requested_and_B_case", (requested, b.fact)),
                ("B_and_requested_case", (b.fact, requested)),
            ):
                yield self.question(name, Statement(StatementKind.AND, b.truth, *pair), truth, False)
        if corpus.disjunctions:
            statement = Statement(StatementKind.OR, True, b.fact, requested)
            yield self.question("requested_or_B_case", statement, reinforces or b.truth, False)


def _statements(context: PointContext, fact: Triple, a: Claim, b: Claim) -> dict[str, tuple[Statement, bool, bool]]:
    """Return the statements that are asked about, by question: the statement, its truth, and whether it is scored."""
    corpus = context.corpus.spec
    statements: dict[str, tuple[Statement, bool, bool]] = {}
    if corpus.atomic:
        statements["o_given_s_r"] = Statement(StatementKind.ATOMIC, None, fact), True, True
    if corpus.true_false:
        for name, claim in (("A_TF_case", a), ("B_TF_case", b)):
            statements[name] = Statement(StatementKind.TRUE_FALSE, claim.truth, claim.fact), True, True
        # A may be false: what a model makes of this sentence is no accuracy, so it is not scored.
        statements["A_sentence"] = Statement(StatementKind.ATOMIC, None, a.fact), a.truth, False
    if corpus.conjunctions:
        both = a.truth and b.truth
        statements["A_and_B_case"] = Statement(StatementKind.AND, both, a.fact, b.fact), True, True
        statements["B_and_A_case"] = Statement(StatementKind.AND, both, b.fact, a.fact), True, True
    if corpus.disjunctions:  # written B first, as published (ruling D4)
        statements["A_or_B_case"] = Statement(StatementKind.OR, a.truth or b.truth, b.fact, a.fact), True, True
    if corpus.negations:
        statements["not_A_case"] = Statement(StatementKind.NOT, not a.truth, a.fact), True, True
    if corpus.implications:
        # The material implication: false only where A holds and B does not.
        follows = not a.truth or b.truth
        statements["if_A_then_B_case"] = Statement(StatementKind.IF, follows, a.fact, b.fact), True, True
    return statements
