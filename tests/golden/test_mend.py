"""MEND against the published code: gradient factors and transformed factors; ``test_parity`` has its weights and answers.

Tolerances as in ``test_parity``: 1e-4 relative (Frobenius), or three times what two runs of the published code differ by.
"""

from __future__ import annotations

import pytest
import torch

from raysweep.config.schema import EditorSpec
from raysweep.editors.mend import editor, factors, network
from tests.golden.recorded import Variant, replay, variants

PLAIN = [name for name in variants("mend") if name.endswith("/mend")]


def close(variant: Variant, group: str, name: str, ours: torch.Tensor) -> None:
    theirs = variant.tensors[f"{group}.{name}"]
    relative = float((ours - theirs).norm() / theirs.norm())
    absolute = float((ours - theirs).abs().max())
    assert relative <= 1e-4 or absolute <= 3 * variant.noise(group), f"{group}.{name}: {relative:.1e}, {absolute:.1e}"


@pytest.mark.parametrize("name", PLAIN)
def test_factors_and_transformed_factors_are_the_published_ones(name: str) -> None:
    variant = Variant(name)
    lm, record = variant.lm, variant.records[0]
    config = editor.MendConfig.model_validate(variant.spec().config)
    asked = factors.label_text(lm, record.prompt, record.target, special=True)
    tokens = variant.data["meta"]["edit_tokens"]["edit0"]
    assert [list(asked.ids)] == tokens["input_ids"]
    assert [list(asked.labels)] == tokens["labels"]
    names = editor.edited_parameters(lm, config)
    assert list(names) == variant.data["hparams"]["inner_params"]
    modules = [n.removesuffix(".weight") for n in names]
    found = factors.gradient_factors(lm, factors.batch_texts(lm, [asked], min(config.layers)), modules)
    net = network.Hypernetwork.load(editor.matrices(lm, config), variant.artifacts()["hypernetwork"].tensors)
    for number, (weight, module) in enumerate(zip(names, modules, strict=True)):
        x, delta = found.pairs[module]
        close(variant, "edit0.x", weight, x)
        close(variant, "edit0.delta", weight, delta)
        kept = network.nonzero_tokens(x, delta)
        left, right = net(weight, x[kept], delta[kept])
        assert left.shape == variant.tensors[f"edit0.x_transformed.{weight}"].shape
        close(variant, "edit0.x_transformed", weight, left)
        close(variant, "edit0.delta_transformed", weight, right / net.edit_lrs[number])
        assert net.net(weight)[1] == variant.data["meta"]["param_idx"][weight]


@pytest.mark.parametrize("name", ["tiny-llama/mend"])
def test_labels_without_special_tokens_give_another_update(name: str) -> None:
    """FIX against REF (quirk Q33): BOS is not demanded."""
    variant = Variant(name)
    record = variant.records[0]
    fixed = factors.label_text(variant.lm, record.prompt, record.target)
    assert fixed.labels == factors.label_text(variant.lm, record.prompt, record.target, special=True).labels[1:]
    spec = variant.spec()
    other = replay(variant, EditorSpec(name=spec.name, config={**spec.config.model_dump(), "ref_labels": False}))
    published = replay(variant)
    assert all(not torch.equal(other[0][n], published[0][n]) for n in other[0])
