"""The exam every editor and wrapper sits: the promises of :class:`raysweep.editors.base.BaseEditor`, one function each.

Use it for your own editor::

    @pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
    def test_my_editor(promise):
        lm = lambda: tiny_lm("llama")
        promise(Exam(build=lambda: MyEditor(MyConfig(...)), lm=lm(), fresh=lm))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module

import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import Artifact, ArtifactRequest
from raysweep.editors.base import AnyEditor
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.evals.scoring import score
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import ModulePatch, WeightDelta
from raysweep.pytree import flatten, unflatten
from raysweep.records import EditRecord, ProbeKind
from raysweep.testing.fixtures import embedded_lm, fingerprint, same, toy_records


@dataclass(frozen=True)
class Exam:
    """An editor to examine on a model.

    Attributes:
        build: returns a new editor each time.
        lm: a tiny model.
        fresh: returns another model equal to ``lm``.
        learner: the same kind of editor, configured for the shipped model; None = not expected to learn (``null``, by
            declaration).
        records: what to write (at least ten).
    """

    build: Callable[[], AnyEditor]
    lm: LanguageModel
    fresh: Callable[[], LanguageModel]
    learner: Callable[[], AnyEditor] | None = None
    records: Sequence[EditRecord] = field(default_factory=toy_records)

    def artifacts(self, editor: AnyEditor, lm: LanguageModel) -> dict[str, Artifact]:
        """Return what *editor* asks for, by name: two fixed context templates, the rest computed from the exam's own records."""
        artifacts = {}
        for name, request in editor.artifact_requests(lm).items():
            if name == "contexts":
                artifacts[name] = Artifact("contexts", {}, {"templates": ["Yes. {}", "So, {}"]})
            else:
                artifacts[name] = self._build_artifact(name, request, lm)
        return artifacts

    def _build_artifact(self, name: str, request: ArtifactRequest, lm: LanguageModel) -> Artifact:
        """Return moments of the records' own texts, or what is computed from them, or from the records."""
        module, _, function = request.builder.partition(":")
        build = getattr(import_module(module), function)
        if request.data is not None:
            ((tensors, meta),) = build(lm, [request], self.records)
        elif request.sources:
            sources = {key: self._build_artifact(key, source, lm) for key, source in request.sources.items()}
            ((tensors, meta),) = build(lm, [request], [sources])
        else:
            texts = (f"{p.prompt} {p.target}" for r in self.records for p in r.probes)
            # all of the text, however many tokens the configuration asks for
            request = replace(request, inputs={**request.inputs, "text": {"tokens": 0}})
            ((tensors, meta),) = build(lm, [request], texts)
        return Artifact(name, tensors, meta)

    @staticmethod
    def world_records() -> Sequence[EditRecord]:
        """Return ten records of the shipped world."""
        from raysweep.world import WorldSpec, build_world, edit_records

        return edit_records(build_world(WorldSpec()))[-10:]

    def run(
        self,
        lm: LanguageModel,
        editor: AnyEditor,
        *,
        start: int = 0,
        stop: int = 3,
        state: object = None,
        seed: int = 0,
    ) -> tuple[Ledger, object]:
        """Edit records ``start … stop − 1`` one by one; return the ledger (not restored) and the state."""
        artifacts = self.artifacts(editor, lm)
        state = editor.begin(lm, artifacts) if state is None and start == 0 else state
        ledger = Ledger(lm)
        for i in range(start, stop):
            # one for each record, as in a study, so that a run can go on at any of them
            rng = torch.Generator().manual_seed(seed + i)
            step = editor.edit(lm, [self.records[i]], state, artifacts=artifacts, rng=rng)
            ledger.apply(step.patch)
            state = step.state
        return ledger, state


def _outcome(lm: LanguageModel, records: Sequence[EditRecord]) -> list[tuple[object, ...]]:
    """Return what the model answers, to the last bit."""
    return [(s.answers, s.logprob) for s in score(lm, [p for r in records for p in r.probes])]


def leaves_the_model_bit_identical(exam: Exam) -> None:
    """``edit`` changes no weight, flag, hook, mode or object, and moves no global generator."""
    editor = exam.build()
    artifacts = exam.artifacts(editor, exam.lm)
    state = editor.begin(exam.lm, artifacts)
    before = fingerprint(exam.lm)
    editor.edit(exam.lm, exam.records[:1], state, artifacts=artifacts, rng=torch.Generator())
    editor.edit(exam.lm, exam.records[1:3], state, artifacts=artifacts, rng=torch.Generator())
    assert same(before, fingerprint(exam.lm))


def apply_then_restore_is_the_identity(exam: Exam) -> None:
    """The ledger brings the pristine bits back."""
    before = fingerprint(exam.lm)
    ledger, _ = exam.run(exam.lm, exam.build())
    ledger.restore()
    assert same(before, fingerprint(exam.lm))


