"""An accelerator without memory for an edit: the same edit once more, or an error that says what to make smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.config.planned_trial import PlannedTrial
from raysweep.editors.locate import target_value
from raysweep.results.runner import run_trial
from raysweep.results.state import State
from raysweep.results.store import ResultStore
from raysweep.testing.fixtures import tiny_lm
from tests.unit.studies.test_lifelong import deps, trial

THREE = "memit+closed simie, by threes"


class Accelerator:
    """Stands in for the search of target values: the first searches find no memory, and so do those for more than fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0, fits: int = 1 << 30) -> None:
        self.sizes: list[int] = []
        optimise = target_value.optimise

        def counting(lm: Any, tasks: Any, **options: Any) -> Any:
            self.sizes.append(len(tasks))
            if len(self.sizes) <= failures or len(tasks) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return optimise(lm, tasks, **options)

        monkeypatch.setattr(target_value, "optimise", counting)


def run(folder: Path, *, name: str) -> tuple[State, str, dict[str, bytes]]:
    """Run seven edits; return how it ended and the bytes of its tables."""
    one = trial(name, rounds=(0, 2, 4, 7))
    store = ResultStore(folder / "results")
    list(run_trial(PlannedTrial("arm", {}, one), deps(folder, tiny_lm("llama")), store))
    status = store.status(one.key)
    tables = {p.name: p.read_bytes() for p in (folder / "results").rglob("*.parquet") if "timing" not in p.name}
    return status.state, status.error, tables


@pytest.mark.parametrize(("name", "sizes"), [("memit", [1, 1, 1]), (THREE, [3, 3, 3])])
def test_what_was_short_for_a_moment_changes_no_number(
    name: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, _, undisturbed = run(tmp_path / "undisturbed", name=name)
    assert state is State.DONE
    accelerator = Accelerator(monkeypatch, failures=1)
    state, error, tables = run(tmp_path / "short", name=name)
    assert (state, error) == (State.DONE, "")
    assert accelerator.sizes[:3] == sizes, "the same edits are made again, not fewer"
    assert tables == undisturbed
    assert "found no memory (CUDA out of memory." in caplog.text


def test_what_never_fits_says_what_to_make_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Accelerator(monkeypatch, fits=2)
    state, error, _ = run(tmp_path, name=THREE)
    assert state is State.FAILED
    assert error.startswith("OutOfMemoryError: 3 edits together need more memory than there is")
    assert "value.batch" in error
    Accelerator(monkeypatch, fits=0)
    state, error, _ = run(tmp_path / "one", name="memit")
    assert state is State.FAILED
    assert error.startswith("OutOfMemoryError: an edit needs more memory than there is")
