"""The rows a run produces. Dataclasses, never dicts; the Arrow schema in ``results/schema.py`` mirrors them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

# For types alone: reading results must not import torch.
if TYPE_CHECKING:
    from torch import Tensor

SHARED_PHASE_SUFFIX = "_shared"
"""Ends the name of a phase that several trials went through together: each has its seconds in full, so do not add them up."""

NON_FINITE_STAT = "non_finite/"
"""Begins the name of a StatRow that counts NaN and infinite entries of a weight; there is none where all are finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlace:
    """What was asked, of which trial and when: what rows about probes begin with.

    Attributes:
        trial_key: key of the trial.
        step: records edited so far when this was measured; 0 = the unedited model.
        record_id: the record.
        edit_step: step at which the record was written (1-based position in the trial's order).
        superseded_step: step at which a later record with the same prompt and another target was written; None = never.
        probe_kind: efficacy, paraphrase, locality or portability.
        probe_name: tells probes of one kind apart (``novel``, ``same_subject``, ``hop2``).
        probe_index: position of the probe in its record.
    """

    trial_key: str
    step: int
    record_id: str
    edit_step: int
    superseded_step: int | None
    probe_kind: str
    probe_name: str
    probe_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow(ProbePlace):
    """One measured value: one (record, probe, metric) at one step.

    Attributes:
        metric: name of the metric; with ``@`` and the protocol's label behind it where another protocol than the main asking
            measured it.
        value: its value; None = the probe had no scorable position; NaN = undefined, the logits were not finite.
        n_tokens: answer positions compared, or tokens written.
        prompt_digest: 16 hex digits over prompt and target.
        answer: what the model answered at the compared positions (arg-max tokens, decoded), or what it wrote.
    """

    metric: str
    value: float | None
    n_tokens: int
    prompt_digest: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow(ProbePlace):
    """One answer that the model wrote freely, under a protocol that lets it (docs/protocols.md).

    Attributes:
        protocol: the protocol's label, with its prompt and version.
        prompt: the text that was sent.
        target: the answer that was wanted.
        raw: what was written under the published stop rule, decoded with special tokens.
        stop: why it ended there: eos, string, length or non_finite.
        n_tokens: how many tokens that is.
        answer: ``raw`` cleaned as published.
        affected: a full stop stands inside the target, so the published rule may cut even the right answer.
        raw_whole: what was written where the target's own inner full stops end no answer; None where that is ``raw``.
        normalised_match: 1 if ``answer`` is the target, both normalised, else 0; None of locality, or if logits were not finite.
        whole_match: the same of the answer in ``raw_whole``.
        same_answer: of locality, 1 if the unedited model's tokens were written, else 0.
        margin: by how much the largest logit was above the second, at the least; None if none was finite.
        near_tie: that is within rounding, so another batch size may have given another answer.
    """

    protocol: str
    prompt: str
    target: str
    raw: str
    stop: str
    n_tokens: int
    answer: str
    affected: bool
    raw_whole: str | None
    normalised_match: float | None
    whole_match: float | None
    same_answer: float | None
    margin: float | None
    near_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow(ProbePlace):
    """What a judge said of one stored answer.

    Attributes:
        protocol: of the answer.
        question: the probe's prompt as it was sent.
        target: the answer that was wanted.
        answer: the one that was judged, cleaned as published.
        model: the judge.
        prompt_hash: 16 hex digits over the judge's prompt.
        verdict: 1 = it states the target, 0 = it does not; None = the judge gave no verdict.
        text: what the judge replied.
        error: why there is no verdict; None if there is one.
    """

    protocol: str
    question: str
    target: str
    answer: str
    model: str
    prompt_hash: str
    verdict: float | None
    text: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatRow:
    """One number an editor reported about one call (deterministic: never a time).

    ``step`` is the step reached by the call; ``name`` is the editor's own (``residual``, ``loss``).
    """

    trial_key: str
    step: int
    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRow:
    """Where the seconds went; kept apart from the facts because it differs between equal runs.

    ``phase`` is ``load``, ``artifacts``, ``edit``, ``apply``, ``immediate``, ``round``, ``base`` or ``snapshot``; with
    ``_shared`` behind it, it was done once for all trials of an edit group. ``count`` is how many edits or records the seconds
    cover; ``step`` is the round they belong to.
    """

    trial_key: str
    step: int
    phase: str
    seconds: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BeliefRow:
    """What a model makes of one question of an evaluation point, and what the ideal agent does.

    Attributes:
        trial_key: key of the trial.
        step: records edited so far when this was asked; 0 = the unedited model. Where each edit stands alone, the record's
            position.
        record_id: the record, and so the point.
        edit_step: step at which the record is written (1-based position in the trial's order).
        inner_step: steps that the edit itself had taken (of its optimiser); 0 = the unedited model.
        last_step: the edit was complete.
        question: its name.
        target: the continuation that was asked for.
        probability: the model's, of the target after the prompt.
        expected: the agent's, at that step; None where the agent is not asked.
        correct: what the model wrote contains the target.
        exact: what it wrote up to its first stop is the target.
        output: what it wrote.
    """

    trial_key: str
    step: int
    record_id: str
    edit_step: int
    inner_step: int
    last_step: bool
    question: str
    target: str
    probability: float
    expected: float | None
    correct: bool
    exact: bool
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """One evaluation point of a trial; ``point`` is all of it, as a line of ``points/2``.

    ``replaces`` is the record in whose place it came, because of its ``refusal``; None where the plan's own point is edited.
    ``testbed`` is JSON: the setting (``spec``), how many facts were passed over and why, the number of relations; None in
    results older than that column.
    """

    trial_key: str
    record_id: str
    edit_step: int
    subject: str
    relation: str
    object: str
    requested: str
    reinforces: bool
    has_relevant_property: bool
    downstream_answer_changes: bool
    point: str
    # Since version 2 of the table; rows of older files have none of the three.
    replaces: str | None = None
    refusal: str | None = None
    testbed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One number of the log that was kept while the trial's model was trained: ``name`` at ``n_tokens`` tokens."""

    trial_key: str
    row: int
    n_tokens: int
    name: str
    value: float