def same_seed_same_patch(exam: Exam) -> None:
    """Two new editors with the same generator propose the same change, bit for bit."""
    results = []
    for _ in range(2):
        ledger, state = exam.run(exam.lm, exam.build())
        results.append((ledger.tensors(), _outcome(exam.lm, exam.records[:3]), flatten("state", state)))
        ledger.restore()
    assert same(results[0], results[1])


def state_is_not_modified(exam: Exam) -> None:
    """``edit`` returns new state and leaves the old one alone, so a failed edit loses nothing."""
    editor = exam.build()
    artifacts = exam.artifacts(editor, exam.lm)
    state = editor.begin(exam.lm, artifacts)
    before = flatten("state", state)
    editor.edit(exam.lm, exam.records[:1], state, artifacts=artifacts, rng=torch.Generator())
    assert same(before, flatten("state", state))
    if editor.is_stateless:
        assert state is None, "it says that it is stateless"


def state_survives_storage(exam: Exam) -> None:
    """State is tensors and JSON: safetensors and back is the identity."""
    ledger, state = exam.run(exam.lm, exam.build(), stop=2)
    ledger.restore()
    tensors, plain = flatten("state", state)
    back = load(save({k: v.cpu().contiguous() for k, v in tensors.items()})) if tensors else {}
    again = unflatten("state", back, json.loads(json.dumps(plain)), exam.lm.device)
    assert same(flatten("state", again), (tensors, plain))


def resume_equals_straight(exam: Exam) -> None:
    """Three edits in one go equal two edits, a snapshot, a new editor and a third edit, bit for bit."""
    straight, state = exam.run(exam.lm, exam.build(), stop=3)
    expected = (straight.tensors(), _outcome(exam.lm, exam.records[:3]), flatten("state", state))
    straight.restore()
    first, state = exam.run(exam.lm, exam.build(), stop=2)
    tensors, plain = flatten("state", state)
    weights = first.tensors()
    first.restore()
    # As a process that goes on from a snapshot: another editor, another model, artifacts of the pristine weights.
    editor, lm = exam.build(), exam.fresh()
    artifacts = exam.artifacts(editor, lm)
    state = unflatten("state", {k: v.clone() for k, v in tensors.items()}, plain, lm.device)
    ledger = Ledger(lm)
    ledger.load(weights)
    if editor.patch_kind == "modules":
        ledger.apply(editor.module_patch(lm, state))
    step = editor.edit(lm, [exam.records[2]], state, artifacts=artifacts, rng=torch.Generator().manual_seed(2))
    ledger.apply(step.patch)
    assert same(expected, (ledger.tensors(), _outcome(lm, exam.records[:3]), flatten("state", step.state)))


def two_models_in_one_process(exam: Exam) -> None:
    """Interleaving edits of two models by two editors changes nothing about either."""
    alone, _ = exam.run(exam.lm, exam.build(), stop=2)
    expected = alone.tensors()
    alone.restore()
    other = exam.fresh()
    editors, lms = (exam.build(), exam.build()), (exam.lm, other)
    ledgers = tuple(Ledger(lm) for lm in lms)
    # of pristine models, as no artifact may depend on which edit comes first
    artifacts = [exam.artifacts(e, lm) for e, lm in zip(editors, lms, strict=True)]
    states = [e.begin(lm, a) for e, lm, a in zip(editors, lms, artifacts, strict=True)]
    # The second model gets other records, so whatever leaks from one editor into the other shows.
    for i in range(2):
        for j, record in ((0, exam.records[i]), (1, exam.records[i + 5])):
            rng = torch.Generator().manual_seed(i)
            step = editors[j].edit(lms[j], [record], states[j], artifacts=artifacts[j], rng=rng)
            ledgers[j].apply(step.patch)
            states[j] = step.state
    interleaved = ledgers[0].tensors()
    ledgers[0].restore()
    assert same(expected, interleaved)


def edits_made_together_are_those_made_alone(exam: Exam) -> None:
    """``edit_many`` proposes what ``edit`` proposes without memory, up to rounding, and leaves the model bit-identical.

    Only an editor without state promises it.
    """
    editor = exam.build()
    if not editor.is_stateless:
        return
    artifacts = exam.artifacts(editor, exam.lm)
    editor.begin(exam.lm, artifacts)
    before = fingerprint(exam.lm)
    batches = [[record] for record in exam.records[:5]]
    rngs = [torch.Generator() for _ in batches]
    steps = editor.edit_many(exam.lm, batches, artifacts=artifacts, rngs=rngs)
    assert same(before, fingerprint(exam.lm))
    assert len(steps) == len(batches)
    for batch, step in zip(batches, steps, strict=True):
        alone = editor.edit(exam.lm, batch, None, artifacts=artifacts, rng=torch.Generator()).patch
        assert isinstance(step.patch, WeightDelta)
        assert isinstance(alone, WeightDelta)
        assert step.patch.deltas.keys() == alone.deltas.keys()
        for name, delta in step.patch.deltas.items():
            expected = alone.deltas[name].dense().double()
            # not bit for bit: a product over several records adds up in another order
            assert float((delta.dense().double() - expected).norm()) <= 1e-3 * float(expected.norm()), name


