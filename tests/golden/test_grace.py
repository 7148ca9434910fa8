"""GRACE against the published code: the codebook after each edit, and every generated answer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.editors.grace import Grace, GraceConfig
from raysweep.evals.generation import generate, score_generated
from raysweep.models import tokens
from raysweep.models.ledger import Ledger
from tests.golden.recorded import Variant, asked_after_edits, edit_each, variants

ALL = variants("grace")
PARTS = {"keys": "keys", "values": "values", "radii": "epsilons"}


class Recorded(Grace):
    """GRACE whose cold values start where the published run's did."""

    def __init__(self, config: GraceConfig, starts: list[Tensor]) -> None:
        super().__init__(config)
        self.starts = starts

    def start_value(self, width: int, rng: torch.Generator) -> Tensor:
        return self.starts.pop(0)


def training(h: dict[str, Any]) -> dict[str, Any]:
    """Return what GRACE and WISE call alike; the matrix is written as ``transformer.h[2].mlp.c_fc.weight``."""
    name = h["inner_params"][0]
    layer = int(name.partition("[")[2].partition("]")[0])
    return {"layer": layer, "matrix": "in" if "c_fc" in name else "out", "steps": h["n_iter"], "lr": h["edit_lr"]}


def config(variant: Variant, *, ref: bool = True) -> GraceConfig:
    h = variant.data["hparams"]
    return GraceConfig(
        **training(h),
        radius=h["eps"],
        start=h["val_init"],
        expand=h["eps_expand"],
        replace=h["replacement"].removeprefix("replace_"),
        ref=ref,
    )


def replay(
    variant: Variant, starts: list[Tensor] | None = None
) -> tuple[Recorded, list[dict[str, Any]], list[dict[str, float]]]:
    """Edit every record in turn; return the editor, the states and the stats (the model is restored)."""
    if starts is None:
        starts = [variant.tensors[f"edit{i}.new_value_init"][0] for i in range(len(variant.records))]
    editor = Recorded(config(variant), starts)
    steps = [step for step, _ in edit_each(variant.lm, editor, variant.records, {})]
    return editor, [step.state for step in steps], [dict(step.stats) for step in steps]


@pytest.mark.parametrize("name", ALL)
def test_codebook_and_answers_are_the_published_ones(name: str) -> None:
    variant = Variant(name)
    editor, states, stats = replay(variant)
    for i, state in enumerate(states):
        for part, theirs in PARTS.items():
            key = f"edit{i}.{theirs}"
            wanted, found = variant.tensors[key], state[part]
            assert found.shape == wanted.shape, key
            relative, absolute = float((found - wanted).norm() / wanted.norm()), float((found - wanted).abs().max())
            assert relative <= 1e-4 or absolute <= 3 * variant.noise(key), f"{key}: {relative:.1e}, {absolute:.1e}"
        losses = variant.data["losses"][f"edit{i}"]
        assert stats[i]["first_loss"] == pytest.approx(losses[0], rel=1e-5)
        assert stats[i]["loss"] == pytest.approx(losses[-1], rel=2e-4)
    check_events(variant, stats)
    check_answers(variant, editor, states)


def check_events(variant: Variant, stats: list[dict[str, float]]) -> None:
    """The same edits start an entry, split one, or train an older one further."""
    for i, found in enumerate(stats):
        theirs = {e[1] for e in variant.data["meta"]["grace_events"] if e[0] == f"edit{i}"}
        wanted = "split" if "split" in theirs else "added" if theirs & {"init", "add_key"} else "expanded"
        assert found[wanted] == 1.0, (i, theirs)


def check_answers(variant: Variant, editor: Recorded, states: list[dict[str, Any]]) -> None:
    """Every generated answer: ids for locality, share of right ids for the others."""
    compared = 0
    for rows, answers in asked_after_edits(variant, editor, states, partial(score_generated, published=True)):
        for row, ours in zip(rows, answers, strict=True):
            if row["locality"]:
                assert [list(ours.answers)] == row["result"]
            else:
                share = sum(a == b for a, b in zip(ours.answers, ours.labels, strict=True)) / len(ours.labels)
                assert [share] == row["result"]
            compared += 1
    assert compared == len(variant.data["evals"])


@pytest.mark.parametrize("name", ALL)
def test_the_ids_that_are_written_are_the_published_ones(name: str) -> None:
    variant = Variant(name)
    for i, record in enumerate(variant.records):
        asked = tokens.labelled_ids(variant.lm, record.prompt, tokens.join(record.prompt, record.target))
        theirs = variant.data["meta"]["edit_tokens"][f"edit{i}"]
        assert [list(asked.ids)] == theirs["input_ids"]
        assert asked.start == sum(label == -100 for label in theirs["labels"][0])


def test_a_batch_of_prompts_generates_what_single_prompts_do() -> None:
    variant = Variant(ALL[0])
    editor, states, _ = replay(variant)
    prompts = [p.prompt for r in variant.records for p in r.probes]
    ledger = Ledger(variant.lm)
    ledger.apply(editor.module_patch(variant.lm, states[-1]))
    try:
        together = generate(variant.lm, prompts, [4] * len(prompts))
        alone = [generate(variant.lm, [p], [4])[0] for p in prompts]
    finally:
        ledger.restore()
    assert together == alone
