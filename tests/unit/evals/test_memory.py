"""An accelerator without memory is no other number: the same rows once more, or an error that names the batch to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.errors import OutOfMemoryError
from raysweep.evals.generation import generate
from raysweep.evals.scoring import score
from raysweep.models.forward import positions
from raysweep.results.runner import run_trial
from raysweep.results.state import State
from raysweep.results.store import ResultStore
from raysweep.testing.fixtures import tiny_lm, toy_records
from tests.unit.studies.test_lifelong import deps

PROBES = [p for r in toy_records(4) for p in r.probes]


class Accelerator:
    """Stands in for forward passes: the first few find no memory, and so do all of more rows than fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0, fits: int = 1 << 30) -> None:
        self.passes: list[int] = []
        forward = positions.hidden_at

        def hidden_at(lm: Any, rows: Any, *rest: Any) -> Any:
            self.passes.append(len(rows))
            if len(self.passes) <= failures or len(rows) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(lm, rows, *rest)

        monkeypatch.setattr(positions, "hidden_at", hidden_at)


def test_what_was_short_for_a_moment_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny_lm("llama")
    expected = score(lm, PROBES, batch=8), generate(lm, ["The pet", "A"], [2, 2], batch=8)
    accelerator = Accelerator(monkeypatch, failures=1)
    assert score(lm, PROBES, batch=8) == expected[0]
    assert accelerator.passes[:2] == [8, 8], "the same rows are tried again, not fewer"
    assert "an evaluation of 8 rows found no memory (CUDA out of memory." in caplog.text
    Accelerator(monkeypatch, failures=1)
    assert generate(lm, ["The pet", "A"], [2, 2], batch=8) == expected[1]


@pytest.mark.parametrize(("batch", "hint"), [(8, "--set protocol.eval_batch=4"), (1, "use a larger accelerator")])
def test_what_never_fits_says_which_batch_to_set(batch: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Accelerator(monkeypatch, fits=0)
    with pytest.raises(OutOfMemoryError, match=f"protocol.eval_batch = {batch}") as raised:
        score(tiny_lm("llama"), PROBES, batch=batch)
    assert raised.value.hint.startswith(hint)


def test_such_a_trial_has_failed_and_one_of_the_smaller_batch_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Accelerator(monkeypatch, fits=4)
    store = ResultStore(tmp_path / "results")

    def run(batch: int) -> tuple[str, State, str]:
        trial = TrialSpec(
            study="lifelong", model=ModelSpec(name="tiny"), data=DataSpec(name="toy", order="file"), editor=EditorSpec(name="null"),
            protocol=ProtocolSpec(rounds=(0, 2), eval_batch=batch), seed=0,
        )  # fmt: skip
        list(run_trial(PlannedTrial("arm", {}, trial), deps(tmp_path, tiny_lm("llama")), store))
        status = store.status(trial.key)
        return trial.key, status.state, status.error

    first, second = run(8), run(4)
    assert first[1] is State.FAILED
    assert first[2].startswith(
        "OutOfMemoryError: the evaluation needs more memory than there is with protocol.eval_batch = 8"
    )
    assert "--set protocol.eval_batch=4" in first[2]
    assert second[1] is State.DONE
    assert first[0] != second[0]
