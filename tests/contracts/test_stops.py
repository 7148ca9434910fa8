"""Every editor, bare and in every wrapper that may wrap it: a run that is stopped at every step is the run that nobody stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.editors import EDITORS
from raysweep.editors.base import EditStep
from raysweep.editors.wrappers import WRAPPERS
from raysweep.results.runner import TrialRun, replay
from raysweep.results.state import COLLAPSED, State
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.rows import EvalRound, Snapshot
from raysweep.studies.base import Deps, Progress
from raysweep.studies.edit_group import EditGroup
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from tests.contracts.test_editors import CONFIGS

# Two edits lie between the rounds 1 and 3, so a stop between them repeats one; the others have a snapshot right before.
ROUNDS = (0, 1, 3, 4)
# The first is played around every editor, the others, another way of remembering, around one that has a memory of its own.
WRAPPERS_PLAYED: dict[str, list[dict[str, Any]]] = {
    "simie": [{"lam": 0.1, "mode": "sequential"}, {"lam": 0.1, "mode": "init", "backend": "closed64"}],
    "prune": [{"base": "2"}, {"base": "2", "persist": True}],
}


class Stopped(BaseException):
    """The process was told to stop; as with Ctrl-C, nothing of the trial catches it."""


class NotedRun(TrialRun):
    """A run that also keeps what its rounds hand over to go on from, the last one's too, which the store drops."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.snapshots: dict[int, Snapshot | None] = {}

    def _keep(self, key: str, result: EvalRound, last: int) -> None:
        self.snapshots[result.step] = result.snapshot
        super()._keep(key, result, last)


def specs() -> list[EditorSpec]:
    """Each editor, bare and in each wrapper that may wrap it."""
    found: list[EditorSpec] = []
    for name in EDITORS.names():
        found.append(EditorSpec(name=name, config=CONFIGS[name]))
        for wrapper in WRAPPERS.names():
            if EDITORS.get(name).patch_kind not in WRAPPERS.get(wrapper).accepts:
                continue
            found += [
                EditorSpec(name=name, config=CONFIGS[name], wrap=(WrapSpec(name=wrapper, config=config),))
                for config in WRAPPERS_PLAYED[wrapper][: None if name == "memit" else 1]
            ]
    return found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """What editors compute once on the pristine model, as the lives of a trial find it on the disk."""
    return ArtifactStore(tmp_path_factory.mktemp("artifacts"))


def live(trial: TrialSpec, root: Path, artifacts: ArtifactStore, stop_at: Callable[[Progress], bool]) -> Any:
    """Run *trial* on a model of its own, as a new process would, until *stop_at* is true of its progress.

    Returns the snapshot after the last edit, or None where the run was stopped.
    """
    lm = tiny_lm("llama")
    pristine = fingerprint(lm)

    def progress(now: Progress) -> None:
        if stop_at(now):
            raise Stopped

    def texts(*_: object) -> Iterator[str]:
        return (f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes)

    deps = Deps(
        load_model=lambda _: lm, open_dataset=lambda _: toy_records(8), artifacts=artifacts, texts=texts,
        progress=progress,
    )  # fmt: skip
    run = NotedRun(PlannedTrial("arm", {}, trial), deps, ResultStore(root))
    try:
        while True:
            report = run.advance()
            assert not report.error, report.error
            if report.done:
                break
    except Stopped:
        return None
    finally:
        run.close()
        now = fingerprint(lm)
        # The next trial of the process starts from the model as it was, however this one ended.
        assert all(same(pristine[part], now[part]) for part in ("tensors", "hooks"))
    return run.snapshots.get(ROUNDS[-1])


def tables(root: Path, key: str) -> dict[str, bytes]:
    """Return every file of a trial that is done but for its seconds."""
    return {p.name: p.read_bytes() for p in sorted((root / key).iterdir()) if p.name.startswith(("probes", "editor"))}


def trial_of(spec: EditorSpec, rounds: tuple[int, ...] = ROUNDS) -> TrialSpec:
    data, protocol = DataSpec(name="toy", order="file"), ProtocolSpec(rounds=rounds)
    return TrialSpec(study="lifelong", model=ModelSpec(name="tiny"), data=data, editor=spec, protocol=protocol, seed=0)


def label(spec: EditorSpec) -> str:
    around = [f"{k}={v}" for w in spec.wrap for k, v in w.config.model_dump(exclude_unset=True).items()]
    return "-".join([spec.label, *around])


def test_every_wrapper_is_played() -> None:
    assert set(WRAPPERS_PLAYED) == set(WRAPPERS.names())


@pytest.mark.parametrize("spec", specs(), ids=label)
def test_a_stop_at_every_step_resumes_bit_for_bit(spec: EditorSpec, artifacts: ArtifactStore, tmp_path: Path) -> None:
    """Each life of the trial is stopped one step later than the one before, and goes on from what that one stored."""
    trial = trial_of(spec)
    expected = live(trial, tmp_path / "straight", artifacts, lambda _: False)
    assert expected is not None
    # Nothing is stored but at a round's end, so before each round and before each edit is everywhere.
    moments = [(step, "round") for step in ROUNDS] + [(step, "edit") for step in range(ROUNDS[-1])]
    for moment in sorted(moments, key=lambda m: (m[0], m[1] == "edit")):
        ended = live(trial, tmp_path / "hurt", artifacts, lambda now, at=moment: (now.done, now.doing) == at)
        assert ended is None, f"nobody came by {moment}"
    end = live(trial, tmp_path / "hurt", artifacts, lambda _: False)
    assert tables(tmp_path / "hurt", trial.key) == tables(tmp_path / "straight", trial.key)
    assert same(dict(end.tensors), dict(expected.tensors))
    assert same(end.meta, expected.meta)
    done = [(tmp_path / life / trial.key / "DONE.json").read_bytes() for life in ("straight", "hurt")]
    assert done[0] == done[1]


# Of the editors that change weights; SimIE's `init` mode makes its weights anew from keys and values at each round.
COLLAPSING = [s for s in specs() if s.name in ("memit", "ft") and "init" not in label(s)]


@pytest.mark.parametrize("spec", COLLAPSING, ids=label)
def test_a_model_that_is_no_numbers_any_more_is_a_result(
    spec: EditorSpec, artifacts: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial goes on to its end, or is stopped by rule where its editor cannot; it has not failed in either case."""
    apply = EditGroup.apply

    def collapsing(group: EditGroup, step: int, edit: EditStep[Any]) -> object:
        state = apply(group, step, edit)
        if step == 2:
            for name, master in group.ledger.master.items():
                master.fill_(math.nan)
                group.lm.weight(name).data.fill_(math.nan)
        return state

    monkeypatch.setattr(EditGroup, "apply", collapsing)
    trial = trial_of(spec)
    live(trial, tmp_path, artifacts, lambda _: False)
    store = ResultStore(tmp_path)
    status = store.status(trial.key)
    # SimIE solves with keys, and those of ft's one matrix lie below what is no numbers.
    cannot = "prune" in spec.label or spec.label == "memit+simie"
    assert status.state is (State.STOPPED if cannot else State.DONE)
    (row,) = Sweep(store, everything=True).trials().to_pylist()
    assert (row["status"], row["non_finite_step"]) == (status.state.value, 2)
    if cannot:
        assert status.rule == COLLAPSED
        assert status.error.startswith("after 2 edits the model is no finite numbers (")
        assert row["error"] == status.error
        (*_, last) = replay(trial, store)
        assert (last.done, last.error, last.stopped) == (True, "", status.error)
