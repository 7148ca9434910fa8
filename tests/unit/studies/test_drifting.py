"""Drift: what it is beside plain sums, that it disturbs nothing, and that a resumed trial measures the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from raysweep.errors import DataError
from raysweep.evals import drift
from raysweep.rows import EvalRound
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import tiny_lm, toy_records
from tests.unit.studies.test_lifelong import deps, trial

TEXTS = [f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes]


def run(root: Path, editor: str, **protocol: object) -> list[EvalRound]:
    one = trial(editor, **{"rounds": (0, 2, 4), "immediate": False} | protocol)
    return list(Lifelong().execute(one, deps(root, tiny_lm("llama")), None))


def stats(found: EvalRound) -> dict[str, float]:
    return {row.name: row.value for row in found.stats if row.step == found.step and not row.name.startswith("drift/")}


def test_pieces_are_of_the_text_and_no_longer_than_asked_for() -> None:
    lm = tiny_lm("llama")
    pieces = drift.pieces_of(lm, ["x" * 300, "y", *TEXTS], 100)
    assert sum(map(len, pieces)) == 100
    assert max(map(len, pieces)) == drift.PIECE
    assert all(len(piece) > 1 for piece in pieces)
    assert drift.pieces_of(lm, [""], 100) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reading_is_what_the_model_itself_says(family: str) -> None:
    lm = tiny_lm(family)
    pieces = drift.pieces_of(lm, TEXTS, 60)
    nll, last = [], []
    for piece in pieces:
        with torch.no_grad():
            logp = lm.module(torch.tensor([piece])).logits[0].log_softmax(-1)
        nll += [-float(logp[j, piece[j + 1]]) for j in range(len(piece) - 1)]
        last.append(logp[-1])
    for batch in (1, 3, 64):
        found = drift.read(lm, pieces, batch=batch)
        assert found.nll == pytest.approx(sum(nll) / len(nll), rel=1e-5)
        torch.testing.assert_close(found.last, torch.stack(last), rtol=1e-4, atol=1e-5)


def test_the_divergence_is_that_of_two_distributions() -> None:
    p, q = (
        torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log(),
        torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]).log(),
    )
    found = drift.moved(drift.TextReading(1.0, p), drift.TextReading(2.0, q))
    assert found["text_ppl"] == pytest.approx(math.exp(2.0))
    assert found["text_kl"] == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5) + math.log(2)) / 2)
    assert math.isnan(drift.moved(drift.TextReading(1.0, p), drift.TextReading(math.nan, q))["text_ppl"])


def test_the_largest_singular_value_is_that_of_a_decomposition() -> None:
    rng = torch.Generator().manual_seed(0)
    change = torch.randn(12, 3, generator=rng) @ torch.randn(3, 20, generator=rng)
    found = drift.spectrum({"w": change, "same": torch.zeros(3, 3), "broken": torch.full((2, 2), torch.nan)})
    top = float(torch.linalg.svdvals(change.double())[0])
    assert found == {
        "top_singular/w": pytest.approx(top, rel=1e-3),
        "stable_rank/w": pytest.approx(float(change.double().norm()) ** 2 / top**2, rel=2e-3),
    }


@pytest.mark.parametrize("editor", ["ft", "grace", "memit+closed simie"])
def test_it_disturbs_nothing_and_a_resumed_trial_measures_the_same(editor: str, tmp_path: Path) -> None:
    plain, measured = run(tmp_path, editor), run(tmp_path, editor, drift=80)
    for before, found in zip(plain, measured, strict=True):
        assert [(r.record_id, r.metric, r.value) for r in before.rows] == [
            (r.record_id, r.metric, r.value) for r in found.rows
        ]
        assert not stats(before).keys() & {"text_ppl", "text_kl"}
    first, *_, last = map(stats, measured)
    assert first["text_kl"] == 0.0
    assert last["text_kl"] > 0.0
    assert ("top_singular/model.layers.1.mlp.down_proj.weight" in last) is (editor == "ft")
    one = trial(editor, rounds=(0, 2, 4), immediate=False, drift=80)
    (again,) = Lifelong().execute(one, deps(tmp_path / "b", tiny_lm("llama")), measured[1].snapshot)
    assert again.stats == measured[2].stats


def test_data_without_text_are_refused_before_the_first_edit(tmp_path: Path) -> None:
    from dataclasses import replace

    silent = replace(deps(tmp_path, tiny_lm("llama")), texts=lambda *_: iter(()))
    with pytest.raises(DataError, match="dataset 'toy' has no text to measure drift on"):
        list(Lifelong().execute(trial("ft", rounds=(2,), drift=10), silent, None))
