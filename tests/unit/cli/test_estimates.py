from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli import preflight
from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.config.sweep_schema import ResourceSpec
from raysweep.editors.wrappers.prune import Prune
from raysweep.editors.wrappers.simie.config import SimIEConfig
from raysweep.editors.wrappers.simie.wrapper import SimIE
from raysweep.models.sources.catalogue import CATALOGUE
from raysweep.reports import estimates
from raysweep.reports.estimates import driver_memory, memory, memory_lines, time_line
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound, TimingRow
from raysweep.workspace import Workspace


def planned(root: Path, **arms: Any) -> tuple[Plan, Workspace]:
    workspace = Workspace(root)
    base = {"model": "embedded", "data": {"name": "world", "size": 10}, "protocol": {"rounds": [10]}}
    return plan(parse_search_space({"sweep": "s", "base": base, "arms": arms}, file="test"), workspace), workspace


def test_memory_of_a_published_setting(tmp_path: Path) -> None:
    """MEMIT on Llama-2: five matrices of 4096 x 11008, moments of 11008²."""
    found, _ = planned(tmp_path, memit={"editor": {"name": "memit", "layers": [4, 5, 6, 7, 8]}, "model": "llama-2-7b"})
    shape = CATALOGUE["llama-2-7b"].model_size
    assert shape is not None
    need = memory(found.trials[0].trial, shape, Components.installed())
    assert need.parts["weights"] == pytest.approx(26.95e9, rel=2e-3)
    assert "pristine copy" not in need.parts
    assert need.parts["edited matrices"] == 5 * 4096 * 11008 * 8
    assert need.parts["second moments"] == 5 * 2 * 8 * 11008**2
    assert need.unknown == ()
    assert need.total == sum(need.parts.values())
    # The moments are in the host's memory, their factors on the card, and one more while it is factored.
    assert need.on_device == need.total - 4 * 8 * 11008**2
    # Over two cards, half of the weights are on the other one.
    trial = found.trials[0].trial
    spread = trial.model_copy(update={"model": trial.model.model_copy(update={"devices": 2})})
    two = memory(spread, shape, Components.installed())
    assert (two.total, need.on_device - two.on_device) == (need.total, need.parts["weights"] // 2)


# Measured on one H200, in 10⁹ bytes (docs/performance.md, "A first time on a GPU"): random weights in the shape of Llama-2-7B,
# hyper-parameters as in hparams/, six contexts.
CARD = [
    ("rome", "bfloat16", 1, 16.9),
    ("rome", "bfloat16", 8, 19.0),
    ("rome", "bfloat16", 16, 23.5),
    ("memit", "bfloat16", 1, 20.8),
    ("memit", "bfloat16", 8, 22.4),
    ("alphaedit", "bfloat16", 1, 20.8),
    ("rome", "float32", 1, 30.4),
    ("rome", "float32", 8, 43.6),
    ("rome", "float32", 16, 59.6),
]


@pytest.mark.parametrize(("editor", "dtype", "together", "measured"), CARD)
def test_what_a_card_was_seen_to_hold(tmp_path: Path, editor: str, dtype: str, together: int, measured: float) -> None:
    config: dict[str, Any] = {"contexts": {"lengths": [[10, 5]]}, "value": {"batch": together}}
    arm = {"editor": {"name": editor, **config}, "model": {"name": "llama-2-7b", "dtype": dtype}}
    found, _ = planned(tmp_path, one=arm)
    shape = CATALOGUE["llama-2-7b"].model_size
    assert shape is not None
    need = memory(found.trials[0].trial, shape, Components.installed())
    assert need.on_device / 1e9 == pytest.approx(measured, rel=0.12)


def test_how_many_edits_fit_together_is_the_last_number_that_the_estimate_lets_fit(tmp_path: Path) -> None:
    arm = {"editor": {"name": "rome", "value": {"batch": 2}}, "model": {"name": "llama-2-7b", "dtype": "bfloat16"}}
    found, workspace = planned(tmp_path, rome=arm, none={"editor": "null", "model": "llama-2-7b"})
    room = estimates.Room(80_000_000_000, gpu=True)
    fitting = estimates.together(found, workspace, Components.installed(), room)
    # an editor that makes no edits together has no number
    ((key, count),) = fitting.items()
    assert key == found.trials[0].key
    shape = CATALOGUE["llama-2-7b"].model_size
    assert shape is not None

    def needed(batch: int) -> int:
        trials, _ = planned(tmp_path, rome={**arm, "editor": {"name": "rome", "value": {"batch": batch}}})
        return memory(trials.trials[0].trial, shape, Components.installed()).on_device

    assert needed(count) <= room.size < needed(count + 1)
    line = f"edits made together, about: at most {count} fit 80 GB of the GPU (rome)"
    assert estimates.together_lines(found, fitting, room) == [line]
    small = estimates.Room(10_000_000_000, gpu=False)
    assert set(estimates.together(found, workspace, Components.installed(), small).values()) == {0}
    assert estimates.together(found, workspace, Components.installed(), None) == {}


@pytest.mark.parametrize("editor", ["ft", "memit", "rome"])
def test_recorded_steps_and_one_by_one_have_no_number(tmp_path: Path, editor: str) -> None:
    value = {} if editor == "ft" else {"value": {"captured": True}}
    found, workspace = planned(tmp_path, one={"editor": {"name": editor, **value}})
    counts = estimates.together(found, workspace, Components.installed(), estimates.Room(1_000_000_000, gpu=True))
    assert len(counts) == (editor == "ft")


def test_room_is_a_share_of_the_smallest_gpu_or_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.CompletedProcess([], 0, stdout="81559\n40960\n")
    monkeypatch.setattr(preflight, "_gpus", lambda: 2)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    whole = estimates.Room(40960 << 20, gpu=True)
    assert preflight.room_for_edits(ResourceSpec()) == preflight.room_for_edits(ResourceSpec(gpu=2)) == whole
    assert preflight.room_for_edits(ResourceSpec(gpu=0.25)) == estimates.Room(10240 << 20, gpu=True)
    assert preflight.room_for_edits(ResourceSpec(gpu=0)) is None
    assert preflight.room_for_edits(ResourceSpec(gpu=0, memory=5)) == estimates.Room(5, gpu=False)
    said.stdout = "[N/A]\n"
    assert preflight.room_for_edits(ResourceSpec()) is None


def test_a_wrapper_s_state_is_told_or_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, workspace = planned(tmp_path, rome={"editor": "rome", "wrap": "prune"}, memory={"editor": "wise"})
    lines = memory_lines(found, workspace, Components.installed())
    assert lines[0].startswith("memory per trial, about: ")
    assert " + second moments 4.19 MB" in lines[0]
    assert lines[0].endswith(" + state of prune: not known (rome)")
    assert lines[1].endswith(" + state of wise: not known (memory)")

    def state_bytes(config: Any, matrices: Sequence[tuple[int, int]], columns: int) -> Mapping[str, int]:
        assert (config.base, columns) == ("1.5", 200)
        return {"copy": 4 * sum(a * b for a, b in matrices)}

    monkeypatch.setattr(Prune, "state_bytes", staticmethod(state_bytes), raising=False)
    assert memory_lines(found, workspace, Components.installed())[0].endswith(" + prune copy 262 kB (rome)")


def test_a_plan_of_many_trials_says_what_the_driver_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the figures of docs/performance.md: 571 MB after the table of 2,000 trials."""
    assert driver_memory(2000) == pytest.approx(571e6, rel=1e-3)
    found, workspace = planned(tmp_path, rome={"editor": "rome"}, ft={"editor": "ft"})
    assert len(memory_lines(found, workspace, Components.installed())) == 2
    monkeypatch.setattr(estimates, "MANY_TRIALS", 1)
    line = "memory of the process that runs 2 trials, about: 527 MB"
    assert memory_lines(found, workspace, Components.installed())[-1] == line


@pytest.mark.parametrize("matrix", ["out", "in"])
def test_a_codebook_has_an_entry_for_each_edit_at_most(tmp_path: Path, matrix: str) -> None:
    """So that a lifetime whose codebook fills the disk, snapshot by snapshot, is seen before it begins."""
    found, workspace = planned(tmp_path, grace={"editor": {"name": "grace", "layer": 2, "matrix": matrix}})
    shape = CATALOGUE["llama-2-7b"].model_size
    assert shape is not None
    need = memory(found.trials[0].trial, shape, Components.installed())
    assert need.parts["grace codebook"] == 4 * 10 * (4096 + 11008 + 1)
    assert need.unknown == ()
    assert " + grace codebook " in memory_lines(found, workspace, Components.installed())[0]


def test_time_is_that_of_the_arm_s_done_trials_and_a_pass_counts_once(tmp_path: Path) -> None:
    wrap = {"name": "prune", "base": {"path": [1.2, 2, "e"]}}
    found, workspace = planned(tmp_path, path={"editor": "ft", "wrap": wrap}, other={"editor": "rome"})
    assert time_line(found, workspace, ["absent"] * 4) == ""
    store, first = ResultStore(workspace.results("s")), found.trials[0]
    key: dict[str, Any] = {"trial_key": first.key, "step": 10}
    timing = [
        TimingRow(phase="edit_shared", seconds=30.0, count=10, **key),
        TimingRow(phase="round", seconds=2.0, count=1, **key),
    ]
    store.begin(first.trial, arm="path", point={}, provenance={})
    store.write_round(first.key, EvalRound(step=10, rows=[], timing=timing))
    said = time_line(found, workspace, ["done", "absent", "absent", "absent"])
    assert said == "time left for one process, about: 34.0 s, by 1 done; nothing known yet of other"
    assert time_line(found, workspace, ["done"] * 4) == ""


@pytest.mark.parametrize(
    ("config", "keys", "totals"),
    [
        ({"mode": "sequential"}, 2 * 8 * 40 * 30, 0),
        ({"mode": "init"}, 2 * 8 * 40 * 30, 4 * 20 * 40 + 8 * 20 * 40),
        ({"mode": "init", "backend": "closed64"}, 8 * 40 * 30, 8 * 20 * 30),
        ({"mode": "init", "backend": "chol64"}, 8 * 40 * 40, 2 * 4 * 20 * 40),
        ({"backend": "ref_fp32_lu"}, 4 * 40 * 40, 0),
    ],
)
def test_simie_says_what_its_memory_takes(config: dict[str, Any], keys: int, totals: int) -> None:
    assert SimIE.state_bytes(SimIEConfig(**config), [(20, 40)], 30) == {"keys": keys, "totals": totals}