TableRow = ProbeRow | AnswerRow | VerdictRow | StatRow | TimingRow | BeliefRow | PointRow | TrainingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a trial needs to go on after ``step`` edits, bit for bit.

    ``tensors`` holds edited weights (``weights/<name>``) and editor state (``state/<path>``); ``meta`` is plain JSON.
    No generator state: generators derive from (seed, step).
    """

    step: int
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedModel:
    """A model as its trial's last round measured it: the pristine model with these tensors in their places.

    ``tensors`` holds weights (``weights/<name>``, in the model's precision, as stored) and the memory of an editor that replaces
    modules (``state/<path>``); ``meta`` is plain JSON.
    """

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRound:
    """What a study yields at each round.

    Attributes:
        step: the round's step.
        rows: every ProbeRow measured since the last round, this round included.
        stats: every StatRow since the last round.
        timing: every TimingRow since the last round.
        summary: what the scheduler and the progress display see (``retained/efficacy`` …); derivable from rows.
        snapshot: None only where nothing was edited yet.
        beliefs: every BeliefRow since the last round; of the belief studies only, as are points and training.
        points: the trial's PointRows, with its first round.
        training: its TrainingRows, with its first round.
        edited: the model that was measured; of the last round only, and only where ``protocol.keep`` asks for it.
        answers: every AnswerRow since the last round; only where ``protocol.also`` names a protocol that lets a model write.
    """

    step: int
    rows: Sequence[ProbeRow]
    stats: Sequence[StatRow] = ()
    timing: Sequence[TimingRow] = ()
    summary: Mapping[str, float] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    beliefs: Sequence[BeliefRow] = ()
    points: Sequence[PointRow] = ()
    training: Sequence[TrainingRow] = ()
    edited: EditedModel | None = None
    answers: Sequence[AnswerRow] = ()
