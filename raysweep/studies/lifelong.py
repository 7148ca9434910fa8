"""The lifelong study: edit record after record, measure at rounds. The only place that calls ``BaseEditor.edit``.

The loop, for one trial or for a group of trials that share their edits::

    state = editor.begin(model)
    for each batch of records:
        edit = editor.edit(model, batch, state)       # proposes; the model stays bit-identical
        state = group.apply(edit)                     # the one place that writes weights
        at a round of the protocol:  measure everything in scope, yield a round with a snapshot
        else, if asked for:          measure the batch just written

What is asked and how rows come of it is in :mod:`raysweep.studies.measuring`, what a group shares in
:mod:`raysweep.studies.edit_group`, and edits computed elsewhere in :mod:`raysweep.studies.proposals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from raysweep import pytree
from raysweep.errors import Problem
from raysweep.lazy import lazy
from raysweep.rows import EvalRound, Snapshot
from raysweep.studies.base import ComputeProposal, Deps, Progress, Study
from raysweep.studies.edit_group import EditGroup

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec
    from raysweep.editors.base import Proposal
    from raysweep.evals import boundaries
else:
    boundaries = lazy("raysweep.evals.boundaries")


class Lifelong(Study):
    """Edit T records in order; at each round measure every record in scope on the model as it stands."""

    name: ClassVar[str] = "lifelong"
    version: ClassVar[int] = 1
    artifact_kinds: ClassVar[tuple[str, ...]] = ("answers",)
    takes_chat: ClassVar[bool] = True
    shares_edits: ClassVar[bool] = True
    asks_further: ClassVar[bool] = True

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: too few records, rounds beyond the run."""
        size = trial.data.size or available
        problems = []
        if size > available:
            problems.append(
                Problem(
                    code="E-DATA",
                    message=f"data.size = {size}, but '{trial.data.name}' has {available} records after skip = {trial.data.skip}",
                    hint=f"use data.size ≤ {available}",
                )
            )
        beyond = [r for r in trial.protocol.rounds if r > size]
        if beyond:
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message=f"rounds beyond the data: {beyond}, but the run has {size} records",
                    hint=f"use rounds ≤ {size}, or a larger data.size",
                )
            )
        return problems

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*; the model is pristine again when the generator ends."""
        for _, measured in self.execute_group([trial], deps, {trial.key: resume} if resume else {}):
            yield measured

    def execute_group(
        self, trials: Sequence[TrialSpec], deps: Deps, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        """Run *trials*, which take their edits from one run over the records, or go on from *resumes*.

        The edits start where every trial has a snapshot; of each trial, only the rounds after its own snapshot are measured.
        """
        group = EditGroup.open(trials, deps)
        # Also where the caller stops taking rounds: closing the generator comes through here.
        try:
            yield from _run(group, resumes)
        finally:
            group.ledger.restore()

    def proposal_function(self, trial: TrialSpec, deps: Deps) -> ComputeProposal:
        """Return what computes proposals of *trial* in this process, for a run of it in another."""
        return EditGroup.open([trial], deps).proposals.compute


def _run(group: EditGroup, resumes: Mapping[str, Snapshot]) -> Iterator[tuple[str, EvalRound]]:
    """Yield a round of each member at each step of the protocol."""
    protocol, questionnaire = group.trial.protocol, group.questionnaire
    # What the unedited model answers is asked now, while it is unedited; a resumed run finds it in the store.
    questions = questionnaire.baseline_questions()
    with group.clock.measure("base", len(questions)):
        questionnaire.ask_baseline(questions, group.deps.artifacts)
        group.further.ask_baseline(questions, group.deps.artifacts)
        group.drifting.read_baseline()
    size = questionnaire.size
    # Log how often the tokenizer splits a question or a subject elsewhere than the published rule assumes (quirk Q3).
    boundaries.report(group.lm, group.records[:size], [q.probe for q in questionnaire.questions(range(size))])
    state = group.editor.begin(group.lm, group.artifacts)
    step = 0
    # Go on from the earliest snapshot: a member that is further already measures nothing until its own step has passed.
    for member in group.members:
        if member.trial.key in resumes:
            member.resume_from(resumes[member.trial.key])
    if all(member.measured_to >= 0 for member in group.members):
        snapshot = min(resumes.values(), key=lambda one: one.step)
        step, state = snapshot.step, group.restore(snapshot)
    elif 0 in protocol.rounds:
        yield from group.measure_round(0, state)
    # A step is named by how many records are written when it is done, so the first one is batch_size.
    steps = range(step + protocol.batch_size, protocol.rounds[-1] + 1, protocol.batch_size)
    proposals = group.proposals.in_order(steps)
    for step in steps:
        state = _edit(group, step, state, proposals)
        if step in protocol.rounds:
            yield from group.measure_round(step, state)
        elif protocol.immediate:
            group.measure_immediate(step, state)


def _edit(group: EditGroup, step: int, state: object, proposals: Iterator[Proposal] | None) -> object:
    """Write the batch that reaches *step* into the model; return the editor's new state."""
    batch = group.proposals.batch(step)
    written = step - len(batch)
    group.deps.progress(Progress(written, group.trial.protocol.rounds[-1], "edit"))
    with group.noting_collapse(written), group.clock.measure("edit", len(batch)):
        # Proposals come from wherever they were computed, absorbed in the order of the records all the same.
        if proposals is not None:
            edit = group.editor.absorb(group.lm, state, pytree.moved(next(proposals), group.lm.device))
        else:
            edit = group.proposals.edit(step, state)
    return group.apply(step, edit)
