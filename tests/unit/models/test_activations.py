"""What a plan says of activations, beside what a memory that is watched operation by operation holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import arms, counting, models
from raysweep.artifacts import Artifact
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.editors.base import AnyEditor
from raysweep.editors.build import build_editor
from raysweep.editors.mend import editor as mend
from raysweep.editors.mend.network import Hypernetwork
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
CONTEXTS = {"templates": list(models.TEMPLATES)}
EDITORS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "wise": ("wise", {"layer": 4, "steps": 3, "contexts": CONTEXTS}),
    "wise, first map": ("wise", {"layer": 4, "matrix": "in", "steps": 3, "contexts": CONTEXTS}),
    "lora": ("lora", {"steps": 3}),
    "lora together": ("lora", {"steps": 3, "batch": 8, "rank": 4}),
    "mend": ("mend", {"layers": [9, 12, 15], "rank": 64, "train": {}}),
    "mend together": ("mend", {"layers": [9, 12, 15], "rank": 64, "batch": 8, "train": {}}),
    "mend, a network per matrix": (
        "mend",
        {"layers": [15], "modules": ["mlp_out"], "rank": 64, "shared": False, "train": {}},
    ),
    "oracle": ("oracle", {}),
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


@pytest.mark.parametrize(("shape", "dtype"), [("gpt2", "fp32"), ("llama", "fp32"), ("llama", "bf16")])
@pytest.mark.parametrize("case", sorted(EDITORS))
def test_other_edits_take_what_a_plan_says(case: str, shape: str, dtype: str) -> None:
    lm, size = loaded(SHAPES[shape], dtype)
    name, config = EDITORS[case]
    editor = build_editor(EditorSpec.model_validate({"name": name, "config": config}))
    said = dict(editor.working_bytes(editor.config, size, SIZE[dtype]) or {})
    given, known = {}, [*lm.module.parameters(), *lm.module.buffers()]
    if isinstance(editor, mend.Mend):
        net = Hypernetwork(
            mend.matrices(lm, editor.config), rank=editor.config.rank, edit_lr=1e-4, shared=editor.config.shared
        )
        given = {mend.ARTIFACT: Artifact("made up", {k: v.detach() for k, v in net.state_dict().items()}, {})}
        # It is there before; what comes with its matrices are vectors.
        held = sum(t.nbytes for t in net.state_dict().values())
        assert 0.9 < said.pop("hypernetwork") / held <= 1.0, (said, held)
        known += editor._network(lm, given[mend.ARTIFACT]).state_dict().values()
    edit = _edit(lm, editor, given)
    edit()
    found = counting.live_bytes(edit, known)
    assert 0.65 < sum(said.values()) / found < 1.5, (said, found)


def _edit(lm: LanguageModel, editor: AnyEditor, given: Mapping[str, Artifact]) -> Callable[[], object]:
    """Return what makes an edit, or as many as the editor makes together, of records of about as many tokens as a plan takes."""
    records = [replace(r, prompt=f"{r.subject} was born in the") for r in models.records()][: editor.group_size]
    state = editor.begin(lm, given)

    def edit() -> object:
        rngs = [torch.Generator().manual_seed(0) for _ in records]
        if len(records) > 1:
            return editor.edit_many(lm, [[r] for r in records], artifacts=given, rngs=rngs)
        return editor.edit(lm, records, state, artifacts=given, rng=rngs[0])

    return edit


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
