"""What a plan says of activations, beside what a memory that is watched operation by operation holds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import arms, counting, models
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.editors.build import build_editor
from raysweep.evals import scoring
from raysweep.installed import installed
from raysweep.models import activations
from raysweep.models.lm import LanguageModel
from raysweep.models.sizes import ModelSize, size_from_config
from raysweep.reports import estimates

LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 600,
}
GPT = {"n_embd": 256, "n_layer": 26, "n_head": 4, "vocab_size": 600, "n_positions": 256}
SHAPES = {
    "llama": models.Shape("llama", LLAMA, steps=3),
    "wide": models.Shape("llama", LLAMA | {"intermediate_size": 2048, "num_hidden_layers": 12}, steps=3),
    "words": models.Shape("llama", LLAMA | {"vocab_size": 6000, "num_hidden_layers": 10}, steps=3),
    "gpt2": models.Shape("gpt2", GPT, "gpt2-xl", steps=3),
}
SIZE = {"fp32": 4, "bf16": 2}


def loaded(shape: models.Shape, dtype: str) -> tuple[LanguageModel, ModelSize]:
    torch.set_num_threads(1)
    lm = models.random_model("random", shape, models.DTYPES[dtype], torch.device("cpu"))
    size = size_from_config(lm.module.config.to_dict())
    assert size is not None
    return lm, size


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_optimising_target_values_takes_what_a_plan_says(name: str, dtype: str) -> None:
    shape, arm = SHAPES[name], arms.Arm("rome", 8)
    lm, size = loaded(shape, dtype)
    write, _ = arm.ours(lm, shape)
    # Second moments are factored the first time.
    write(models.records()[:8])
    found = counting.live_bytes(lambda: write(models.records()[:8]), lm.module.parameters())
    said = build_editor(arm.spec(shape)).working_bytes(arm.spec(shape).config, size, SIZE[dtype])
    assert said is not None
    assert 0.8 < said["activations"] / found < 1.3, (said, found)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("together", [1, 8])
def test_fine_tuning_takes_what_a_plan_says(together: int, dtype: str) -> None:
    shape, arm = SHAPES["llama"], arms.Arm("ft", together)
    lm, size = loaded(shape, dtype)
    write, ledger = arm.ours(lm, shape)
    found = counting.live_bytes(lambda: write(models.records()[:together]), lm.module.parameters())
    ledger.restore()
    said = build_editor(arm.spec(shape)).working_bytes(arm.spec(shape).config, size, SIZE[dtype])
    assert said is not None
    assert 0.8 < sum(said.values()) / found < 1.5, (said, found)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "wide"])
def test_asking_takes_what_a_plan_says(name: str, dtype: str) -> None:
    lm, size = loaded(SHAPES[name], dtype)
    questions = [probe for record in models.records() for probe in record.probes]
    found = counting.live_bytes(lambda: scoring.score(lm, questions), lm.module.parameters())
    said = activations.passing(size, SIZE[dtype], tokens=len(questions) * activations.ROW)
    assert 0.8 < said / found < 1.5, (said, found)


def test_the_larger_of_editing_and_asking_counts() -> None:
    shape = SHAPES["llama"]
    _, size = loaded(shape, "fp32")

    def said(steps: int, eval_batch: int, records: int = 1000) -> int:
        trial = TrialSpec(
            study="lifelong",
            model=ModelSpec(),
            data=DataSpec(size=records),
            editor=arms.Arm("rome").spec(shape, steps),
            protocol=ProtocolSpec(rounds=(records,), eval_batch=eval_batch),
            seed=0,
        )
        return estimates.memory(trial, size, installed()).parts["activations"]

    assert said(3, 1) == said(25, 1) == said(25, 2)
    assert said(3, 4096) == activations.passing(size, 4, tokens=4096 * activations.ROW) > said(3, 1)
    # No batch is larger than all there is to ask.
    assert said(3, 4096, records=4) < said(3, 4096)
