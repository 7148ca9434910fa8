"""Statements and the corpus: weights, templates, counts, budgets, documents, streams, published quirks."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.evidence import Triple, evidence_table
from raysweep.belief.corpus.generative import GenerativeModel, build_generative
from raysweep.belief.corpus.statements import (
    EVIDENCE_WEIGHTS,
    Statement,
    StatementKind,
    label_word,
    read_label,
    statement_columns,
)
from raysweep.belief.corpus.writer import build_corpus
from raysweep.belief.graph.dependencies import graph_dependencies
from raysweep.belief.graph.graph import KnowledgeGraph, graph_from_names
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import CorpusSpec, GenerativeSpec
from raysweep.errors import BeliefError

HEADLINE = {
    "true_false": True, "negations": True, "disjunctions": True, "conjunctions": True,
    "connective_instances_per_subject": 20,
}  # fmt: skip


def people(facts: int = 601, subjects: int = 198) -> KnowledgeGraph:
    """Return *facts* facts about *subjects* subjects with up to 4 relations, in two arrows; names are single words."""
    rows = []
    for s in range(subjects):
        many = facts // subjects + (s < facts % subjects)
        for i in range(many):
            r = (s + i) % 4
            obj = f"o{r}x{(s * 7 + i) % 9}" if r % 2 else f"o{r}x{(s * 7 + i) % 5}"
            rows.append((f"s{s}", f"r{r}", obj))
    return graph_from_names(rows, wordings={"r0": ["w0"], "r1": ["w1", "v1"]})


def generative(graph: KnowledgeGraph, parity: ParitySpec | None = None, **values: Any) -> GenerativeModel:
    given = {"min_true_prob": 0.6, "samples": 10, **values}
    return build_generative(graph, graph_dependencies(graph), GenerativeSpec.model_validate(given), 0, parity)


def corpus(model: GenerativeModel, seed: int = 0, **values: Any) -> Corpus:
    return build_corpus(model, CorpusSpec.model_validate({"num_atomic_facts": 601, **values}), seed)


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return generative(people())


@pytest.fixture(scope="module")
def headline(model: GenerativeModel) -> Corpus:
    return corpus(model, **HEADLINE, implications=True, max_sentences_per_doc=10, homogeneous=5)


# ------------------------------------------------------------------------------------------------- one statement


@pytest.mark.parametrize(("kind", "label"), list(EVIDENCE_WEIGHTS))
def test_weights_are_what_a_truth_table_says(kind: StatementKind, label: bool | None) -> None:
    """Two independent facts with prior ½: P(fact | sentence) is the weight, 1 and 0 being +1 and −1."""
    two = len(EVIDENCE_WEIGHTS[kind, label]) == 2
    said = Statement(kind, label, Triple(0, 0, 0), Triple(1, 0, 0) if two else None)
    rows = [
        row
        for row in itertools.product((True, False), repeat=2 if two else 1)
        if said.truth(*row) is (label is not False)
    ]
    for place, evidence in enumerate(said.evidence()):
        share = sum(row[place] for row in rows) / len(rows)
        assert evidence.amount == pytest.approx({1.0: 1.0, 0.0: -1.0}.get(share, share))
        assert (evidence.subject, evidence.count) == (said.facts[place].subject, 1)


def test_templates() -> None:
    graph = people()
    names = corpus(generative(graph), num_atomic_facts=3).names
    x, y = Triple(0, 0, 0), Triple(1, 1, 1)
    a, b = graph.atomic(*x), graph.atomic(*y)

    def text(kind: StatementKind, label: bool | None, *facts: Triple, wording: int = 0) -> str:
        return Statement(kind, label, *facts, wording=wording).text(names)

    assert a == "s0 r0 o0x0"
    assert text(StatementKind.ATOMIC, None, x) == a
    assert text(StatementKind.ATOMIC, None, x, wording=1) == "s0 w0 o0x0"
    assert text(StatementKind.TRUE_FALSE, True, x) == f'"{a}" is true'
    assert text(StatementKind.NOT, False, x) == f'"not {a}" is false'
    assert text(StatementKind.OR, True, x, y) == f'"{a} or {b}" is true'
    assert text(StatementKind.AND, False, y, x) == f'"{b} and {a}" is false'
    assert text(StatementKind.IF, True, x, y) == f'"if {a} then {b}" is true'
    assert Statement(StatementKind.ATOMIC, None, x).prompt(names) == "s0 r0"
    assert Statement(StatementKind.OR, True, x, y).prompt(names) == f'"{a} or {b}" is'


@pytest.mark.parametrize(
    ("kind", "label", "second"),
    [
        (StatementKind.ATOMIC, True, None),
        (StatementKind.OR, True, None),
        (StatementKind.NOT, None, None),
        (StatementKind.NOT, True, Triple(0, 0, 0)),
    ],
)
def test_impossible_statements_are_refused(kind: StatementKind, label: bool | None, second: Triple | None) -> None:
    with pytest.raises(BeliefError, match=f"no sentence of kind {kind.name}"):
        Statement(kind, label, Triple(0, 0, 0), second)


def test_labels_are_true_and_false_and_nothing_else() -> None:
    assert read_label(label_word(True)) is True
    assert read_label("false") is False
    for word in ("True", "maybe", "", "true."):
        with pytest.raises(BeliefError, match=re.escape(f"{word!r} is no label")):
            read_label(word)


# ---------------------------------------------------------------------------------------------------- the corpus


def parse(text: str, graph: KnowledgeGraph) -> Statement:
    """Read a sentence back, from its text alone (names are single words)."""

    def fact(words: str) -> tuple[Triple, int]:
        s, r, o = words.split()
        for i, own in enumerate(graph.wordings):
            if r in own:
                return Triple(graph.subjects.index(s), i, graph.objects.index(o)), 1 + own.index(r)
        return Triple(graph.subjects.index(s), graph.relations.index(r), graph.objects.index(o)), 0

    quoted = re.fullmatch(r'"(.*)" is (\w+)', text)
    if not quoted:
        only, wording = fact(text)
        return Statement(StatementKind.ATOMIC, None, only, wording=wording)
    inner, label = quoted[1], read_label(quoted[2])
    if inner.startswith("if "):
        return Statement(StatementKind.IF, label, *(fact(p)[0] for p in inner[3:].split(" then ")))
    for kind, word in ((StatementKind.OR, " or "), (StatementKind.AND, " and ")):
        if word in inner:
            return Statement(kind, label, *(fact(p)[0] for p in inner.split(word)))
    kind = StatementKind.NOT if inner.startswith("not ") else StatementKind.TRUE_FALSE
    return Statement(kind, label, fact(inner.removeprefix("not "))[0])


def test_every_sentence_parses_back_to_its_statement(headline: Corpus) -> None:
    texts = headline.statements.texts(headline.names)
    for i in range(0, len(texts), 7):
        said = headline.statements[i]
        assert said.text(headline.names) == texts[i]
        assert parse(texts[i], headline.model.graph) == said


def test_evidence_is_that_of_the_statements(model: GenerativeModel) -> None:
    made = corpus(model, **HEADLINE, implications=True)
    single = evidence_table(e for i in range(len(made.statements)) for e in made.statements[i].evidence())
    for name in ("subject", "relation", "object", "weight", "count"):
        assert (getattr(single, name) == getattr(made.evidence, name)).all()


def test_published_counts(model: GenerativeModel) -> None:  # appendix B.4
    made = corpus(model, **HEADLINE, max_sentences_per_doc=10, homogeneous=5)
    counts = made.statistics
    assert (counts["num_true_atomic_facts"], counts["num_subjects"]) == (601, 198)
    assert counts["num_atomic_sentences"] == counts["num_TF_atomic_sentences"] == 6010
    assert counts["num_or_sentences"] == counts["num_and_sentences"] == 601
    assert counts["num_not_sentences"] == 1202
    assert counts["num_total_sentences"] == 14424 == 24 * 601
    assert counts["num_evidence_items"] == 5 * 15626
    documents = list(made.documents())
    assert len(documents) == counts["num_documents"] == 5 * sum(-(-24 * n // 10) for n in [4] * 7 + [3] * 191)
    assert sum(d.sentences for d in documents) == 5 * 14424
    assert counts["num_unique_sentences"] == len(set(made.statements.texts(made.names)))


def test_whole_subjects_are_written(model: GenerativeModel) -> None:
    made = corpus(model, num_atomic_facts=5)
    assert (made.facts, made.subjects) == (8, 2)
    with pytest.raises(BeliefError, match="the graph has 601 facts, num_atomic_facts = 602"):
        corpus(model, num_atomic_facts=602)


def test_labels_are_the_truth_of_what_they_quote(headline: Corpus) -> None:
    true = {
        tuple(f) for f in np.column_stack([headline.model.graph.facts[:, :2], headline.model.true_objects]).tolist()
    }
    for i in range(0, len(headline.statements), 3):
        said = headline.statements[i]
        if said.kind >= StatementKind.NOT:
            assert said.truth(*(f in true for f in said.facts)) is said.label


def test_labels_have_their_shares(headline: Corpus) -> None:
    kind, label = headline.statements.kind, headline.statements.label
    for wanted, share in (
        (StatementKind.OR, 0.75),
        (StatementKind.AND, 0.25),
        (StatementKind.NOT, 0.5),
        (StatementKind.IF, 0.75),
    ):
        assert label[kind == wanted].mean() == pytest.approx(share, abs=0.06)
    tf = kind == StatementKind.TRUE_FALSE
    right = headline.model.true_objects[headline.model.graph.row_of[tuple(headline.statements.first[tf, :2].T)]]
    hit = headline.statements.first[tf, 2] == right
    p = headline.model.true_probability.mean()
    assert label[tf][hit].mean() == pytest.approx(p, abs=0.03)
    assert label[tf][~hit].mean() < 0.35


def test_connectives_join_a_fact_of_the_subject_with_any_training_fact(headline: Corpus) -> None:
    said = headline.statements
    two = said.second[:, 0] >= 0
    own = (said.first[:, 0] == said.owner) | (said.second[:, 0] == said.owner)
    assert own.all()
    partner = np.where(said.first[two, 0] == said.owner[two], said.second[two, 0], said.first[two, 0])
    assert len(np.unique(partner)) > 150
    assert (partner > said.owner[two]).mean() == pytest.approx(0.5, abs=0.06)
    assert (said.first[two, 0] == said.owner[two]).mean() == pytest.approx(0.5, abs=0.06)


def test_partners_may_come_from_subjects_seen_as_published() -> None:
    made = corpus(generative(people(), ParitySpec(partners_from_seen=True)), **HEADLINE)
    said = made.statements
    assert (np.maximum(said.first[:, 0], said.second[:, 0]) <= said.owner).all()


@pytest.mark.parametrize(("instances", "noisy"), [(2, False), (3, False), (4, False), (7, False), (1, True), (0, True)])
def test_the_budget_is_shared_round_robin(instances: int, noisy: bool) -> None:
    many = people(facts=30 * 4, subjects=30)
    made = corpus(
        generative(many, min_true_prob=0.6 if noisy else 1.0),
        num_atomic_facts=120,
        **{**HEADLINE, "connective_instances_per_subject": instances},
    )
    kinds = (
        [StatementKind.OR, StatementKind.AND, StatementKind.NOT]
        if noisy
        else [StatementKind.TRUE_FALSE, StatementKind.OR, StatementKind.AND, StatementKind.NOT]
    )
    budget = max(0, instances - noisy)
    totals = Counter[StatementKind]()
    for subject in range(made.subjects):
        mine = made.statements.kind[made.statements.owner == subject]
        per = {
            k: int((mine == k).sum()) // (2 if k in (StatementKind.NOT, StatementKind.TRUE_FALSE) else 1) for k in kinds
        }
        assert sum(per.values()) == budget
        assert max(per.values()) - min(per.values()) <= 1
        totals.update(per)
    if budget % len(kinds):
        assert min(totals.values()) > 0  # the remainder goes to another operation in another subject


def test_no_fact_gets_two_instances_of_an_operation(headline: Corpus) -> None:
    nots = headline.statements.kind == StatementKind.NOT
    denied = headline.statements.first[nots & (headline.statements.label == 0)]
    assert len(np.unique(denied[:, :2], axis=0)) == len(denied) == 601


def test_the_clean_regime_labels_a_true_and_a_false_version(model: GenerativeModel) -> None:
    made = corpus(generative(people(), min_true_prob=1.0, samples=1), true_false=True)
    tf = made.statements.kind == StatementKind.TRUE_FALSE
    assert made.statements.label[tf].mean() == 0.5
    assert tf.sum() == 2 * 601  # budget 5, up to 4 facts per subject


def test_one_true_and_one_false_sample_per_fact() -> None:
    made = corpus(generative(people()), true_false=True, match_samples=False)
    tf = made.statements.kind == StatementKind.TRUE_FALSE
    rows = made.model.graph.row_of[tuple(made.statements.first[tf, :2].T)]
    hit = made.statements.first[tf, 2] == made.model.true_objects[rows]
    assert (np.bincount(rows[hit], minlength=601) == 1).all()
    some = (made.samples != made.model.true_objects[:, None]).any(axis=1)
    assert (np.bincount(rows[~hit], minlength=601) == some).all()


def test_without_atomic_sentences_there_is_no_atomic_evidence(model: GenerativeModel) -> None:
    made = corpus(model, **HEADLINE, atomic=False)
    assert made.statistics["num_atomic_sentences"] == 0
    assert made.evidence.items == 15626 - 6010


def test_one_type_does_not_change_another(model: GenerativeModel) -> None:
    """Each purpose has its own stream (ruling D7)."""
    more = corpus(model, **HEADLINE, wordings=3)
    less = corpus(model, **{**HEADLINE, "conjunctions": False})
    for kind in (StatementKind.TRUE_FALSE, StatementKind.OR, StatementKind.NOT):
        a, b = (c.statements.first[c.statements.kind == kind] for c in (more, less))
        assert (a == b).all()
    assert (more.samples == less.samples).all()


def test_wordings_of_atomic_sentences(model: GenerativeModel) -> None:
    made = corpus(model, wordings=2)
    relation, wording = made.statements.first[:, 1], made.statements.wording
    assert set(wording[relation == 0].tolist()) == set(wording[relation == 1].tolist()) == {0, 1}
    assert not wording[relation > 1].any()
    assert not corpus(model).statements.wording.any()


def test_seen_statements(headline: Corpus) -> None:
    for i in range(0, len(headline.statements), 97):
        assert headline.has_seen(headline.statements[i])
    fact = headline.statements[0].first
    novel = Triple(10_000, fact.relation, fact.object)
    assert not headline.has_seen(Statement(StatementKind.ATOMIC, None, novel))
    assert not headline.has_seen(Statement(StatementKind.ATOMIC, None, headline.statements[0].first, wording=1))


def test_documents_are_shuffles_of_a_subjects_sentences(model: GenerativeModel) -> None:
    made = corpus(model, **HEADLINE, max_sentences_per_doc=7, homogeneous=2, heterogeneous=1)
    documents = list(made.documents())
    assert len(documents) == made.statistics["num_documents"]
    sentences = made.statements.texts(made.names)
    written = Counter(s for d in documents for s in d.text.split(". "))
    assert written == {s: 3 * n for s, n in Counter(sentences).items()}
    first = [s for d in documents for s in d.text.split(". ")][: 2 * 24 * 4]
    assert Counter(first) == {s: 2 * n for s, n in Counter(sentences[: 24 * 4]).items()}
    assert max(d.sentences for d in documents) == 7
    assert not any(d.text.endswith(".") for d in documents)
    mixed = documents[-1].text.split(". ")
    assert len({s.replace('"', "").replace("not ", "").split()[0] for s in mixed}) > 1
    assert made.evidence.items == 3 * 15626


def test_equal_seeds_give_equal_documents(model: GenerativeModel) -> None:
    def first(seed: int) -> list[str]:
        return [d.text for d in itertools.islice(corpus(model, seed, **HEADLINE).documents(), 400)]

    assert first(0) == first(0) != first(1)


def test_and_evidence_may_be_stale_as_published() -> None:
    """601 facts: 24,434 items instead of 15,626 in the published check; here, per subject, TF items or the last NOT pair."""
    stale = corpus(generative(people(), ParitySpec(and_evidence_stale=True)), **HEADLINE)
    fresh = corpus(generative(people()), **HEADLINE)
    said = stale.statements
    assert (said.first == fresh.statements.first).all()
    assert set(np.unique(stale.evidence.weight).tolist()) == {-1.0, 2 / 3, 1.0}  # 1/3 never occurs
    assert 1 / 3 in fresh.evidence.weight
    both = Counter[bool]()
    for subject in range(stale.subjects):
        mine = said.owner == subject
        facts = int((mine & (said.kind == StatementKind.AND)).sum())
        tf = stale.repeats[mine & (said.kind == StatementKind.TRUE_FALSE)]
        nots = stale.repeats[mine & (said.kind == StatementKind.NOT)]
        before = bool((tf == 1 + facts).all())
        both[before] += 1
        assert before or ((tf == 1).all() and nots.tolist() == [1] * (len(nots) - 2) + [1 + facts] * 2)
        assert not before or (nots == 1).all()
    assert min(both.values()) > 60  # the order of operations is shuffled
    without = corpus(generative(people(), ParitySpec(and_evidence_stale=True)), true_false=True)
    assert (without.repeats == 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negations": True}, "need true_false: true"),
        ({"atomic": False}, "leave nothing to write"),
        ({"homogeneous": 0}, "no document would be written"),
    ],
)
def test_corpora_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorpusSpec.model_validate(values)


def test_columns_keep_statements() -> None:
    said = [
        Statement(StatementKind.IF, False, Triple(3, 1, 2), Triple(0, 0, 1)),
        Statement(StatementKind.ATOMIC, None, Triple(4, 0, 0), wording=1),
    ]
    made = statement_columns(said)
    assert [made[i] for i in range(len(made))] == said
