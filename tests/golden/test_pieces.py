"""Everything else that was recorded: what the editors compute on the way, losses, second moments, round means.

Tolerances as in ``test_parity``: 1e-4 relative (Frobenius), or three times what two runs of the published code differ by.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file

from raysweep.editors.locate import second_moments
from raysweep.editors.specs import MomentSpec
from tests.golden import pieces, test_prune
from tests.golden.recorded import FOLDERS, HERE, Variant, variants
from tests.golden.test_alphaedit import REHEARSED, spec_of

WEIGHTS = variants("ft", "rome", "memit", "alphaedit", "mend")
FULL = [name for name in WEIGHTS if "simie" not in name or name.endswith("lam10-initFalse-LU")]
MEANS = [v for v in FULL if re.search(r"/(ft-target_new|rome|memit|alphaedit|mend)(-simie.*|-ppl)?$", v)]
OTHERS = {"x", "delta", "x_transformed", "delta_transformed", "z", "ks", "cur_input", "cur_output"}
"""Of MEND's: ``test_mend``. Of the others: they enter the update, which is compared (``resid`` is (z − h)/L, ``v`` holds z)."""


def published(variant: Variant) -> Any:
    """Return our editor for *variant* with the published solves."""
    return spec_of(variant, backend="ref_fp32_lu") if variant.spec().name == "alphaedit" else variant.spec()


@pytest.mark.parametrize("name", FULL)
def test_every_recorded_piece(name: str) -> None:
    variant, compared = Variant(name), set()
    found, stats = pieces.replay(variant, published(variant), rehearse=name in REHEARSED)
    for key, theirs in variant.tensors.items():
        group, _, kind = key.partition(".")
        kind, _, parameter = kind.partition(".")
        if group == "warmup" or kind in OTHERS:
            continue
        ours = found[f"{group}.{kind}"][parameter]
        assert ours.shape == theirs.shape, key
        relative = float((ours - theirs).norm() / theirs.norm())
        absolute, noise = float((ours - theirs).abs().max()), 3 * variant.noise(f"{group}.{kind}")
        assert relative <= 1e-4 or absolute <= noise, f"{key}: relative {relative:.1e}, absolute {absolute:.1e}"
        compared.add(kind)
    assert "after_base" in compared
    if variant.data["simie"]:
        wanted = {"after_simie"} if variant.data["alg"] == "MEND" else {"after_simie", "simie_keys", "matrix_P"}
        assert wanted <= compared
    check_losses(variant, stats)


def check_losses(variant: Variant, stats: pieces.Stats) -> None:
    """First and last loss of each edit's optimisation, and how many were measured; printed with three decimals, or floats."""
    for i, named in enumerate(stats):
        found = {name.partition("/")[0]: value for name, value in named.items()}  # "loss/1" of ROME
        lines = variant.data["losses"].get(f"edit{i}")
        if not lines:
            assert variant.data["alg"] == "MEND"
            continue
        values = [float(line.split()[1]) if isinstance(line, str) else line for line in lines]
        assert found["first_loss"] == pytest.approx(values[0], abs=6e-4)
        assert found["loss"] == pytest.approx(values[-1], abs=6e-4)
        assert found.get("value_steps", found.get("steps")) == len(values)


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_second_moments_are_the_recorded_ones(name: str) -> None:
    """Added up in fp64 or in fp32 (quirk Q10), from the recorded texts: the same to fp32 rounding, over the same tokens."""
    lm = Variant(f"{name}/rome").lm
    about = json.loads((HERE / name / "covariance.json").read_text())
    recorded = load_file(HERE / name / "covariance.safetensors")
    for ref in (False, True):
        requests = []
        for layer in (1, 2):
            request = second_moments.request(lm, lm.layout.mlp_out, layer, MomentSpec(ref_fp32=ref))
            requests.append(replace(request, inputs={**request.inputs, "text": {"tokens": 0}}))
        for request, (tensors, meta) in zip(
            requests, second_moments.build(lm, requests, iter(about["texts"])), strict=True
        ):
            module = str(request.inputs["module"])
            theirs = recorded[module]
            assert meta["tokens"] == about[module]["count"]
            assert float((tensors["moments"] - theirs).norm() / theirs.norm()) < 2e-6


@pytest.mark.parametrize("name", MEANS)
def test_round_means_are_the_published_ones(name: str) -> None:
    """Rel, Gen, Loc, Avg or PPL, Loc at every logged round, through the loop and the summary (§2.3)."""
    variant = Variant(name)
    found = {r.step: r.summary for r in test_prune.study(variant, published(variant))}
    views = {"Rel": "rel", "Gen": "gen", "Loc": "loc", "Avg": "avg", "PPL": "ppl"}
    assert variant.data["logged"]
    for step, means in variant.data["logged"]:
        for label, value in means.items():
            assert found[step][f"retained/{views[label]}"] == pytest.approx(value, rel=2e-4, abs=1e-9), (step, label)
