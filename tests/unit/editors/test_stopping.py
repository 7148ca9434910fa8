"""How often a loop reads back whether it may end changes no bit of what it returns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raysweep.editors import ft, stopping
from raysweep.editors.base import EditStep
from raysweep.editors.ft import FineTune, FineTuneConfig
from raysweep.editors.locate import target_value
from raysweep.editors.locate.target_value import Value
from raysweep.editors.specs import ValueSpec
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import WeightDelta
from raysweep.testing.fixtures import embedded_lm, tiny_lm, toy_records

CONTEXTS = ("{}", "Hello. {}")
EVERY = (1, 4, 7, 100)


def _values(lm: LanguageModel, n: int, spec: ValueSpec) -> list[Value]:
    tasks = []
    for record in toy_records(n):
        target = tokens.target(lm, record.prompt, f" {record.target[:1]}")
        tasks.append(target_value.value_task(lm, record.template, record.subject, target, CONTEXTS))
    return target_value.optimise(lm, tasks, layer=0, site="block", spec=spec)


def _read_every(monkeypatch: pytest.MonkeyPatch, module: object, steps: int) -> None:
    monkeypatch.setattr(module, "steps_between_reads", lambda like: steps)


def _assert_equal(one: Value, other: Value) -> None:
    assert (one.loss, one.first_loss, one.steps) == (other.loss, other.first_loss, other.steps)
    for name in ("shift", "origin", "keys", "output"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("on_argmax", [False, True])
def test_a_value_does_not_depend_on_when_its_loop_reads(monkeypatch: pytest.MonkeyPatch, on_argmax: bool) -> None:
    monkeypatch.setattr(target_value, "STOP_LOSS", 0.0 if on_argmax else 2.0)
    lm, spec, found = embedded_lm(), ValueSpec(steps=25, lr=0.5, stop_on_argmax=on_argmax), []
    for every in EVERY:
        _read_every(monkeypatch, target_value, every)
        found.append(_values(lm, 1, spec)[0])
    assert 1 < found[0].steps < 25, found[0]
    assert found[0].steps % 7, "stops where every reader looks anyway"
    for other in found[1:]:
        _assert_equal(found[0], other)


def test_values_found_together_do_not_depend_on_when_their_loop_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit where stopped tasks stay in the packs; packing anew moves the last bits, and is done at a read."""
    monkeypatch.setattr(target_value, "STOP_LOSS", 8.0)
    lm, spec, found = embedded_lm(), ValueSpec(steps=25, lr=0.5, batch=4), {}
    for share in (0.0, target_value.MIN_ACTIVE_SHARE):
        monkeypatch.setattr(target_value, "MIN_ACTIVE_SHARE", share)
        for every in EVERY:
            _read_every(monkeypatch, target_value, every)
            found[share, every] = _values(lm, 4, spec)
    steps = [v.steps for v in found[0.0, 1]]
    assert len(set(steps)) > 2, steps
    for (share, _), values in found.items():
        for one, other in zip(found[0.0, 1], values, strict=True):
            if share:
                assert one.steps == other.steps
                torch.testing.assert_close(one.shift, other.shift, rtol=1e-4, atol=1e-4)
            else:
                _assert_equal(one, other)


def _alone(lm: LanguageModel, editor: FineTune) -> list[EditStep[None]]:
    return [
        editor.edit(lm, [record], None, artifacts={}, rng=torch.Generator().manual_seed(0)) for record in toy_records(3)
    ]


def _together(lm: LanguageModel, editor: FineTune) -> list[EditStep[None]]:
    rngs = [torch.Generator().manual_seed(0) for _ in range(3)]
    return editor.edit_many(lm, [[record] for record in toy_records(3)], artifacts={}, rngs=rngs)


@pytest.mark.parametrize("constraint", [None, 5e-2])
@pytest.mark.parametrize("way", [_alone, _together])
def test_fine_tuning_does_not_depend_on_when_its_loop_reads(
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[LanguageModel, FineTune], list[EditStep[None]]],
    constraint: float | None,
) -> None:
    config = FineTuneConfig(
        layers=(1,), objective="target_new", steps=30, lr=2e-2, stop_loss=5.4, norm_constraint=constraint, batch=3
    )
    found = []
    for every in EVERY:
        _read_every(monkeypatch, ft, every)
        found.append(way(tiny_lm("llama"), FineTune(config)))
    steps = [one.stats["steps"] for one in found[0]]
    assert len(set(steps)) > 1, steps
    assert min(steps) < 30, steps
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one.stats == other.stats
            assert isinstance(one.patch, WeightDelta)
            assert isinstance(other.patch, WeightDelta)
            for name, delta in one.patch.deltas.items():
                assert torch.equal(delta.dense(), other.patch.deltas[name].dense()), name


def test_the_cpu_is_read_in_every_step() -> None:
    assert stopping.steps_between_reads(torch.zeros(1)) == 1
    assert stopping.steps_between_reads(torch.zeros(1, device="meta")) == stopping.STEPS_BETWEEN_READS
