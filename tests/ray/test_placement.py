"""Trials that hang are ended, trials that fit nowhere are refused, and trials that wait say for what: in a real Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_cluster import LocalCluster
from ray_helpers import finish, start, table_bytes

from raysweep.results.store import ResultStore, State

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CALM: dict[str, dict[str, Any]] = {"calm": {"sleep": 0.2}}
SECOND = 0.4  # that stands for a minute, so that ten of them are four seconds: a busy machine is silent for one or two


@pytest.fixture
def cluster(start_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """A head without processors; tests add nodes."""
    return start_cluster(0)


def refusal(process: subprocess.Popen[str]) -> str:
    """Return the error with which *process* ended, before any trial."""
    code, outcome, lines = finish(process)
    assert code == 2, (outcome, lines)
    assert not any("edits" in line for line in lines)
    return str(outcome["error"])


@pytest.mark.parametrize("stopped", [False, True], ids=["asleep", "frozen"])
def test_a_trial_that_hung_once_goes_on_and_changes_no_byte(stopped: bool, tmp_path: Path, plugins: Path) -> None:
    flag = tmp_path / "hung"
    configs = {"mortal": {"sleep": 0.1, "hang_at": 5, "flag": str(flag), "stopped": stopped}, **CALM}
    flag.touch()
    code, _, lines = finish(start(tmp_path / "calm", "s", configs, (0,), plugins=plugins, hung_after=10, minute=SECOND))
    assert code == 0, lines
    assert not any("hung" in line for line in lines)
    flag.unlink()
    code, outcome, lines = finish(
        start(tmp_path / "hurt", "s", configs, (0,), plugins=plugins, hung_after=10, minute=SECOND)
    )
    assert (code, outcome["done"]) == (0, 2), lines
    assert flag.exists()
    (said,) = [line for line in lines if "hung" in line]
    assert said.startswith("mortal/0: hung: no sign of life for 10 minutes at edit ")
    assert any("its process died; going on" in line for line in lines)
    assert table_bytes(tmp_path / "hurt", "s") == table_bytes(tmp_path / "calm", "s")


def test_a_trial_that_always_hangs_fails_with_the_reason(tmp_path: Path, plugins: Path) -> None:
    configs = {"bad": {"sleep": 0.1, "hang_at": 3}, **CALM}
    process = start(tmp_path, "s", configs, (0,), plugins=plugins, hung_after=10, retries=1, minute=SECOND)
    code, outcome, lines = finish(process)
    assert (code, outcome["done"]) == (3, 1), lines
    assert sum("ending its process" in line for line in lines) == 2
    (failed,) = outcome["failed"]
    assert failed.startswith("hung: no sign of life for 10 minutes at edit ")
    store = ResultStore(tmp_path / "results/s")
    assert sorted(store.status(key).state for key in store.keys()) == [State.DONE, State.FAILED]  # noqa: SIM118


def test_a_trial_that_died_of_something_else_after_it_hung_is_told_so(tmp_path: Path, plugins: Path) -> None:
    configs = {"bad": {"sleep": 0.1, "hang_at": 3, "flag": str(tmp_path / "hung")}}
    process = start(tmp_path, "s", configs, (0,), plugins=plugins, hung_after=10, retries=0, minute=SECOND)
    _, outcome, lines = finish(process)
    assert outcome["failed"][0].startswith("hung: "), lines
    configs = {"bad": {"sleep": 0.1, "die_at": 3, "flag": str(tmp_path / "died")}}
    process = start(
        tmp_path / "died-root", "s", configs, (0,), plugins=plugins, hung_after=10, retries=0, minute=SECOND
    )
    _, outcome, lines = finish(process)
    assert outcome["failed"][0].startswith("ProcessDied: "), lines


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"gpu": 1}, "lacks 1 GPU"),
        ({"cpu": 4096}, "no node can hold a trial"),
        ({"memory": 1 << 50}, "GiB of memory"),
        ({"shards": 1000}, "but all nodes together hold"),
        ({"labels": {"ray.io/accelerator-type": "H100"}}, "no node has ray.io/accelerator-type=H100"),
    ],
)
def test_what_our_own_ray_can_never_give_is_refused(
    resources: dict[str, Any], said: str, tmp_path: Path, plugins: Path
) -> None:
    began = time.monotonic()
    assert said in refusal(start(tmp_path, "s", CALM, plugins=plugins, **resources))
    assert time.monotonic() - began < 120


def test_our_own_ray_offers_no_gpus_that_ray_alone_sees(tmp_path: Path) -> None:
    script = (
        "from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Manager\n"
        "Manager.get_current_node_num_accelerators = staticmethod(lambda: 2)\n"
        "import ray\nfrom raysweep import runtime\nfrom raysweep.tune import local_ray\nruntime.visible_gpus = lambda: 0\n"
        "with local_ray.running_ray(None):\n    print(ray.cluster_resources().get('GPU', 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.stdout.strip() == "0", done.stderr


def test_processes_of_a_trial_must_fit_on_nodes_and_not_on_totals(
    cluster: LocalCluster, tmp_path: Path, plugins: Path
) -> None:
    cluster.add(2)
    cluster.add(2, labels="card=H100")
    options = {"address": cluster.address}
    told = refusal(start(tmp_path, "s", CALM, plugins=plugins, options=options, cpu=3))
    assert "no node can hold a trial, which asks for 3 CPU: the largest, " in told
    assert "has 2 CPU and lacks 1 CPU" in told
    told = refusal(start(tmp_path, "s", CALM, plugins=plugins, options=options, cpu=1.5, shards=3))
    assert "resources.shards = 3 processes with 1.5 CPU each, but all nodes together hold 2" in told
    told = refusal(start(tmp_path, "s", CALM, plugins=plugins, options=options, labels={"card": "A100"}))
    assert "no node has card=A100; there is card=H100" in told
    # What fits runs, on the node that is labelled so.
    process = start(tmp_path, "s", CALM, plugins=plugins, options=options, cpu=1.5, shards=2)
    assert finish(process)[0] == 0
    process = start(
        tmp_path / "labelled", "s", CALM, plugins=plugins, options=options, labels={"card": "in(H100, H200)"}
    )
    code, outcome, lines = finish(process)
    assert (code, outcome["done"]) == (0, 2), lines


def test_made_up_gpus_are_refused_unless_the_cpu_is_meant(cluster: LocalCluster, tmp_path: Path, plugins: Path) -> None:
    cluster.add(1, gpus=2)
    options = {"address": cluster.address}
    told = refusal(start(tmp_path, "s", CALM, plugins=plugins, options=options, gpu="auto"))
    assert f": offers 2 GPU to Ray, but torch sees 0: torch {torch.__version__} (" in told
    assert "resources.gpu: 0 says that the CPU is meant" in told
    code, outcome, lines = finish(start(tmp_path, "s", CALM, plugins=plugins, options=options, gpu=0))
    assert (code, outcome["done"]) == (0, 2), lines


def test_a_sweep_that_waits_for_nodes_says_so_and_goes_on(cluster: LocalCluster, tmp_path: Path, plugins: Path) -> None:
    cluster.add(1)
    options = {"address": cluster.address}
    long = start(tmp_path / "long", "s", {"long": {"sleep": 5}}, (0,), plugins=plugins, options=options)
    assert long.stdout is not None
    assert any("0/6 edits" in line for line in long.stdout), "it holds the only processor for half a minute"
    code, outcome, lines = finish(start(tmp_path / "short", "s", CALM, (0,), plugins=plugins, options=options))
    assert (code, outcome["done"]) == (0, 1), lines
    assert "waiting for nodes: a trial asks for 1 CPU; 1 node up, none free" in lines
    assert finish(long)[0] == 0


def test_what_an_autoscaler_may_bring_is_waited_for_and_nothing_larger(
    cluster: LocalCluster, tmp_path: Path, plugins: Path
) -> None:
    cluster.add(1)
    cluster.tell_autoscaler(CPU=3)
    options = {"address": cluster.address}
    told = refusal(start(tmp_path, "s", CALM, (0,), plugins=plugins, options=options, cpu=4))
    assert "no node can hold a trial, which asks for 4 CPU: the largest, workers, has 3 CPU and lacks 1 CPU" in told
    process = start(tmp_path, "s", CALM, (0,), plugins=plugins, options=options, cpu=3)
    assert process.stdout is not None
    waiting = "waiting for nodes: a trial asks for 3 CPU; 1 node up, none large enough"
    assert any(line.rstrip() == waiting for line in process.stdout)
    cluster.add(3)
    code, outcome, lines = finish(process)
    assert (code, outcome["done"]) == (0, 1), lines


def test_trials_queued_behind_running_ones_do_not_wait_for_nodes(tmp_path: Path, plugins: Path) -> None:
    process = start(tmp_path, "s", {"slow": {"sleep": 2.5}}, (0, 1), plugins=plugins, options={"concurrent": 1})
    code, outcome, lines = finish(process)
    assert (code, outcome["done"]) == (0, 2)
    assert not any("waiting" in line for line in lines), lines
