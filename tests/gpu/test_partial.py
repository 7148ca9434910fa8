"""Where blocks are run by transformers' modules on an accelerator, a step still computes only what a change can reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raysweep.editors.locate import target_value, value_loss
from raysweep.editors.specs import ValueSpec
from raysweep.models import tokens
from raysweep.models.forward import blocks
from raysweep.testing.fixtures import tiny_lm, toy_records
from raysweep.testing.sham_device import ShamDevice, move

CONTEXTS = ("{}", "Hello there. {}")
STEPS = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_runs_the_blocks_above_on_tokens_from_the_look_up_token_on(dtype: torch.dtype) -> None:
    """And the head where it is asked; the first loss is that of a whole plain pass in this precision."""
    lm, record, layer = tiny_lm("gpt2"), toy_records(1)[0], 0
    lm.module.to(dtype)
    target = tokens.target(lm, record.prompt, f" {record.target}")
    task = target_value.value_task(lm, record.template, record.subject, target, CONTEXTS)
    plain = _plain_loss(lm, task)
    seen: dict[str, list[int]] = {}

    def counter(name: str) -> object:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(name, []).append(args[0][..., 0].numel())

        return hook

    move(lm.module)
    names = [lm.layout.block.format(i) for i in range(lm.n_blocks)]
    with ShamDevice():
        for name in [*names, lm.layout.head]:
            lm.part(name).register_forward_pre_hook(counter(name))  # type: ignore[arg-type]
        (value,) = target_value.optimise(lm, [task], layer=layer, site="mlp", spec=ValueSpec(steps=STEPS, lr=0.1))
    # every token of the rows once below, and once more in the blocks above for the keys and values that are reused
    distinct, changed = _nodes(task)
    assert seen[names[0]] == [distinct]
    for name in names[1:]:
        assert seen[name] == [distinct - changed, *[changed] * STEPS]
    asked = len(CONTEXTS) * len(task.targets) + 1
    assert seen[lm.layout.head] == [asked] * STEPS
    assert value.first_loss == pytest.approx(plain, rel={torch.float32: 1e-5, torch.float16: 2e-3}.get(dtype, 1e-2))


def _nodes(task: target_value.ValueTask) -> tuple[int, int]:
    """Return how many distinct beginnings the rows have, and how many of them a shift changes."""
    rows = [
        row[: end + 1] if i == len(task.rows) - 1 else row
        for i, (row, end) in enumerate(zip(task.rows, task.lookups, strict=True))
    ]
    # a beginning that holds the look-up token is another one than the same ids without a shift
    found = {(row[: j + 1], j >= at) for row, at in zip(rows, task.lookups, strict=True) for j in range(len(row))}
    return len(found), sum(changed for _, changed in found)


def _plain_loss(lm: object, task: target_value.ValueTask) -> float:
    """Return the mean negative log-likelihood of the target over contexts by one whole pass for each row."""
    total, m = 0.0, len(task.targets)
    with torch.no_grad():
        for row in task.rows[:-1]:
            ids = torch.tensor([row])
            hidden = blocks.run(lm, ids=ids, mask=torch.ones_like(ids))  # type: ignore[arg-type]
            logp = blocks.logits(lm, hidden)[0, -m:].log_softmax(-1)  # type: ignore[arg-type]
            total -= float(logp[range(m), list(task.targets)].mean()) / (len(task.rows) - 1)
    return total


@pytest.mark.parametrize("counts", [(3, 3), (3, 1), (2,)])
def test_a_shift_by_tables_is_that_by_indices(counts: tuple[int, ...]) -> None:
    """To the bit, and so is its gradient, also where one task has fewer look-up tokens than another."""
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(len(counts), 7, 4, generator=rng)
    task, column = torch.tensor([(i, 2 * j + i) for i, c in enumerate(counts) for j in range(c)]).T
    asked = torch.zeros(len(counts), dtype=torch.int64), torch.arange(len(counts))
    plan = value_loss.ReadPlan((task, column), asked, asked[0], torch.ones(len(counts)), asked)
    shift, weight = (torch.randn(*size, generator=rng) for size in ((len(counts), 4), states.shape))
    found = []
    for tables in (None, value_loss.PlanTables.of(plan, states, counts)):
        leaf = shift.clone().requires_grad_()
        loss = value_loss.ValueLoss(states, replace(plan, on_device=tables), None, 0)  # type: ignore[arg-type]
        moved = loss._moved(None, leaf)  # type: ignore[arg-type]
        found.append((moved.detach(), *torch.autograd.grad((moved * weight).sum(), leaf)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
