"""Proposals: the expensive part of an edit, computed here or by helpers, one by one or in groups, or found in a cache.

An editor whose edits do not depend on each other (``BaseEditor.can_propose``) splits an edit in two: ``propose``, which needs
only the unedited model, and ``absorb``, which is cheap and must go in order. So proposals may come from anywhere; they only have
to be the same ones. Two rules see to that: the generator of a batch is seeded by the trial's seed and the batch's step, and which
batches are proposed together depends on the step alone, never on who asks or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from raysweep.editors.base import EditStep, Proposal
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.config.schema import TrialSpec
    from raysweep.editors.base import AnyEditor
    from raysweep.models import device_memory
    from raysweep.models.lm import LanguageModel
    from raysweep.studies.base import Deps
else:
    torch = lazy("torch")
    device_memory = lazy("raysweep.models.device_memory")

T = TypeVar("T")


def generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of the batch that reaches *step*; on the CPU, so that every device draws the same numbers."""
    return torch.Generator(device="cpu").manual_seed(derive(seed, "edit", step))


def edit(
    editor: AnyEditor,
    lm: LanguageModel,
    batch: Sequence[EditRecord],
    state: object,
    artifacts: Mapping[str, Artifact],
    *,
    seed: int,
    step: int,
) -> EditStep[object]:
    """Return what *editor* proposes for *batch*, which reaches *step*, and its *state*: the one call of ``BaseEditor.edit``.

    Raises:
        OutOfMemoryError: the accelerator has too little memory for it, even after what was cached has been freed.
    """

    def propose() -> EditStep[object]:
        # A generator of its own for each attempt, so that the second one draws the same numbers.
        return editor.edit(lm, batch, state, artifacts=artifacts, rng=generator(seed, step))

    return _within_memory(editor, propose, len(batch))


def _within_memory(editor: AnyEditor, work: Callable[[], T], count: int) -> T:
    """Do the work of *count* edits, which changes nothing; once more where there was no memory."""

    def cure() -> tuple[str, str]:
        together = "an edit needs" if count == 1 else f"{count} edits together need"
        hint = "use a larger accelerator, or model.dtype=bfloat16"
        # Not done here: how many go together moves last bits, so it is the trial's to say, not the device's.
        fewer = (
            f"make fewer of them together, {count // 2} say (value.batch or batch of {editor.name}, or "
            "protocol.batch_size), "
        )
        return f"{together} more memory than there is", (fewer if count > 1 else "") + hint

    return device_memory.within_memory(work, f"{count} edits" if count > 1 else "an edit", cure)


@dataclass(frozen=True, slots=True)
class ProposalSource:
    """Computes the proposals of a trial, in the order in which they are absorbed.

    Attributes:
        trial: whose.
        deps: its scheduler and its cache.
        editor: proposes.
        lm: the unedited model.
        records: of the run, in its order.
        artifacts: of the editor, by name.
    """

    trial: TrialSpec
    deps: Deps
    editor: AnyEditor
    lm: LanguageModel
    records: Sequence[EditRecord]
    artifacts: Mapping[str, Artifact]

    def batch(self, step: int) -> Sequence[EditRecord]:
        """Return the records that reach *step*."""
        return self.records[step - self.trial.protocol.batch_size : step]

    def edits(self, step: int) -> Sequence[EditRecord]:
        """Return the records that reach *step* as the editor is given them: one for each fact."""
        return [edit for record in self.batch(step) for edit in record.edits]

    def generator(self, step: int) -> torch.Generator:
        """Return the generator of the batch that reaches *step*."""
        return generator(self.trial.seed, step)

    def edit(self, step: int, state: object) -> EditStep[object]:
        """Return what a plain edit makes of the batch that reaches *step* and the editor's *state*.

        Raises:
            OutOfMemoryError: the accelerator has too little memory for it, even after what was cached has been freed.
        """
        return edit(self.editor, self.lm, self.edits(step), state, self.artifacts, seed=self.trial.seed, step=step)

    def in_order(self, steps: Sequence[int]) -> Iterator[Proposal] | None:
        """Return the proposals of *steps*, or None where the editor has none or nobody would gain by them."""
        if not self.editor.can_propose():
            return None
        # Where neither a scheduler nor a cache nor a group is at hand, plain edits do the same without a detour.
        grouped = self._group_size > 1
        # A group is asked for once, by the last of its steps.
        asked = list(dict.fromkeys(self._group_of(step)[-1] for step in steps)) if grouped else steps
        if self.deps.proposal_scheduler is not None:
            proposals = self.deps.proposal_scheduler(self.trial, asked, self.compute)
        elif grouped or self.deps.proposal_cache is not None:
            proposals = map(self.compute, asked)
        else:
            return None
        return self._ungrouped(proposals, asked, steps) if grouped else proposals

    def compute(self, step: int) -> Proposal:
        """Return what the batch that reaches *step* adds; of a group, what each of its batches adds, by step.

        A proposal of one record that took nothing from its generator depends on neither step nor seed, so it is kept. In a group it
        depends, by rounding, on the other members, and is not.
        """
        if self._group_size > 1:
            steps = self._group_of(step)
            each = _within_memory(self.editor, partial(self._propose_many, steps), len(steps))
            return {str(s): proposal for s, proposal in zip(steps, each, strict=True)}
        batch, cache = self.edits(step), self.deps.proposal_cache
        if cache is None or len(batch) != 1:
            return _within_memory(self.editor, lambda: self._propose(step)[0], len(batch))
        known = cache.get(batch[0].id)
        if known is not None:
            return known
        proposal, drew = _within_memory(self.editor, lambda: self._propose(step), 1)
        if not drew:
            cache.put(batch[0].id, proposal)
        return proposal

    def _propose(self, step: int) -> tuple[Proposal, bool]:
        """Return the proposal of *step*, and whether it drew anything from its generator."""
        # Seen in the generator's state, so an editor need not say that it draws nothing.
        rng = self.generator(step)
        before = rng.get_state()
        proposal = self.editor.propose(self.lm, self.edits(step), artifacts=self.artifacts, rng=rng)
        return proposal, not torch.equal(before, rng.get_state())

    def _propose_many(self, steps: Sequence[int]) -> Sequence[Proposal]:
        batches, rngs = [self.edits(s) for s in steps], [self.generator(s) for s in steps]
        return self.editor.propose_many(self.lm, batches, artifacts=self.artifacts, rngs=rngs)

    @property
    def _group_size(self) -> int:
        """How many steps' proposals are computed together."""
        return self.editor.group_size if self.trial.protocol.batch_size == 1 else 1

    def _group_of(self, step: int) -> range:
        """Return the steps whose proposals are computed with that of *step*: the same ones wherever and whenever asked for."""
        # Steps 1 … size, size + 1 … 2 size, and so on: from the step alone, so that a resumed run has the same groups.
        size, last = self._group_size, self.trial.protocol.rounds[-1]
        first = (step - 1) // size * size + 1
        return range(first, min(first + size, last + 1))

    def _ungrouped(self, groups: Iterator[Proposal], asked: Sequence[int], steps: Sequence[int]) -> Iterator[Proposal]:
        """Yield the proposals of *steps* out of those of their groups."""
        wanted = set(steps)
        for end in asked:
            group = next(groups)
            for step in self._group_of(end):
                # a step that was reached before the run was interrupted is computed with its group, and dropped
                if step in wanted:
                    proposal = group[str(step)]
                    assert isinstance(proposal, Mapping)
                    yield proposal
