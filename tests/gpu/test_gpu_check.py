"""``make gpu-check`` at reduced shapes on the CPU, so that it works on the day when a card is at hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import DeviceType, FunctionEventAvg
from torch.profiler import ProfilerActivity

from benchmarks import measure
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import arms, cells, counting, models, promises, table
from raysweep.results import provenance
from raysweep.testing import sham_device

ROOT = Path(__file__).parents[2]
# A machine with a card has torch and transformers, which brings numpy, safetensors and rich; the rest is carried there.
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from benchmarks.gpu.__main__ import main
main()
"""
ABSENT = {"ray", "pyarrow", "pandas", "scipy", "networkx", "matplotlib", "pytest", "hypothesis"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole command in a process of its own, where Ray, pyarrow and what else a card's machine may lack cannot be imported."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    line = [sys.executable, "-c", WITHOUT.format(absent=ABSENT), "check", "--shape", "tiny", "--threads", "1"]
    done = subprocess.run([*line, "--out", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "| llama2-7b | memit" in done.stdout
    return dict(json.loads(file.read_text()))


def test_everything_is_measured(report: dict[str, Any]) -> None:
    assert [c for c in report["cells"] if "failed" in c] == []
    assert report["left out"] == 0
    expected = cells.covering(cells.all_cells())
    assert [{k: c[k] for k in ("shape", "dtype", "what", "way")} for c in report["cells"]] == [c.name for c in expected]
    for cell in report["cells"]:
        assert cell["s"] > 0
        if cell["way"] == "ours" and cell["what"] != "simie update":
            assert cell["flop"] > 0
            assert cell["of ceiling"] > 0
    assert set(report["ceiling"]) == {"fp32", "tf32", "bf16", "fp64", "copy GB/s"}
    assert all(report["repeats"].values())


def test_every_editor_keeps_its_promises_and_is_the_cpu_s(report: dict[str, Any]) -> None:
    assert [row["editor"] for row in report["promises"]] == list(promises.EDITORS)
    for row in report["promises"]:
        assert "failed" not in row, row
        assert row["broken"] == {}, row
        # This device is the CPU, so nothing may differ.
        assert (row["weights differ by"], row["logprobs differ by"], row["answers differ"]) == (0, 0, 0)


def test_the_table_says_what_the_report_has(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    shown = table.rows(report["cells"])
    memit = next(row for row in shown if (row["shape"], row["what"], row["dtype"]) == ("llama2-7b", "memit", "bf16"))
    plain = next(c for c in report["cells"] if (c["what"], c["way"]) == ("memit", "plain"))
    assert memit["x plain"] == plain["s"] / memit["s"]
    failed = {"shape": "gpt2-xl", "dtype": "bf16", "what": "rome", "way": "ours", "failed": ["Traceback", "No memory"]}
    text = table.show(report | {"cells": [*report["cells"], failed]})
    assert "- failed: gpt2-xl bf16 ours rome: No memory" in text
    assert "| memit x16" in capsys.readouterr().out


def test_a_run_ends_when_its_seconds_are_used_and_keeps_what_was_done(tmp_path: Path) -> None:
    report = command.check(tmp_path / "gpu.json", seconds=0, tiny=True)
    assert report["left out"] == len(cells.covering(cells.all_cells()))
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["cells"] == kept["promises"] == []
    assert kept["ceiling"]["fp32"] > 0


def test_a_cell_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(arms.Arm, "ours", broken)
    chosen = [
        c for c in cells.all_cells() if c.shape == "gpt2-xl" and c.dtype == "bf16" and c.what in ("ft", "evaluation")
    ]
    found = list(cells.Bench(models.TINY, {"bf16": 1.0}).measure(chosen, lambda: True))
    assert [row.get("failed", ["-"])[-1] for row in found] == ["RuntimeError: CUDA out of memory", "-"]


class Profile:
    """In the place of torch's profiler, which knows no card here: a call of its block launched 30 kernels and waited once."""

    def __init__(self, activities: list[ProfilerActivity]) -> None:
        assert activities == [ProfilerActivity.CUDA]

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self) -> list[FunctionEventAvg]:
        host = [event("cudaLaunchKernel", 30, 0, DeviceType.CPU), event("cudaDeviceSynchronize", 2, 0, DeviceType.CPU)]
        return [*host, event("gemm", 30, 6e5, DeviceType.CUDA)]


def event(key: str, count: int, microseconds: float, device: DeviceType) -> FunctionEventAvg:
    found = FunctionEventAvg()
    found.key, found.count, found.device_type = key, count, device
    found.self_device_time_total = microseconds
    return found


def test_a_card_is_measured_by_its_own_clocks_and_nothing_is_left_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of ours or of the plain side that stayed there would be refused by a card, as it is by the sham device."""
    called: list[str] = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.accelerator, name, partial(called.append, name))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 7 * 10**9)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    for part in (cells, counting):
        monkeypatch.setattr(part, "device", sham_device.device)
    named = ("evaluation", "grace", "grace x8", "alphaedit")
    chosen = [c for c in cells.all_cells() if (c.shape, c.dtype) == ("llama2-7b", "bf16") and c.what in named]
    with sham_device.ShamDevice():
        found = list(cells.Bench(models.TINY, {"bf16": 1.0}).measure(chosen, lambda: True))
    assert [row["failed"] for row in found if "failed" in row] == []
    assert len(found) == len(chosen) == 7
    assert found[0]["load peak GB"] == 7
    assert called.count("empty_cache") == len(found)
    for row in found:
        if row["what"] != "evaluation" or row["way"] == "ours":
            assert row["peak GB"] == 7
        if row["way"] == "ours":
            each = row["questions"] if row["what"] == "evaluation" else 8 if row["what"] == "grace x8" else 1
            # Steps cost nothing here: every profile is the same.
            assert (row["launches"], row["waits"], row["busy s"]) == pytest.approx((30 / each, 1 / each, 0.6 / each))
            assert row["flop"] > 0
    # one before each profile and one in it
    assert called.count("synchronize") == 2 * (2 + 2 + 2 + 1)


def test_the_clock_waits_for_the_card_and_the_report_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(None))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    # without its memory, which another test may have filled, and which others must not find filled
    monkeypatch.setattr(measure, "device_name", provenance.device_name.__wrapped__)
    assert len(counting.seconds(lambda: None, 3)) == 3
    assert len(waited) == 6
    assert str(measure.machine()["device"]).startswith("NVIDIA H100 (driver ")


def test_the_contract_on_another_device_is_told_beside_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "EDITORS", {"rome": promises.EDITORS["rome"]})
    with sham_device.ShamDevice():
        (row,) = promises.examine(sham_device.device(), lambda: True, ["llama"])
    assert row["broken"] == {}
    assert row["answers differ"] == 0
    assert row["weights differ by"] < 1e-4


def test_the_most_important_comes_first_and_nothing_twice() -> None:
    chosen = cells.all_cells()
    assert (chosen[0].shape, chosen[0].what, chosen[0].dtype) == ("llama2-7b", "memit", "bf16")
    assert len({(c.shape, c.dtype, c.what, c.plain) for c in chosen}) == len(chosen)
    assert {c.shape for c in chosen} == set(models.SHAPES) == set(models.TINY)
    assert {c.dtype for c in chosen} == set(models.DTYPES)
    written = {c.arm.label for c in chosen if c.arm is not None}
    assert written == {c.what for c in chosen if c.arm is not None}


def test_arithmetic_of_a_product_and_its_gradients() -> None:
    left, right = torch.randn(4, 8, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    counts = counting.counted(lambda: (left @ right).sum().backward())
    assert counts.flop == 3 * 2 * 4 * 8 * 16
    step = counting.per_step(counting.Counts(flop=10, launches=7), counting.Counts(flop=16, launches=9), 2)
    assert math.isclose(step.flop, 3)
    assert math.isclose(step.launches, 1)


def test_a_profile_is_tallied_by_what_the_host_called_and_what_ran_on_the_card() -> None:
    host, card = DeviceType.CPU, DeviceType.CUDA
    counts = counting.tally(
        [
            event("cudaLaunchKernel", 30, 0, host),
            event("cudaLaunchKernelExC", 3, 0, host),
            event("cudaMemcpyAsync", 5, 0, host),
            event("cudaStreamSynchronize", 2, 0, host),
            event("ampere_bf16_s16816gemm", 20, 4e5, card),
            event("Memcpy HtoD (Pageable -> Device)", 4, 1e5, card),
        ]
    )
    assert counts == counting.Counts(launches=33, waits=2, uploads=4, busy=0.5)
