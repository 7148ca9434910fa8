"""An edit group: trials that take their edits from one run over the records, each measured through its own view.

Trials may share their edits where their editors say so (``BaseEditor.edit_dependencies``): a whole path of λ of SimIE's closed form
comes out of one run, since λ enters only when the weights are reported. A trial that shares with nobody is a group of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from raysweep import __version__, pytree
from raysweep.data.sampling import arranged
from raysweep.lazy import lazy
from raysweep.rows import NON_FINITE_STAT, EvalRound, Snapshot
from raysweep.seeds import derive
from raysweep.studies.base import CollapsedError, GroupMemberError, Progress
from raysweep.studies.clock import Clock
from raysweep.studies.drifting import Drifting
from raysweep.studies.further import FurtherAsking
from raysweep.studies.group_member import GroupMember
from raysweep.studies.kept import as_measured
from raysweep.studies.measuring import Question, Questionnaire
from raysweep.studies.prompts import prompted
from raysweep.studies.proposals import ProposalSource
from raysweep.studies.refusals import check_records

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.config.schema import TrialSpec
    from raysweep.editors import build
    from raysweep.editors.base import AnyEditor, EditStep
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
    from raysweep.records import EditRecord
    from raysweep.studies.base import Deps
else:
    torch, build = lazy("torch"), lazy("raysweep.editors.build")
    ledger = lazy("raysweep.models.ledger")

# prefix of the edited weights among a snapshot's tensors
_WEIGHTS = "weights/"


@dataclass(slots=True)
class EditGroup:
    """The members of a group, and what they share: model, records, artifacts, weights and the editor that writes.

    All members are equal but for what their editors declare as not shared, so the first one's trial and editor edit.
    """

    members: Sequence[GroupMember]
    deps: Deps
    lm: LanguageModel
    records: Sequence[EditRecord]
    artifacts: Mapping[str, Artifact]
    ledger: ledger.Ledger
    proposals: ProposalSource
    questionnaire: Questionnaire
    further: FurtherAsking
    drifting: Drifting
    clock: Clock

    @classmethod
    def open(cls, trials: Sequence[TrialSpec], deps: Deps) -> EditGroup:
        """Load the model, the records and the artifacts of *trials*; refuse records that the editor cannot write."""
        trial, clock = trials[0], Clock()
        # Threads move the last bits of sums, so they are a trial's own number and not the machine's.
        torch.set_num_threads(trial.threads)
        began = perf_counter()
        lm = deps.load_model(trial.model)
        loaded = perf_counter()
        lm, records = prompted(lm, ordered_records(trial, deps), trial.data, trial.model.name)
        members = [GroupMember(t, build.build_editor(t.editor)) for t in trials]
        editor = members[0].editor
        # Before the artifacts: second moments take minutes, and a record that cannot be written ends the run anyway.
        check_records(lm, editor, records[: trial.protocol.rounds[-1]])
        deps.progress(Progress(0, trial.protocol.rounds[-1], "artifacts"))
        artifacts = needed_artifacts(editor, trial, lm, deps)
        clock.add("load", loaded - began, 1)
        clock.add("artifacts", perf_counter() - loaded, 1)
        questionnaire = Questionnaire(trial, lm, records)
        return cls(
            members=members,
            deps=deps,
            lm=lm,
            records=records,
            artifacts=artifacts,
            ledger=ledger.Ledger(lm),
            proposals=ProposalSource(trial, deps, editor, lm, records, artifacts),
            questionnaire=questionnaire,
            further=FurtherAsking(questionnaire),
            drifting=Drifting(trial, lm, deps),
            clock=clock,
        )

    @property
    def trial(self) -> TrialSpec:
        """The trial whose edits are everybody's."""
        return self.members[0].trial

    @property
    def editor(self) -> AnyEditor:
        """The editor that writes."""
        return self.members[0].editor

    def due(self, step: int) -> list[GroupMember]:
        """Return the members that have not measured *step* yet."""
        return [member for member in self.members if member.measured_to < step]

    def restore(self, snapshot: Snapshot) -> object:
        """Bring weights and editor state of *snapshot* back; return the state."""
        device = self.lm.device
        weights = {
            n.removeprefix(_WEIGHTS): t.to(device) for n, t in snapshot.tensors.items() if n.startswith(_WEIGHTS)
        }
        self.ledger.load(weights)
        state = pytree.unflatten("state", snapshot.tensors, snapshot.meta["state"], device)
        # Modules are not stored: they follow from the state, which has their tensors.
        if self.editor.patch_kind == "modules":
            self.ledger.apply(self.editor.module_patch(self.lm, state))
        return state

    def apply(self, step: int, edit: EditStep[object]) -> object:
        """Write the patch of *edit* into the model; return the editor's new state."""
        with self.clock.measure("apply", self.trial.protocol.batch_size):
            self.ledger.apply(edit.patch)
        # A member that is ahead of the others has these numbers in its own results already.
        for member in self.due(step):
            member.add_stats(step, edit.stats)
        return edit.state

    def measure_immediate(self, step: int, state: object) -> None:
        """Let each member ask about the batch that was just written."""
        batch = self.trial.protocol.batch_size
        questions = self.questionnaire.questions(range(step - batch, step))
        for member in self.due(step):
            with (
                self._blaming(member),
                self.noting_collapse(step),
                member.clock.measure("immediate", batch),
                self._viewed(member, state, step, at_round=False),
            ):
                member.add_rows(self.questionnaire.rows(member.trial.key, questions, step))

    def measure_round(self, step: int, state: object) -> Iterator[tuple[str, EvalRound]]:
        """Let each member ask everything in scope; yield its round with its trial's key."""
        protocol, size = self.trial.protocol, self.questionnaire.size
        self.deps.progress(Progress(step, protocol.rounds[-1], "round"))
        # in scope: every record at round 0 and with scope "all", else those written so far
        count = size if step == 0 or protocol.scope == "all" else step
        questions, due = self.questionnaire.questions(range(count)), self.due(step)
        if step == 0:
            self._measure_unedited(questions, due, count)
        # What was spent together since the last round is the same for every member of this one.
        shared = self.clock.take()
        tensors: dict[str, Tensor] | None = None
        for member in due:
            if step:
                with (
                    self._blaming(member),
                    self.noting_collapse(step),
                    member.clock.measure("round", count),
                    self._viewed(member, state, step, at_round=True),
                ):
                    member.add_rows(self.questionnaire.rows(member.trial.key, questions, step))
                    member.add_further(step, self.further.measure(member.trial.key, questions, step))
                    member.add_stats(step, self.drifting.measure(self.ledger))
                    self._observe(step)
                    non_finite = {f"{NON_FINITE_STAT}{n}": float(c) for n, c in self.ledger.non_finite().items()}
                    member.add_stats(step, non_finite)
                    member.edited = as_measured(self.lm, self.ledger, member.trial, member.editor, state, step)
            member.add_stats(step, {f"drift/{name}": norm for name, norm in self.ledger.norms().items()})
            with member.clock.measure("snapshot", 1):
                # Once for all members, and after the first view, since that of a member without company may persist.
                if tensors is None:
                    state_tensors, plain = pytree.flatten("state", state)
                    weights = {f"{_WEIGHTS}{name}": t for name, t in self.ledger.tensors().items()}
                    tensors, meta = weights | state_tensors, {"version": __version__, "state": plain}
            yield member.trial.key, member.finish_round(step, shared, tensors, meta, alone=len(self.members) == 1)

    def _measure_unedited(self, questions: Sequence[Question], due: Sequence[GroupMember], count: int) -> None:
        """Measure round 0, where the model is the same for all members: the first one asks."""
        if not due:
            return
        first, *others = due
        with (self.clock if others else first.clock).measure("round", count):
            rows = self.questionnaire.rows(first.trial.key, questions, 0)
            further = self.further.measure(first.trial.key, questions, 0)
            drift = self.drifting.measure(self.ledger)
            self._observe(0)
        for member in due:
            member.add_rows([replace(row, trial_key=member.trial.key) for row in rows])
            member.add_further(0, further.of(member.trial.key))
            member.add_stats(0, drift)

    def _observe(self, step: int) -> None:
        if self.deps.observe is not None:
            self.deps.observe(self.lm, step)

    @contextmanager
    def noting_collapse(self, step: int) -> Iterator[None]:
        """Turn an error in this block into a :class:`CollapsedError` where the model of *step* edits is no finite numbers.

        Decompositions and solvers refuse such weights, each in words of its own that name the wrong cause.
        """
        try:
            yield
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise  # the machine's fault, whatever the model is
        except Exception as error:
            if self.ledger.non_finite() or any(member.undefined for member in self.members):
                raise CollapsedError(step, error) from error
            raise

    @contextmanager
    def _blaming(self, member: GroupMember) -> Iterator[None]:
        """Tell the other members of a group whose error it was."""
        try:
            yield
        except Exception as error:
            if len(self.members) == 1:
                raise
            raise GroupMemberError(member.trial.key) from error

    @contextmanager
    def _viewed(self, member: GroupMember, state: object, step: int, *, at_round: bool) -> Iterator[None]:
        """Let the model be what *member* reports inside the block; at a round, a view that persists stays."""
        view = member.editor.report_view(self.lm, self.ledger.total_deltas, state)
        if view is None:
            yield
            return
        member.add_stats(step, view.stats)
        # PRUNE's persist: the view becomes a part of the weights, and later edits start from it (quirk Q23).
        if at_round and member.editor.view_persists:
            self.ledger.apply(view.patch)
            yield
        else:
            with self.ledger.with_view(view.patch.deltas):
                yield


def ordered_records(trial: TrialSpec, deps: Deps) -> Sequence[EditRecord]:
    """Return the records of *trial* in its order."""
    if deps.chosen is not None:
        return deps.chosen
    records = tuple(deps.open_dataset(trial.data))
    return arranged(records, trial.data.order, derive(trial.seed, "order"))


def needed_artifacts(editor: AnyEditor, trial: TrialSpec, lm: LanguageModel, deps: Deps) -> Mapping[str, Artifact]:
    """Return the artifacts that *editor* asks for, by name, found or built."""
    return build.provide(
        lm,
        editor.artifact_requests(lm),
        deps.artifacts,
        lambda text: deps.texts(text, trial.data),
        records=lambda data: prompted(lm, deps.open_dataset(data), data, trial.model.name)[1],
        threads=trial.threads,
    )
