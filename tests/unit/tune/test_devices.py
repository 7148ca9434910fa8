"""What a trial was given it computes on; what it was not given it does not touch; and why it cannot is said with the cure."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from raysweep import runtime
from raysweep.config.plan import plan
from raysweep.config.schema import ModelSpec
from raysweep.config.sweep import parse_search_space
from raysweep.errors import NodeError, ProblemsError
from raysweep.models import spread
from raysweep.results import provenance
from raysweep.tune import devices
from raysweep.tune.deps import LoadedInputs
from raysweep.tune.launch import run_sweep
from raysweep.workspace import Workspace

SeeGpus = Callable[[int], None]


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> SeeGpus:
    """Lets torch see so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bounds that were set on this process's share of a GPU's memory."""
    seen: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", seen.append)
    return seen


@pytest.mark.parametrize(
    ("given", "seen", "said"),
    [
        (1.0, 0, "1 GPU was given to this trial, but torch sees 0"),
        (0.5, 0, "0.5 GPU was given to this trial, but torch sees 0"),
        (2.0, 1, "2 GPUs were given to this trial, but torch sees 1"),
        (0.0, 1, "no GPU was given to this trial (resources.gpu = 0), but torch sees 1"),
        (0.0, 0, ""),
        (1.0, 1, ""),
        (0.5, 1, ""),
    ],
)
@pytest.mark.usefixtures("shares")
def test_a_process_computes_on_what_it_was_given_or_not_at_all(
    given: float, seen: int, said: str, see: SeeGpus
) -> None:
    see(seen)
    if not said:
        devices.demand(given)
        return
    with pytest.raises(NodeError) as caught:
        devices.demand(given)
    assert caught.value.message == f"{os.uname().nodename}: {said}"
    assert caught.value.hint


@pytest.mark.parametrize(("given", "bounds"), [(0.5, [0.5]), (0.25, [0.25]), (1.0, []), (2.0, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(
    given: float, bounds: list[float], see: SeeGpus, shares: list[float]
) -> None:
    see(2)
    devices.demand(given)
    assert shares == bounds


@pytest.mark.parametrize(
    ("assigned", "visible"), [({"CPU": 1.0}, ""), ({"CPU": 1.0, "GPU": 1.0}, "3"), ({"GPU": 0.5}, "3")]
)
def test_an_actor_that_was_given_none_sees_none(
    assigned: dict[str, float], visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hides nothing from it: every trial without a GPU would share the first one."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "3")
    context = SimpleNamespace(get_assigned_resources=lambda: assigned, get_actor_id=lambda: "a1")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert devices.take_given() == assigned.get("GPU", 0)
    assert {os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")} == {visible}


def test_outside_of_an_actor_nobody_gives_any() -> None:
    before = ray.is_initialized()
    assert devices.take_given() is None
    assert ray.is_initialized() == before, "asking starts no Ray"


def test_the_refusal_comes_before_the_model_and_only_where_gpus_are_given(tmp_path: Path, see: SeeGpus) -> None:
    see(0)
    nowhere = ModelSpec(path=str(tmp_path / "no-such-folder"))
    with pytest.raises(NodeError, match="torch sees 0"):
        LoadedInputs(Workspace(tmp_path), gpus=1).models.get(nowhere)
    for gpus in (None, 0):
        with pytest.raises(Exception, match="no-such-folder"):
            LoadedInputs(Workspace(tmp_path), gpus=gpus).models.get(nowhere)


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (None, None, "(the CPU only), no NVIDIA driver found; install a torch that is built for GPUs"),
        (None, "580.65.06", "(the CPU only), NVIDIA driver 580.65.06; install a torch that is built for GPUs"),
        ("13.0", None, "(CUDA 13.0), no NVIDIA driver found; load the driver"),
        ("13.0", "470.82", "(CUDA 13.0), NVIDIA driver 470.82; a newer driver, or a torch for an older CUDA"),
    ],
)
def test_why_no_gpu_is_seen_names_build_driver_and_cure(
    cuda: str | None, driver: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    why = runtime.why_unseen()
    assert why.startswith(f"torch {torch.__version__} {said}")
    assert why.endswith("resources.gpu: 0 says that the CPU is meant")


def test_the_driver_says_its_version_in_proc_or_to_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(runtime, "_DRIVER", file)
    calls: list[str] = []

    def smi(command: list[str], **_: object) -> SimpleNamespace:
        calls.append(command[0])
        return SimpleNamespace(stdout="570.86.15\n570.86.15\n")

    monkeypatch.setattr(subprocess, "run", smi)
    assert (runtime.driver(), calls) == ("570.86.15", ["nvidia-smi"])
    for text, version in (
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\nGCC 9.3.0",
            "470.82.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)  Sun", "580.65.06"),
    ):
        file.write_text(text, encoding="utf-8")
        assert runtime.driver() == version
    assert calls == ["nvidia-smi"]

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    file.unlink()
    monkeypatch.setattr(subprocess, "run", missing)
    assert runtime.driver() is None


def test_provenance_names_card_driver_and_build(see: SeeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    see(1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(runtime, "driver", lambda: "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    provenance.device_name.cache_clear()
    try:
        assert provenance.device_name() == f"NVIDIA H200 (driver 580.65.06, torch {torch.__version__} (CUDA 13.0))"
        provenance.device_name.cache_clear()
        see(0)
        assert provenance.device_name() == "cpu"
    finally:
        provenance.device_name.cache_clear()


@pytest.mark.parametrize(
    ("editor", "gpus", "said"),
    [
        ("null", 2, []),
        ("null", "auto", ["model.devices = 2, but resources.gpu = auto"]),
        ("lora", 0, ["model.devices = 2, but lora edits a model on one device only", "model.devices = 2, but resources.gpu = 0"]),
    ],
)  # fmt: skip
def test_a_model_over_several_gpus_is_refused_where_it_cannot_be(
    editor: str, gpus: object, said: list[str], tmp_path: Path, see: SeeGpus
) -> None:
    see(1)
    data = {"data": {"name": "world", "size": 1}, "protocol": {"rounds": [0, 1]}}
    tree = {
        "sweep": "s",
        "base": {"model": {"name": "embedded", "devices": 2}, **data},
        "arms": {"one": {"editor": editor}},
        "resources": {"gpu": gpus},
    }
    workspace, space = Workspace(tmp_path), parse_search_space(tree, file="flags")
    if said:
        with pytest.raises(ProblemsError) as caught:
            plan(space, workspace)
        assert [one.message for one in caught.value.problems] == said
        return
    (trial,) = plan(space, workspace).trials
    tree["base"]["model"] = "embedded"  # type: ignore[index]
    (alone,) = plan(parse_search_space(tree, file="flags"), workspace).trials
    assert (trial.key, trial.trial.model.devices) == (alone.key, 2)
    with pytest.raises(NodeError, match=r"model\.devices = 2, but torch sees 1 GPUs"):
        LoadedInputs(workspace).models.get(trial.trial.model)
    see(2)
    assert spread.devices(2) == [torch.device("cuda", 0), torch.device("cuda", 1)]


@pytest.mark.parametrize(("gpus", "error"), [("auto", ""), (0, ""), (1, "NodeError: "), (0.5, "NodeError: ")])
def test_a_sweep_in_this_process_is_refused_where_it_asks_for_what_is_not_there(
    gpus: object, error: str, tmp_path: Path, see: SeeGpus
) -> None:
    see(0)
    tree = {
        "sweep": "s",
        "base": {"model": "embedded", "data": {"name": "world", "size": 1}, "protocol": {"rounds": [0, 1]}},
        "arms": {"none": {"editor": "null"}},
        "resources": {"gpu": gpus},
    }
    workspace = Workspace(tmp_path)
    found = run_sweep(plan(parse_search_space(tree, file="flags"), workspace), workspace, backend="inline")
    assert [one.startswith(error) for one in found.failed.values()] == [True] * bool(error)
    assert len(found.done) == (not error)