def raises_the_targets_probability(exam: Exam) -> None:
    """On the shipped model at least nine of ten single edits raise the log-probability of their own target."""
    if exam.learner is None:
        return
    lm, records = embedded_lm(), Exam.world_records()
    subject = Exam(build=exam.learner, lm=lm, fresh=embedded_lm, records=records)
    editor = exam.learner()
    artifacts = subject.artifacts(editor, lm)
    better = 0
    for record in records:
        probes = [p for p in record.probes if p.kind is ProbeKind.EFFICACY]
        before = score(lm, probes)[0]
        state = editor.begin(lm, artifacts)
        step = editor.edit(lm, [record], state, artifacts=artifacts, rng=torch.Generator())
        ledger = Ledger(lm)
        ledger.apply(step.patch)
        # What counts is what would be measured: the view, where the editor has one.
        view = editor.report_view(lm, ledger.total_deltas, step.state)
        if view is not None:
            ledger.apply(view.patch)
        better += score(lm, probes)[0].logprob > before.logprob
        ledger.restore()
    assert better >= 9, f"only {better} of 10 targets became more probable"


def patches_what_it_declares(exam: Exam) -> None:
    """The patch is of the declared kind and touches declared parameters only, with finite values and stats."""
    editor = exam.build()
    artifacts = exam.artifacts(editor, exam.lm)
    step = editor.edit(
        exam.lm, exam.records[:1], editor.begin(exam.lm, artifacts), artifacts=artifacts, rng=torch.Generator()
    )
    if editor.patch_kind == "weights":
        assert isinstance(step.patch, WeightDelta)
        assert set(step.patch.deltas) <= set(editor.edited_parameters(exam.lm))
        for name, delta in step.patch.deltas.items():
            assert delta.dense().shape == exam.lm.logical(name).shape
            assert bool(torch.isfinite(delta.dense()).all())
    else:
        assert isinstance(step.patch, ModulePatch)
    # NaN is not equal to itself
    assert all(isinstance(v, float) and v == v for v in step.stats.values())


def names_its_artifacts(exam: Exam) -> None:
    """Each kind of artifact that ``artifact_requests`` asks for is in ``artifact_kinds``, so its version is in the key.

    Each request names the model.
    """
    editor = exam.build()
    declared: set[str] = set()
    part: AnyEditor = editor
    while isinstance(part, BaseWrapper):
        declared |= set(part.artifact_kinds)
        part = part.inner
    declared |= set(part.artifact_kinds)
    requests = list(editor.artifact_requests(exam.lm).values())
    for request in requests:
        requests += request.sources.values()  # the list grows while it is read: sources of sources, too
        assert request.model == exam.lm.identity, f"'{request.kind}' is asked for another model"
        assert request.kind in declared or request.kind not in VERSIONS, (
            f"'{request.kind}' is not in {editor.name}.artifact_kinds"
        )
        assert request.kind not in VERSIONS or request.version == VERSIONS[request.kind]


def config_round_trips(exam: Exam) -> None:
    """The configuration survives JSON and rejects unknown keys."""
    config = exam.build().config
    kind = type(config)
    assert kind.model_validate(json.loads(config.model_dump_json())) == config
    try:
        kind.model_validate({**config.model_dump(), "no_such_key": 1})
    except ValidationError as error:
        told = str(error)
    else:
        raise AssertionError(f"{kind.__name__} takes a key that it does not know")
    assert "no_such_key" in told


PROMISES: tuple[Callable[[Exam], None], ...] = (
    leaves_the_model_bit_identical,
    apply_then_restore_is_the_identity,
    same_seed_same_patch,
    state_is_not_modified,
    state_survives_storage,
    resume_equals_straight,
    two_models_in_one_process,
    edits_made_together_are_those_made_alone,
    raises_the_targets_probability,
    patches_what_it_declares,
    names_its_artifacts,
    config_round_trips,
)


def promises_of(editor: AnyEditor, *, learns: bool) -> list[Callable[[Exam], None]]:
    """Return the promises that *editor* makes; the others have nothing to examine.

    Args:
        editor: as the exam builds it.
        learns: it is expected to make targets more probable on the shipped model (``Exam.learner`` is given).
    """
    left_out = set()
    if not editor.is_stateless:
        left_out.add(edits_made_together_are_those_made_alone)
    if not learns:
        left_out.add(raises_the_targets_probability)
    return [promise for promise in PROMISES if promise not in left_out]
