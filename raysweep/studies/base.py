"""What a study is: a kind of trial, written as a generator of evaluation rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from raysweep.config.schema import DataSpec, ModelSpec, TextSpec, TrialSpec
from raysweep.errors import DataError, Problem
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, Snapshot

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


Proposal = Mapping[str, Any]
Ask = Callable[[int], Proposal]  # the step that a batch reaches → what the batch adds


class Spread(Protocol):
    """Lets others compute proposals of a trial."""

    def __call__(self, trial: TrialSpec, steps: Sequence[int], here: Ask) -> Iterator[Proposal]:
        """Yield the proposals of *steps* in that order, wherever computed; *here* computes one in this process."""
        ...


class Kept(Protocol):
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
        spread: computes proposals elsewhere too, for editors whose edits may be computed apart; None = all here.
        kept: proposals that other trials share, for the same editors; None = nobody shares any.
        observe: called at each round with the model as it is measured and the step; None = nobody looks.
        open_testbed: returns the belief testbed that a spec's records come from.
        chosen: the records of the trial in its order, where a study has chosen them; None = those of its dataset.
    """

    load_model: Callable[[ModelSpec], LanguageModel]
    open_dataset: Callable[[DataSpec], Sequence[EditRecord]]
    artifacts: ArtifactStore
    texts: Callable[[TextSpec, DataSpec], Iterator[str]]
    progress: Callable[[Progress], None] = field(default=_silent)
    spread: Spread | None = None
    kept: Kept | None = None
    observe: Callable[[LanguageModel, int], None] | None = None
    open_testbed: Callable[[DataSpec], Testbed] = field(default=_no_testbed)
    chosen: Sequence[EditRecord] | None = None


class MemberError(Exception):
    """One trial of a pass failed, for the reason that is this error's cause; the others could go on without it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"trial {key} failed")
        self.key = key


class Study(Protocol):
    """A kind of trial. A study that can edit once for several trials has ``together`` as well (:class:`Together`).

    Optional: ``phases``, those of ``raysweep.summarize.PHASES`` that its rounds have, the one shown by default first (else
    both), and ``metric``, what its trials are ranked by where the search space names nothing (else ``avg`` of that phase).

    Promises
        1. ``check`` is cheap and imports no torch.
        2. ``execute`` yields one :class:`EvalRound` per round; with *resume* it yields the rounds after the
           snapshot's step, bit-identical to those of an undisturbed run.
        3. Nothing outlives the generator but the rounds it yielded.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what is wrong with *trial*, given that its dataset has *available* records from ``skip`` on."""
        ...

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*."""
        ...


@runtime_checkable
class Together(Protocol):
    """A study whose trials may take their edits from one pass, where their editors allow it (``Sharer``)."""

    def together(
        self, trials: Sequence[TrialSpec], deps: Deps, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        """Run *trials*, or go on from *resumes*; yield each round with its trial's key, by rising step, in the order of *trials*.

        The rounds of a trial are those of ``execute``, bit for bit. Of several resumes only the one with the lowest step
        needs its tensors.

        Raises:
            MemberError: one trial failed; run the others again without it.
        """
        ...

    def proposer(self, trial: TrialSpec, deps: Deps) -> Ask:
        """Return what computes proposals of *trial* in this process, for a run of it in another (``Deps.spread``)."""
        ...
