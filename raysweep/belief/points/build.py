"""Evaluation points (§6): what a model is asked about a fact, the update it is given, and what the agent then believes.

A point is about one fact. Its *questions* are prompts with expected continuations. Its *request* is an update of that fact. Four
facts are *watched* before and after: same or other subject, same or other relation.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from raysweep.belief.agent.agent import Agent
from raysweep.belief.agent.claims import CLAIM_STATES, Claim
from raysweep.belief.agent.fit import Estimator
from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.corpus.statements import Kind, Namer, Statement, label_word
from raysweep.belief.corpus.writer import Corpus
from raysweep.belief.graph.graph import Ints
from raysweep.belief.spec import PointSpec
from raysweep.errors import BeliefError
from raysweep.seeds import derive

_TRIES = 20  # requests that are tried out on the agent
SAME_SAME, OTHER_SAME, SAME_OTHER, OTHER_OTHER = "same_s_same_r", "diff_s_same_r", "same_s_diff_r", "diff_s_diff_r"
WATCHED = (SAME_SAME, OTHER_SAME, SAME_OTHER, OTHER_OTHER)
ORIGINAL, REQUESTED, MODAL = "orig_GT_obj", "requested_obj", "new_modal_obj"
OBJECTS = (ORIGINAL, REQUESTED, MODAL)
STATES: Mapping[str, str] = {
    "pre": "pre_update_probs",
    "item": "post_update_probs_n=1",
    "items": "post_update_probs_n=1000",
    "target": "post_update_probs_p=95",
}
"""States of the agent, and what the published files call them (theirs computed ``n=1000`` with weight 1)."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with the continuation that is expected, or asked for.

    Attributes:
        name: of the case, as published where there is such a case.
        prompt: text up to the continuation.
        target: an object, ``true`` or ``false``.
        truth: whether the sentence that prompt and target make is true; None where nothing makes it so.
        seen: whether exactly this sentence was written.
        scored: whether its answer counts towards accuracy.
    """

    name: str
    prompt: str
    target: str
    truth: bool | None
    seen: bool
    scored: bool


class Target(NamedTuple):
    """What is to be believed of one object (§6.4); None where it is not defined."""

    generative_prob: float | None
    data_frequency_o_given_s_r: float
    posterior_prob_o_given_s_r: float
    data_frequency_marginalized: float | None
    posterior_prob_marginalized: float | None
    data_frequency_true_conditional: float | None
    posterior_prob_true_conditional: float | None
    o_given_s_r_sample_size: float


@dataclass(frozen=True, slots=True)
class Update:
    """How strongly the requested fact is learnt: as one item of some weight, as mass, or not at all."""

    kind: Literal["none", "item", "mass"]
    amount: float


@dataclass(frozen=True, slots=True)
class Watched:
    """One of the four facts, with three objects and what is to be believed of each in each state.

    Attributes:
        fact: with its true object (of a novel subject: the most probable one).
        objects: by name in ``OBJECTS``.
        targets: by state, then by name of the object.
    """

    fact: Triple
    objects: Mapping[str, int]
    targets: Mapping[str, Mapping[str, Target]]


@dataclass(frozen=True, slots=True)
class Request:
    """The update asked for.

    Attributes:
        object: requested object.
        reinforces: it is the true object already.
        updates: by state.
    """

    object: int
    reinforces: bool
    updates: Mapping[str, Update]


@dataclass(frozen=True, slots=True)
class Flags:
    """What kind of edit this is (§6.6)."""

    diff_r_is_dependent_rel: bool
    same_r_is_dependent_rel: bool
    all_cases_independent: bool
    using_diff_s_with_both_r_s: bool
    new_fact_reinforces: bool
    downstream_answer_changes: bool


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """One evaluation point.

    Attributes:
        id: from 0; novel points follow the others.
        fact: with its true object (of a novel subject: the most probable one).
        names: subject, relation and object of the fact.
        known: False for a novel subject.
        has_relevant_property: the subject also has the parent relation.
        targets: what is to be believed of the true object.
        questions: by name.
        sentences: true sentences of this point (and A's own, which may be false), for the loss on sequences.
        request, watched, flags: None or empty without editing.
        claims: A and B, which its sentences are about, by these names; empty for a novel subject.
    """

    id: int
    fact: Triple
    names: tuple[str, str, str]
    known: bool
    has_relevant_property: bool
    targets: Target
    questions: Mapping[str, Question]
    sentences: tuple[str, ...]
    request: Request | None = None
    watched: Mapping[str, Watched] | None = None
    flags: Flags | None = None
    claims: Mapping[str, Claim] = field(default_factory=dict)


class NotEditableError(BeliefError):
    """A fact has no update, nobody to watch, or names that no editor can tell apart; another fact takes its place."""


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

    The facts come in one order, drawn from *seed*. With editing, a fact that cannot be edited is passed over and the next one takes
    its place; the others stay what they were, since every point has its own random streams, one per purpose. With editing,
    subjects need two facts.

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
    maker = _Maker(corpus, agent, spec, seed)
    refused: Counter[str] = Counter() if passed_over is None else passed_over
    known = maker.tried(((maker.point, i, row) for i, row in enumerate(maker.rows())), refused)
    count = 0
    for point in itertools.islice(known, spec.size):
        yield replace(point, id=count)
        count += 1
    if not count:
        reason, _ = refused.most_common(1)[0]
        raise BeliefError(f"no fact of the training subjects can be edited: {reason}", hint="a larger graph or corpus")
    # Numbers below 0, so that no known point shares their streams.
    strangers = maker.tried(((maker.novel_point, -1 - i, i) for i in range(len(maker.novel))), refused)
    wanted = count + spec.novel
    for point in itertools.islice(strangers, spec.novel):
        yield replace(point, id=count)
        count += 1
    if count < wanted:
        raise BeliefError(
            f"only {spec.novel - wanted + count} of {spec.novel} novel points can be edited: "
            f"{'; '.join(f'{reason} ({n})' for reason, n in refused.most_common())}",
            hint="ask for fewer novel points",
        )
    for point in itertools.islice(known, spares):
        yield replace(point, id=count)
        count += 1


def refusal(point: EvalPoint) -> str:
    """Return why no editor can be given *point*, or nothing: rules of :func:`raysweep.records.check_record` on the prompt.

    A Wikidata name may hold a brace, occur within another, or be blank.
    """
    subject, relation, _ = point.names
    prompt = f"{subject} {relation}"
    asked = point.questions.get("new_fact_case")
    if asked is None:
        return "there is no update to ask for"
    if not (subject.strip() and relation.strip() and all(q.target.strip() for q in point.questions.values())):
        return "a name is blank"
    if set(prompt) & set("{}"):
        return "the prompt holds a brace"
    times = prompt.count(subject)
    return "" if times == 1 else f"the subject occurs {times} times in the prompt"


class _Maker:
    """Makes points; what it looks up once it keeps for its own life."""

    def __init__(self, corpus: Corpus, agent: Agent, spec: PointSpec, seed: int) -> None:
        self.corpus, self.agent, self.spec, self.seed = corpus, agent, spec, seed
        self.model, self.graph = corpus.model, corpus.model.graph
        self.said = corpus.spec
        self.novel = _novel_names(corpus, spec.novel, seed)
        self.names = Namer(self.graph, self.novel)
        self._both: dict[tuple[int, int], Ints] = {}
        self._requests: dict[int, tuple[Ints, Ints]] = {}

    def _rng(self, number: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, "belief", "point", number, purpose))

    def tried(
        self, candidates: Iterable[tuple[Callable[[int, int], EvalPoint], int, int]], refused: Counter[str]
    ) -> Iterator[EvalPoint]:
        """Yield the points of *candidates* (how to make one, number and row) that can be edited; count the others."""
        for make, number, row in candidates:
            try:
                point = make(number, row)
            except NotEditableError as error:
                refused[error.message] += 1
                continue
            if self.spec.editing and (reason := refusal(point)):
                refused[reason] += 1
                continue
            yield point

    @cached_property
    def _ranges(self) -> tuple[Ints, ...]:
        return tuple(
            np.unique(self.graph.facts[self.graph.facts[:, 1] == r, 2]) for r in range(len(self.graph.relations))
        )

    def rows(self) -> list[int]:
        """Return the rows of the facts in the order in which they are asked about (§6.1), all of them."""
        starts = self.graph.starts
        able = np.flatnonzero(np.diff(starts[: self.corpus.subjects + 1]) >= (2 if self.spec.editing else 1))
        if not len(able):
            raise BeliefError(
                "no training subject has two facts", hint="editing: false, or a graph with more relations"
            )
        rng = np.random.default_rng(derive(self.seed, "belief", "points"))
        return [row for s in rng.permutation(able).tolist() for row in range(int(starts[s]), int(starts[s + 1]))]

    # -- facts

    def _fact(self, row: int) -> Triple:
        subject, relation, _ = self.graph.facts[row].tolist()
        return Triple(subject, relation, int(self.model.true[row]))

    def _false(self, row: int, rng: np.random.Generator) -> Triple:
        (obj,) = self.model.falsify(np.array([row]), rng).tolist()
        return self._fact(row)._replace(object=obj)

    def _true(self, subject: int, relation: int) -> Triple:
        """Return the fact of (s, r) with its true object, or the most probable one for a novel subject."""
        if subject < len(self.graph.subjects) and (row := int(self.graph.row_of[subject, relation])) >= 0:
            return self._fact(row)
        return Triple(subject, relation, self.agent.marginal(subject, relation).mode())

    # -- points

    def point(self, number: int, row: int) -> EvalPoint:
        fact = self._fact(row)
        rng = self._rng(number, "claims")
        coins = rng.random(2) < 0.5
        a = Claim(self._false(row, rng), False) if coins[0] else Claim(fact, True)
        subject = int(rng.integers(self.corpus.subjects))
        other = int(rng.integers(self.graph.starts[subject], self.graph.starts[subject + 1]))
        b = Claim(self._false(other, rng), False) if coins[1] else Claim(self._fact(other), True)
        questions, sentences = self._asked(number, fact, a, b)
        edited = self._edited(number, fact, row, b, questions) if self.spec.editing else (None, None, None)
        agents = self._agents(fact, edited[0])
        return EvalPoint(
            id=number,
            fact=fact,
            names=self._named(fact),
            known=True,
            has_relevant_property=bool(self.model.upstream[row] >= 0),
            targets=self._targets(self.agent, fact, (fact.object,), True)[0],
            questions=questions,
            sentences=sentences,
            request=edited[0],
            watched=edited[1],
            flags=edited[2],
            claims={name: self._with_beliefs(claim, fact, agents) for name, claim in (("A", a), ("B", b))},
        )

    def novel_point(self, number: int, index: int) -> EvalPoint:
        """Return a point about a subject nobody has written about: its beliefs are those about the relation."""
        observed = [r for r in range(len(self.graph.relations)) if len(self._subjects(r, r))]
        relation = int(self._rng(number, "claims").choice(observed))
        fact = self._true(len(self.graph.subjects) + index, relation)
        questions = {"o_given_s_r": self._question("o_given_s_r", Statement(Kind.ATOMIC, None, fact), None, False)}
        edited = self._edited(number, fact, -1, None, questions) if self.spec.editing else (None, None, None)
        return EvalPoint(
            id=number,
            fact=fact,
            names=self._named(fact),
            known=False,
            has_relevant_property=False,
            targets=self._targets(self.agent, fact, (fact.object,), True)[0],
            questions=questions,
            sentences=(),
            request=edited[0],
            watched=edited[1],
            flags=edited[2],
        )

    def _named(self, fact: Triple) -> tuple[str, str, str]:
        return self.names.subjects[fact.subject], self.graph.relations[fact.relation], self.graph.objects[fact.object]

    # -- questions

    def _question(self, name: str, said: Statement, truth: bool | None, scored: bool) -> Question:
        target = self.graph.objects[said.first.object] if said.label is None else label_word(said.label)
        return Question(name, said.prompt(self.names), target, truth, self.corpus.has_seen(said), scored)

    def _asked(self, number: int, fact: Triple, a: Claim, b: Claim) -> tuple[dict[str, Question], tuple[str, ...]]:
        """Return the questions of §6.3 that are not about an edit, and the point's true sentences."""
        said: dict[str, tuple[Statement, bool, bool]] = {}  # statement, truth, scored
        on = self.said
        if on.atomic:
            said["o_given_s_r"] = Statement(Kind.ATOMIC, None, fact), True, True
        if on.true_false:
            for name, claim in (("A_TF_case", a), ("B_TF_case", b)):
                said[name] = Statement(Kind.TRUE_FALSE, claim.truth, claim.fact), True, True
            said["A_sentence"] = Statement(Kind.ATOMIC, None, a.fact), a.truth, False
        if on.conjunctions:
            said["A_and_B_case"] = Statement(Kind.AND, a.truth and b.truth, a.fact, b.fact), True, True
            said["B_and_A_case"] = Statement(Kind.AND, a.truth and b.truth, b.fact, a.fact), True, True
        if on.disjunctions:  # written B first, as published (ruling D4)
            said["A_or_B_case"] = Statement(Kind.OR, a.truth or b.truth, b.fact, a.fact), True, True
        if on.negations:
            said["not_A_case"] = Statement(Kind.NOT, not a.truth, a.fact), True, True
        if on.implications:
            said["if_A_then_B_case"] = Statement(Kind.IF, not a.truth or b.truth, a.fact, b.fact), True, True
        questions = {name: self._question(name, *rest) for name, rest in said.items()}
        wordings = len(self.graph.wordings[fact.relation])
        if on.atomic and wordings:
            which = 1 + int(self._rng(number, "paraphrase").integers(wordings))
            reworded = Statement(Kind.ATOMIC, None, fact, wording=which)
            questions["paraphrase_case"] = self._question("paraphrase_case", reworded, True, True)
        return questions, tuple(statement.text(self.names) for statement, _, _ in said.values())

    # -- edits

    def _edited(
        self, number: int, fact: Triple, row: int, b: Claim | None, questions: dict[str, Question]
    ) -> tuple[Request, dict[str, Watched], Flags]:
        """Choose request and watched facts, ask the agent, and add the questions about the edit to *questions*."""
        active = self._active_child(fact, row)
        request = self._request(number, fact, row, active)
        facts, both = self._watch(number, fact, row, active)
        agents = self._agents(fact, request)
        watched = {}
        for name, watch in facts.items():
            modal = agents["target"].marginal(watch.subject, watch.relation).mode()
            objects = {ORIGINAL: watch.object, REQUESTED: request.object, MODAL: modal}
            targets = {}
            before = self._targets(self.agent, watch, tuple(objects.values()), True)
            for state, agent in agents.items():
                if state == "pre":
                    found = before
                elif agent.may_differ(watch.subject, watch.relation):
                    found = self._targets(agent, watch, tuple(objects.values()), False)
                else:
                    found = [target._replace(generative_prob=None) for target in before]
                targets[state] = dict(zip(OBJECTS, found, strict=True))
            watched[name] = Watched(watch, objects, targets)
        upstream = row >= 0 and bool(self.model.upstream[row] >= 0)
        flags = Flags(
            diff_r_is_dependent_rel=active is not None,
            same_r_is_dependent_rel=upstream,
            all_cases_independent=active is None and not upstream,
            using_diff_s_with_both_r_s=both,
            new_fact_reinforces=request.reinforces,
            downstream_answer_changes=watched[SAME_OTHER].objects[MODAL] != facts[SAME_OTHER].object,
        )
        for question in self._edit_questions(fact, request, watched, b):
            questions[question.name] = question
        return request, watched, flags

    def _agents(self, fact: Triple, request: Request | None) -> dict[str, Agent]:
        """Return the agent in each state."""
        agents = {"pre": self.agent}
        if request is None:
            return agents
        for state, update in request.updates.items():
            if update.kind != "none":
                learnt = Evidence(fact.subject, fact.relation, request.object, update.amount, kind=update.kind)
                agents[state] = self.agent.given(learnt)
        return agents

    def _with_beliefs(self, claim: Claim, fact: Triple, agents: Mapping[str, Agent]) -> Claim:
        """Return *claim* with what the agents believe of it; after an edit of *fact* that fact is read off the pair (ruling B5)."""
        subject, relation, obj = claim.fact
        beliefs = {}
        for state in (s for s in CLAIM_STATES if s in agents):
            own = state != "pre" and (subject, relation) == fact[:2]
            belief = agents[state].pair(subject, relation) if own else agents[state].marginal(subject, relation)
            beliefs[state] = float(belief.at(np.array([obj]))[0])
        return replace(claim, beliefs=beliefs)

    def _active_child(self, fact: Triple, row: int) -> int | None:
        """Return the relation that depends on the fact's and that its subject has (a novel subject: that others have)."""
        return next((c for c in self.model.arrows.children[fact.relation] if self._has(fact, c, row)), None)

    def _has(self, fact: Triple, relation: int, row: int) -> bool:
        """Say whether the fact's subject has *relation*, or, a novel one, whether somebody has both."""
        if row < 0:
            return len(self._subjects(fact.relation, relation)) > 0
        return bool(self.graph.row_of[fact.subject, relation] >= 0)

    def _request(self, number: int, fact: Triple, row: int, active: int | None) -> Request:
        """Choose the requested object (§6.5) and the strength of each update."""
        rng = self._rng(number, "request")
        share = rng.random()
        wanted: int | None = None
        if active is not None and share < self.spec.downstream_share:
            wanted = self._downstream(fact, active, rng)
        elif active is None and share < self.spec.reinforce_share and row >= 0:
            wanted = fact.object
        if wanted is None:
            wanted = self._counterfactual(fact, row, rng)
        reinforces = wanted == fact.object
        mass = self._mass(fact, wanted)
        updates = {
            "pre": Update("none", 0.0),
            "item": Update("item", 1.0),
            "items": Update("item", 1.0 if self.model.parity.n1000_weight_one else 1000.0),
            "target": Update("mass", mass),
        }
        return Request(wanted, reinforces, updates)

    def _mass(self, fact: Triple, wanted: int) -> float:
        """Return the mass that lifts *wanted* to the target, or, if it is the true object and beyond, half-way to 1 (§6.5)."""
        target = self.spec.target
        if wanted == fact.object and self.agent.knows(fact.subject, fact.relation):
            now = float(self.agent.pair(fact.subject, fact.relation).at(np.array([wanted]))[0])
            target = now + (1 - now) / 2 if now > target else target
        return self.agent.mass_to_reach(fact.subject, fact.relation, wanted, target)

    def _downstream(self, fact: Triple, child: int, rng: np.random.Generator) -> int | None:
        """Return an upstream object that changes the agent's downstream answer, or None if none was found (ruling D1).

        Candidates have a conditional with evidence whose mode is another answer, also with the subject's own downstream evidence
        moved there; drawn in random order, the first whose update does change the answer is taken.
        """
        fitted = self.agent.fitted
        if child not in self._requests:
            rows = np.flatnonzero(fitted.conditionals.keys // fitted.objects == child)
            above = fitted.conditionals.keys[rows] % fitted.objects
            answers = [self.agent.conditional(child, o).mode() for o in above.tolist()]
            self._requests[child] = rows, np.array(answers, dtype=np.int64)
        rows, modes = self._requests[child]
        above = fitted.conditionals.keys[rows] % fitted.objects
        if self.model.parity.unfiltered_downstream_request:
            return int(rng.choice(above)) if len(above) else None
        current = self._true(fact.subject, child).object
        moved = self.agent.share_after(fact.subject, fact.relation, self.spec.target)
        lead = fitted.conditionals.excess_at(rows, modes) - fitted.conditionals.excess_at(
            rows, np.full(len(rows), current)
        )
        own = self.agent.pair_excess(fact.subject, child, np.append(modes, current))
        lead += moved * (own[:-1] - own[-1])
        drawn = rng.permutation(above[(modes != current) & (above != fact.object) & (lead > 0)])
        for wanted in drawn[:_TRIES].tolist():
            learnt = Evidence(*fact._replace(object=wanted), self._mass(fact, wanted), kind="mass")
            if self.agent.given(learnt).marginal(fact.subject, child).mode() != current:
                return int(wanted)
        return None

    def _counterfactual(self, fact: Triple, row: int, rng: np.random.Generator) -> int:
        """Return an object that is not the fact's (§4.5; ruling D3)."""
        if self.spec.request_scope == "distractor" and row >= 0:
            return self._false(row, rng).object
        scope = self._ranges[fact.relation] if self.spec.request_scope != "all" else np.arange(len(self.graph.objects))
        others = scope[scope != fact.object]
        if not len(others):
            raise NotEditableError(
                f"relation '{self.graph.relations[fact.relation]}' has one object, so there is no other to request",
                hint="request_scope: all",
            )
        return int(rng.choice(others))

    def _watch(self, number: int, fact: Triple, row: int, active: int | None) -> tuple[dict[str, Triple], bool]:
        """Return the four watched facts (§6.6), and whether one other subject serves both."""
        rng = self._rng(number, "watched")
        subject, relation, _ = fact
        other = active
        if other is None:
            mine = [r for r in range(len(self.graph.relations)) if r != relation and self._has(fact, r, row)]
            if not mine:
                raise NotEditableError(f"nobody has another relation beside '{self.graph.relations[relation]}'")
            other = int(rng.choice(mine))
        both = self._subjects(relation, other)
        both = both[both != subject]
        if len(both):
            one = two = int(rng.choice(both))
        else:
            one, two = (self._someone(r, subject, rng) for r in (relation, other))
        facts = {
            SAME_SAME: fact,
            OTHER_SAME: self._true(one, relation),
            SAME_OTHER: self._true(subject, other),
            OTHER_OTHER: self._true(two, other),
        }
        return facts, bool(len(both))

    def _subjects(self, one: int, two: int) -> Ints:
        """Return the subjects with evidence on both relations."""
        if (one, two) not in self._both:
            fitted = self.agent.fitted
            found = np.intersect1d(fitted.subjects_with(one), fitted.subjects_with(two), assume_unique=True)
            self._both[one, two] = found
        return self._both[one, two]

    def _someone(self, relation: int, but: int, rng: np.random.Generator) -> int:
        others = self._subjects(relation, relation)
        others = others[others != but]
        if not len(others):
            raise NotEditableError(
                f"no other subject has relation '{self.graph.relations[relation]}'", hint="a larger graph or corpus"
            )
        return int(rng.choice(others))

    def _targets(self, agent: Agent, fact: Triple, objects: tuple[int, ...], generative: bool) -> list[Target]:
        """Return what is to be believed of each of *objects* as answers to (s, r)."""
        subject, relation, _ = fact
        asked = np.array(objects, dtype=np.int64)
        row = int(self.graph.row_of[subject, relation]) if subject < len(self.graph.subjects) else -1
        columns: list[list[float] | list[None]] = []
        if generative and row >= 0:
            columns.append(self.model.probability(np.full(len(asked), row), asked).tolist())
        else:
            columns.append([None] * len(asked))
        readings: tuple[Estimator, ...] = ("frequency", "posterior")
        columns += [agent.pair(subject, relation, r).at(asked).tolist() for r in readings]
        if agent.has_parent(subject, relation):
            columns += [agent.marginal(subject, relation, r).at(asked).tolist() for r in readings]
        else:
            columns += [[None] * len(asked)] * 2
        if row >= 0 and self.model.upstream[row] >= 0:
            above = int(self.model.true[self.model.upstream[row]])
            columns += [agent.conditional(relation, above, r).at(asked).tolist() for r in readings]
        else:
            columns += [[None] * len(asked)] * 2
        columns.append([agent.sample_size(subject, relation)] * len(asked))
        return [Target(*values) for values in zip(*columns, strict=True)]

    def _edit_questions(
        self, fact: Triple, request: Request, watched: Mapping[str, Watched], b: Claim | None
    ) -> Iterator[Question]:
        """Yield the published cases of an edit, then logical ones about the requested fact (ruling G6)."""
        asked = fact._replace(object=request.object)
        truth = request.reinforces if self._is_known(fact) else None
        yield self._question("new_fact_case", Statement(Kind.ATOMIC, None, asked), truth, False)
        for name, watch in watched.items():
            for role, obj in watch.objects.items():
                said = Statement(Kind.ATOMIC, None, watch.fact._replace(object=obj))
                truth = obj == watch.fact.object if self._is_known(watch.fact) else None
                yield self._question(f"editing_{name}_{role}", said, truth, False)
        on = self.said
        if b is None or not on.true_false:
            return
        yield self._question("requested_TF_case", Statement(Kind.TRUE_FALSE, True, asked), request.reinforces, False)
        if on.negations:
            yield self._question("not_requested_case", Statement(Kind.NOT, False, asked), request.reinforces, False)
        if on.conjunctions:
            for name, pair in (("requested_and_B_case", (asked, b.fact)), ("B_and_requested_case", (b.fact, asked))):
                truth = (request.reinforces and b.truth) == b.truth
                yield self._question(name, Statement(Kind.AND, b.truth, *pair), truth, False)
        if on.disjunctions:
            said = Statement(Kind.OR, True, b.fact, asked)
            yield self._question("requested_or_B_case", said, request.reinforces or b.truth, False)

    def _is_known(self, fact: Triple) -> bool:
        return fact.subject < len(self.graph.subjects)


def _novel_names(corpus: Corpus, count: int, seed: int) -> tuple[str, ...]:
    """Return names made of the first word of one subject and the last of another, none of them taken.

    There are *count* of them, and behind them as many again, or what can be made, for points that cannot be edited.

    Raises:
        BeliefError: there are not enough combinations.
    """
    rng = np.random.default_rng(derive(seed, "belief", "novel"))
    graph = corpus.model.graph
    taken = {*graph.subjects, *graph.objects}
    found: dict[str, None] = {}
    for _ in range(100 * count):
        if len(found) == 2 * count:
            break
        first, last = (graph.subjects[i].split() for i in rng.integers(corpus.subjects, size=2).tolist())
        name = f"{first[0]} {last[-1]}"
        if name not in taken:
            found[name] = None
    if len(found) < count:
        raise BeliefError(f"only {len(found)} of {count} novel names can be made", hint="ask for fewer novel points")
    return tuple(found)
