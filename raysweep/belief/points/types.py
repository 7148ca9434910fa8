"""What an evaluation point consists of: questions, the requested update, four watched facts, and two claims.

A point is about one fact. Its *questions* are prompts with expected continuations. Its *request* is an update of that fact. Four
facts are *watched* before and after: same or other subject × same or other relation. See docs/methods/belief.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from raysweep.belief.corpus.evidence import Triple
from raysweep.errors import BeliefError

# The four watched facts: subject, then relation, the same as the edited fact's or another. SAME_SAME is the edited fact.
SAME_SAME, OTHER_SAME, SAME_OTHER, OTHER_OTHER = "same_s_same_r", "diff_s_same_r", "same_s_diff_r", "diff_s_diff_r"
WATCHED_FACTS = (SAME_SAME, OTHER_SAME, SAME_OTHER, OTHER_OTHER)

# The objects that are asked about at each watched fact: its true one, the requested one, and what the agent answers after the edit.
ORIGINAL, REQUESTED, MODAL = "orig_GT_obj", "requested_obj", "new_modal_obj"
OBJECT_ROLES = (ORIGINAL, REQUESTED, MODAL)

AGENT_STATES: Mapping[str, str] = {
    "pre": "pre_update_probs",
    "item": "post_update_probs_n=1",
    "items": "post_update_probs_n=1000",
    "target": "post_update_probs_p=95",
}
"""States of the agent, and what the published files call them (theirs computed ``n=1000`` with weight 1)."""

CLAIM_STATES = ("pre", "target")
"""States of the agent in which its belief in a claim is kept: before the edit, and after it."""


@dataclass(frozen=True, slots=True)
class PointQuestion:
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


# The order of the first seven is that of the published files' columns, which are made from `_fields`.
class TargetProbabilities(NamedTuple):
    """What is to be believed of one object of (s, r); None where it is not defined.

    Attributes:
        generative_prob: under the distribution that generates the fact.
        data_frequency_o_given_s_r: under the agent's pair distribution, as a frequency.
        posterior_prob_o_given_s_r: the same, as a posterior.
        data_frequency_marginalized: under the marginal over upstream objects, as a frequency.
        posterior_prob_marginalized: the same, as a posterior.
        data_frequency_true_conditional: under the conditional of the true upstream object, as a frequency.
        posterior_prob_true_conditional: the same, as a posterior.
        o_given_s_r_sample_size: Σe of the pair distribution.
    """

    generative_prob: float | None
    data_frequency_o_given_s_r: float
    posterior_prob_o_given_s_r: float
    data_frequency_marginalized: float | None
    posterior_prob_marginalized: float | None
    data_frequency_true_conditional: float | None
    posterior_prob_true_conditional: float | None
    o_given_s_r_sample_size: float


@dataclass(frozen=True, slots=True)
class UpdateStrength:
    """How strongly the requested fact is learnt: as one item of some weight, as mass, or not at all."""

    kind: Literal["none", "item", "mass"]
    amount: float


@dataclass(frozen=True, slots=True)
class WatchedFact:
    """One of the four facts, with three objects and what is to be believed of each in each state.

    Attributes:
        fact: with its true object (of a novel subject: the most probable one).
        objects: by name in ``OBJECT_ROLES``.
        targets: by state, then by name of the object.
    """

    fact: Triple
    objects: Mapping[str, int]
    targets: Mapping[str, Mapping[str, TargetProbabilities]]


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """The update asked for.

    Attributes:
        object: requested object.
        reinforces: it is the true object already.
        updates: how strongly it is learnt, by state of the agent.
    """

    object: int
    reinforces: bool
    updates: Mapping[str, UpdateStrength]


@dataclass(frozen=True, slots=True)
class EditFlags:
    """What kind of edit this is, under the published names.

    Attributes:
        diff_r_is_dependent_rel: the other relation that is watched depends on the edited one.
        same_r_is_dependent_rel: the edited fact depends on another fact of its subject.
        all_cases_independent: neither of the two.
        using_diff_s_with_both_r_s: one other subject serves both watched facts of another subject.
        new_fact_reinforces: the requested object is the true one.
        downstream_answer_changes: the agent's answer about the subject's other relation changes.
    """

    diff_r_is_dependent_rel: bool
    same_r_is_dependent_rel: bool
    all_cases_independent: bool
    using_diff_s_with_both_r_s: bool
    new_fact_reinforces: bool
    downstream_answer_changes: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A fact, or a false version of one.

    Attributes:
        fact: what is claimed.
        truth: whether it is so.
        beliefs: the agent's probability of it, by state in ``CLAIM_STATES``.
    """

    fact: Triple
    truth: bool
    beliefs: Mapping[str, float] = field(default_factory=dict)


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
    targets: TargetProbabilities
    questions: Mapping[str, PointQuestion]
    sentences: tuple[str, ...]
    request: UpdateRequest | None = None
    watched: Mapping[str, WatchedFact] | None = None
    flags: EditFlags | None = None
    claims: Mapping[str, Claim] = field(default_factory=dict)


class NotEditableError(BeliefError):
    """A fact has no update, nobody to watch, or names that no editor can tell apart; another fact takes its place."""
