"""Edits of a model in hand: written one after another, asked about, taken back. No YAML, no Ray, no results folder.

A session does what the lifelong study does with a batch (``raysweep/studies/lifelong.py``), with the same generators: the same
records in the same order leave the same weights as a trial of a sweep with one thread does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from raysweep.artifacts import ArtifactStore
from raysweep.errors import SpecError
from raysweep.lazy import lazy
from raysweep.library.editors import ChosenEditor, Wrap, choose_editor
from raysweep.library.facts import Fact, records_of
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep import runtime
    from raysweep.artifacts import Artifact
    from raysweep.config.schema import EditorSpec
    from raysweep.editors import build
    from raysweep.editors.base import AnyEditor
    from raysweep.evals import generation, scoring
    from raysweep.jsontypes import Json
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
    from raysweep.models.patches import Delta
    from raysweep.studies import proposals, refusals
else:
    torch, runtime = lazy("torch"), lazy("raysweep.runtime")
    build = lazy("raysweep.editors.build")
    generation, scoring = lazy("raysweep.evals.generation"), lazy("raysweep.evals.scoring")
    ledger = lazy("raysweep.models.ledger")
    proposals, refusals = lazy("raysweep.studies.proposals"), lazy("raysweep.studies.refusals")


def edit(
    model: LanguageModel,
    editor: str | type[AnyEditor] | AnyEditor,
    *facts: Fact,
    prompt: str = "",
    target: str = "",
    subject: str = "",
    wrap: Wrap | Sequence[Wrap] = (),
    config: Mapping[str, Json] | None = None,
    hparams: str | Path = "",
    data: str = "world",
    workspace: Workspace | None = None,
    seed: int = 0,
    history: int = 1,
) -> EditSession:
    """Write facts into *model* and return the open session, which answers as edited, takes more edits, and takes them back.

    Args:
        model: from ``raysweep.load_model`` or ``raysweep.adopt_model``; it must have no other session open.
        editor: a name of ``raysweep ls editors``, or a class or an object of your own (``raysweep.Editor``).
        facts: what to write in one call of the editor; without any, the session is open and nothing is edited yet.
        prompt: of a single fact: what the model is given.
        target: what it shall answer.
        subject: the part of *prompt* that the fact is about; some editors need it, exactly once in the prompt.
        wrap: wrappers around the editor, innermost first: ``"simie"``, or ``{"name": "simie", "lam": 10}``.
        config: values of the editor's own keys, over its hyper-parameter file.
        hparams: a hyper-parameter file, of EasyEdit, SimIE or MEMIT too, instead of ``hparams/<editor>/<model>.yaml``.
        data: the dataset whose text serves an editor that asks for one (ROME's second moments, say).
        workspace: where files are looked for, and what is expensive to compute is kept; None = the current folder.
        seed: of every draw.
        history: how many edits ``undo`` can take back one by one; each costs a copy of the edited weights in fp32.

    Raises:
        ProblemsError: the editor, a wrapper or a value is not known; all mistakes at once.
        RecordError: the editor cannot write a fact.
        SpecError: another session is open on the model.

    >>> import raysweep
    >>> model = raysweep.load_model("embedded")
    >>> with raysweep.edit(model, "ft", prompt="Relis Megez works as a", target="lawyer") as patched:
    ...     patched.generate("Relis Megez works as a", length=1)
    ' lawyer'
    """
    _refuse_second(model)
    workspace = workspace or Workspace.here()
    chosen = choose_editor(editor, model, workspace, wrap=wrap, config=config, hparams=hparams, data=data)
    with runtime.matmul(model.matmul):
        artifacts = _provided(chosen, model, workspace)
        state = chosen.editor.begin(model, artifacts)
    past = deque[_Moment](maxlen=history)
    session = EditSession(model, chosen.editor, chosen.spec, artifacts, seed, _state=state, _history=past)
    try:
        if facts or prompt or target or subject:
            session.edit(*facts, prompt=prompt, target=target, subject=subject)
    except BaseException:
        # Nobody got the session, so nobody could close it.
        session.close()
        raise
    return session


def _refuse_second(model: LanguageModel) -> None:
    if model.open_edits:
        # What an editor computes first, second moments say, must come from the unedited model.
        raise SpecError(
            "another session is open on this model, so it is not the unedited one",
            hint="add edits to that one with .edit(…), or close it: .close(), `with raysweep.edit(…)`, or model.restore()",
        )


class Comparison(NamedTuple):
    """A prompt and how it goes on, greedily, before the edits and after them."""

    prompt: str
    before: str
    after: str


class _Moment(NamedTuple):
    """What it takes to go back: how many facts were written, the editor's state, and the edited weights in fp32."""

    written: int
    state: object
    weights: Mapping[str, Tensor]
    stats: Mapping[str, float]


# A session is equal to itself alone: it stands for a model, and tensors have no single truth to compare by.
@dataclass(slots=True, eq=False)
class EditSession:
    """A model while it is edited; :func:`edit` opens one.

    The model itself is changed, so there is one session on it at a time. Leaving the ``with`` statement, or :meth:`close`, brings
    the pristine bits back.

    Attributes:
        model: what is edited.
        editor: with its wrappers around it.
        spec: its configuration, every value filled in.
        artifacts: what it asked for, by name.
        seed: of every draw.
        records: what was written, in order.
        stats: what the editor reported of the latest edit.

    >>> import raysweep
    >>> model = raysweep.load_model("embedded")
    >>> facts = [
    ...     {"prompt": "Relis Megez works as a", "target": "lawyer"},
    ...     {"prompt": "Basix sells", "target": "kettles"},
    ... ]
    >>> with raysweep.edit(model, "ft") as session:
    ...     for fact in facts:
    ...         _ = session.edit(fact)
    ...     print(len(session.records), len(session.undo().records))
    2 1
    """

    model: LanguageModel
    editor: AnyEditor
    spec: EditorSpec
    artifacts: Mapping[str, Artifact]
    seed: int
    records: tuple[EditRecord, ...] = ()
    stats: Mapping[str, float] = field(default_factory=dict)
    _state: object = None
    _ledger: ledger.Ledger = field(init=False, repr=False)
    _history: deque[_Moment] = field(default_factory=deque, repr=False)
    _is_open: bool = True

    def __post_init__(self) -> None:
        self._ledger = ledger.Ledger(self.model)
        # model.restore() closes sessions through this list, and edit() sees by it that the model is not pristine
        self.model.open_edits.append(self.close)

    def edit(self, *facts: Fact, prompt: str = "", target: str = "", subject: str = "") -> Self:
        """Write facts in one call of the editor, on top of what is written already, and return this session.

        Args:
            facts: records of a dataset, or mappings with ``prompt``, ``target`` and ``subject``.
            prompt, target, subject: a single fact, instead of *facts*.

        Raises:
            RecordError: the editor cannot write a fact; nothing was written.
        """
        self._check_open()
        batch = records_of(facts, {"prompt": prompt, "target": target, "subject": subject}, first=len(self.records))
        refusals.check_records(self.model, self.editor, batch)
        step = len(self.records) + len(batch)
        parts = [part for record in batch for part in record.edits]
        with runtime.matmul(self.model.matmul):
            # As the lifelong study does it, so that the same records leave the same weights.
            proposed = proposals.edit(
                self.editor, self.model, parts, self._state, self.artifacts, seed=self.seed, step=step
            )
        if self._history.maxlen:
            self._history.append(_Moment(len(self.records), self._state, self._ledger.tensors(), self.stats))
        self._ledger.apply(proposed.patch)
        self._state, self.stats = proposed.state, proposed.stats
        self.records = (*self.records, *batch)
        return self

    def undo(self) -> Self:
        """Take the latest edit back, bit for bit, and return this session.

        Raises:
            SpecError: nothing is written, or the edit is further back than ``history``.
        """
        self._check_open()
        if not self._history:
            reason = "only the latest edits are kept" if self.records else "nothing is written"
            raise SpecError(
                f"nothing to undo: {reason}", hint="raysweep.edit(…, history=10) keeps more; close() takes all back"
            )
        before = self._history.pop()
        self._return_to(before)
        self.records, self.stats = self.records[: before.written], before.stats
        return self

    def close(self) -> None:
        """Bring the pristine model back, bit for bit; a closed session answers nothing more."""
        if self._is_open:
            self._is_open = False
            self._history.clear()
            self._ledger.restore()
            self.model.open_edits.remove(self.close)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def attached(self) -> Iterator[LanguageModel]:
        """Let the model be what the editor reports inside the block.

        For most editors that is the model as it stands. SimIE in closed form and PRUNE compute the weights that count only when
        they are asked for: those are on inside the block, and off again afterwards.
        """
        self._check_open()
        with runtime.matmul(self.model.matmul), self._ledger.with_view(self._view()):
            yield self.model

    @contextmanager
    def unedited(self) -> Iterator[LanguageModel]:
        """Let the model be pristine inside the block; the edits are back afterwards."""
        self._check_open()
        now = _Moment(len(self.records), self._state, self._ledger.tensors(), self.stats)
        self._ledger.restore()
        try:
            with runtime.matmul(self.model.matmul):
                yield self.model
        finally:
            self._return_to(now)

    def generate(self, prompt: str, *, length: int = 12) -> str:
        """Return what the edited model writes after *prompt*, greedily, in at most *length* tokens."""
        with self.attached() as lm:
            return generation.continuations(lm, [prompt], length)[0]

    def probability(self, prompt: str, target: str) -> float:
        """Return the probability that the edited model gives to *target* after *prompt*, all its tokens together."""
        probe = Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target)
        with self.attached() as lm:
            return math.exp(scoring.score(lm, [probe])[0].logprob)

    def compare(self, *prompts: str, length: int = 12) -> list[Comparison]:
        """Return how each of *prompts* goes on before the edits and after them, in at most *length* tokens."""
        # all prompts on one side before the other: each switch writes every edited weight
        with self.unedited() as lm:
            before = generation.continuations(lm, prompts, length)
        with self.attached() as lm:
            after = generation.continuations(lm, prompts, length)
        return [Comparison(p, b, a) for p, b, a in zip(prompts, before, after, strict=True)]

    def changes(self) -> dict[str, Tensor]:
        """Return the change of each edited weight since the pristine model: fp32, ``[d_out, d_in]``, on the model's device."""
        with runtime.matmul(self.model.matmul):
            totals, view = self._ledger.total_deltas(), self._view()
        for name, delta in view.items():
            # a view may be in fp64, elsewhere, and of weights that no edit has touched
            dense = delta.dense().to(self.model.device, torch.float32)
            totals[name] = totals[name] + dense if name in totals else dense
        return totals

    def _view(self) -> Mapping[str, Delta]:
        """Return what is added to the weights while the model is asked; nothing where that is the model as it stands."""
        # Before the first edit there is nothing that a wrapper could restrain or solve for.
        view = self.editor.report_view(self.model, self._ledger.total_deltas, self._state) if self.records else None
        return {} if view is None else view.patch.deltas

    def _return_to(self, moment: _Moment) -> None:
        self._ledger.restore()
        # Loaded over pristine bits: a change that is subtracted again leaves its rounding behind.
        self._ledger.load(moment.weights)
        # Modules are not copied: they follow from the state, which has their tensors.
        if self.editor.patch_kind == "modules" and moment.written:
            self._ledger.apply(self.editor.module_patch(self.model, moment.state))
        self._state = moment.state

    def _check_open(self) -> None:
        if not self._is_open:
            raise SpecError(
                "this session is closed and the model unedited", hint="open another: raysweep.edit(model, …)"
            )


def _provided(chosen: ChosenEditor, model: LanguageModel, workspace: Workspace) -> Mapping[str, Artifact]:
    """Return what the editor asks for, found in the workspace or built on the pristine *model*."""
    data, texts = lazy("raysweep.data"), lazy("raysweep.data.texts")
    return build.provide(
        model,
        chosen.editor.artifact_requests(model),
        ArtifactStore(workspace.artifacts),
        lambda text: texts.open_texts(text, chosen.data, workspace),
        records=lambda spec: data.open_dataset(spec, workspace),
        # Not set here, as a trial sets its own: the threads of a program are its owner's.
        threads=torch.get_num_threads(),
    )
