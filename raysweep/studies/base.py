"""What a study is: a kind of trial, written as a generator of evaluation rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from raysweep.config.schema import DataSpec, ModelSpec, TextSpec, TrialSpec
from raysweep.editors.base import Proposal
from raysweep.errors import DataError, Problem
from raysweep.measures import PHASES
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, Snapshot

# Planning imports this module, and must do without torch (decision 008).
if TYPE_CHECKING:
    from raysweep.artifacts import ArtifactStore
    from raysweep.belief.testbed import Testbed
    from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life: *done* of *total* edits, doing *doing* (``edit``, ``round``, ``artifacts``, ``training the model``).

    ``steps`` are those done and those in all of what it is doing, where that is counted.
    """

    done: int
    total: int
    doing: str
    steps: tuple[int, int] | None = None


def _silent(progress: Progress) -> None:
    """Ignore progress."""


ComputeProposal = Callable[[int], Proposal]
"""From the step that a batch reaches to what the batch adds."""


class ProposalScheduler(Protocol):
    """Lets others compute proposals of a trial."""

    def __call__(self, trial: TrialSpec, steps: Sequence[int], here: ComputeProposal) -> Iterator[Proposal]:
        """Yield the proposals of *steps* in that order, wherever computed; *here* computes one in this process."""
        ...


class ProposalCache(Protocol):
    """Proposals by record, kept for other trials that would compute the same ones."""

    def get(self, record: str) -> Proposal | None:
        """Return what is kept of *record*, on the CPU."""
        ...

    def put(self, record: str, proposal: Proposal) -> None:
        """Keep the proposal of *record*."""
        ...


def _no_testbed(spec: DataSpec) -> Testbed:
    raise DataError(f"'{spec.name}' has no belief testbed", hint="data: {name: belief}")


@dataclass(frozen=True, slots=True)
class Deps:
    """The only effects a study may use; all injectable.

    Attributes:
        load_model: returns the pristine model of a spec (weights exactly as on disk).
        open_dataset: returns the chosen records of a spec, in file order, validated.
        artifacts: content-addressed store.
        texts: opens the text of a TextSpec (the DataSpec serves ``name: dataset``).
        progress: called between edits.
        proposal_scheduler: computes proposals elsewhere too, for editors whose edits may be computed apart; None = all here.
        proposal_cache: proposals that other trials share, for the same editors; None = nobody shares any.
        observe: called at each round with the model as it is measured and the step; None = nobody looks.
        open_testbed: returns the belief testbed that a spec's records come from.
        chosen: the records of the trial in its order, where a study has chosen them; None = those of its dataset.
    """

    load_model: Callable[[ModelSpec], LanguageModel]
    open_dataset: Callable[[DataSpec], Sequence[EditRecord]]
    artifacts: ArtifactStore
    texts: Callable[[TextSpec, DataSpec], Iterator[str]]
    progress: Callable[[Progress], None] = field(default=_silent)
    proposal_scheduler: ProposalScheduler | None = None
    proposal_cache: ProposalCache | None = None
    observe: Callable[[LanguageModel, int], None] | None = None
    open_testbed: Callable[[DataSpec], Testbed] = field(default=_no_testbed)
    chosen: Sequence[EditRecord] | None = None


class GroupMemberError(Exception):
    """One trial of an edit group failed, for the reason that is this error's cause; the others could go on without it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"trial {key} failed")
        self.key = key


class CollapsedError(Exception):
    """The edits left NaN or infinity in the model, and the editor, whose error is this one's cause, cannot go on from there.

    That is what the trial found out, no fault of it: it ends as stopped by rule, with the step in its record.
    """

    def __init__(self, step: int, cause: Exception) -> None:
        # torch's messages go on for many lines, and a trial's record shows one
        first = next(iter(str(cause).splitlines()), "")
        super().__init__(f"after {step} edits the model is no finite numbers ({type(cause).__name__}: {first})")
        self.step = step


class Study(ABC):
    """A kind of trial.

    **The life of a study.** While planning, :meth:`check` says what does not fit, without loading anything. A worker then calls
    :meth:`execute` with the effects that it may have (:class:`Deps`) and takes one :class:`raysweep.rows.EvalRound` after the
    other out of the generator; each carries a snapshot, and what is written of a round is all that a later process needs to go
    on. A study whose trials can share their edits sets :attr:`shares_edits` and has :meth:`execute_group` as well.

    Promises
        1. :meth:`check` is cheap and imports no torch.
        2. :meth:`execute` yields one round per round of the protocol; with *resume* it yields the rounds after the snapshot's step,
           bit-identical to those of an undisturbed run.
        3. Nothing outlives the generator but the rounds it yielded.

    Attributes:
        name: what a search space calls it.
        version: of its numbers, a part of every trial's key; raise it when they change.
        artifact_kinds: kinds of artifacts that it may ask for; their versions join the key.
        phases: those of ``raysweep.measures.PHASES`` that its rounds have, the one shown by default first.
        metric: what its trials are ranked by where the search space names nothing; empty = ``avg`` of the first phase.
        takes_chat: it asks the prompts of its records, which may be turns of a chat (``data.prompt``).
        shares_edits: its trials may take their edits from one run over the records (:meth:`execute_group`).
        asks_further: it asks the protocols of ``protocol.also``.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    artifact_kinds: ClassVar[tuple[str, ...]] = ()
    phases: ClassVar[tuple[str, ...]] = PHASES
    metric: ClassVar[str] = ""
    takes_chat: ClassVar[bool] = False
    shares_edits: ClassVar[bool] = False
    asks_further: ClassVar[bool] = False

    @classmethod
    def default_metric(cls) -> str:
        """Return the value of a round's summary that trials are ranked by where the search space names nothing."""
        return cls.metric or f"{cls.phases[0]}/avg"

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what is wrong with *trial*, given that its dataset has *available* records from ``skip`` on."""
        return []

    @abstractmethod
    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*."""

    def execute_group(
        self, trials: Sequence[TrialSpec], deps: Deps, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        """Run *trials*, or go on from *resumes*; yield each round with its trial's key, by rising step, in the order of *trials*.

        The rounds of a trial are those of :meth:`execute`, bit for bit. Of several resumes only the one with the lowest step
        needs its tensors.

        Raises:
            GroupMemberError: one trial failed; run the others again without it.
        """
        raise NotImplementedError(f"trials of the {self.name} study do not share their edits")

    def proposal_function(self, trial: TrialSpec, deps: Deps) -> ComputeProposal:
        """Return what computes proposals of *trial* in this process, for a run of it in another (``Deps.proposal_scheduler``)."""
        raise NotImplementedError(f"the {self.name} study computes no proposals")
