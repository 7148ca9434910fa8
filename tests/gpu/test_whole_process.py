"""What a worker does around edits, on a device that pretends: it writes answers, and hands out pristine models."""

from __future__ import annotations

import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.evals.free import Asked, write
from raysweep.evals.generation import generate, score_generated
from raysweep.models import tokens
from raysweep.models.layout import LAYOUTS
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind
from raysweep.testing.fixtures import tiny_lm
from raysweep.testing.sham_device import ShamDevice, device, move
from raysweep.tune.deps import ModelPool
from tests.gpu.agree import agree, models

PROMPTS = ("The pet of Ana is", "Bo said that", "x", "The pet of Ana is a cat and")


@pytest.mark.parametrize("family", LAYOUTS.names())
def test_free_answers_are_the_cpu_s(family: str) -> None:
    ours, theirs = models(family)
    probes = [Probe(kind=ProbeKind.EFFICACY, prompt=p, target="a dog") for p in PROMPTS]
    with ShamDevice():
        written = generate(theirs, PROMPTS, [5, 3, 4, 5], batch=3)
        scored = [(s.answers, s.labels, s.logprob) for s in score_generated(theirs, probes)]
    assert written == generate(ours, PROMPTS, [5, 3, 4, 5], batch=3)
    agree([(s.answers, s.labels, s.logprob) for s in score_generated(ours, probes)], scored, 1e-5)


@pytest.mark.parametrize("family", LAYOUTS.names())
def test_answers_with_kept_keys_are_the_cpu_s(family: str) -> None:
    """And the host waits for the device a few times per token, however many rows there are."""
    ours, theirs = models(family)
    asked = [Asked(tuple(tokens.encode(ours, p)), inner=99) for p in PROMPTS]
    with ShamDevice() as sham:
        written = write(theirs, asked, most=6)
        waits = sham.total.syncs
    found = write(ours, asked, most=6)
    assert [w.ids for w in written] == [w.ids for w in found]
    assert [w.margin for w in written] == pytest.approx([w.margin for w in found], abs=1e-4)
    assert waits <= 6 * 3 + 6


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_pool_hands_out_the_model_as_it_was_loaded(limit: int) -> None:
    """From its copy in the host's memory, or by loading it again where that has no room."""
    loads: list[LanguageModel] = []

    def load(spec: ModelSpec, on_step: object) -> LanguageModel:
        lm = tiny_lm("llama")
        move(lm.module)
        loads.append(lm)
        return lm

    with ShamDevice():
        pool, spec = ModelPool(load, limit=limit), ModelSpec()
        first = pool.get(spec)
        name = first.layout.mlp_out.format(1) + ".weight"
        before = first.weight(name).detach().clone()
        with torch.no_grad():
            first.weight(name).add_(1.0)
        again = pool.get(spec)
        assert again.device == device()
        assert bool((again.weight(name) == before).all())
    assert len(loads) == (1 if limit else 2)
    assert (again is first) == bool(limit)
