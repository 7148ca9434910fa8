"""Spread a change of the residual stream over several layers: the part that MEMIT and AlphaEdit share (editors.md §7.1–7.3).

One target hidden state per record at the last layer, then layer by layer: current keys ``K``, residual
``ρ = (z − h) / layers left``, and a low-rank change ``ρ Xᵀ``. The two methods differ only in ``X``.

Shape legend: ``n`` records of the batch, ``c`` context templates, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.editors.locate import keys, target_value
from raysweep.editors.specs import ValueSpec
from raysweep.models import hooks, ledger, tokens
from raysweep.models.forward import blocks, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Delta, LowRank
from raysweep.records import EditRecord

Solve = Callable[[int, Tensor], Tensor]  # layer, K [d_in, n] fp64 → X [d_in, n] fp64


@dataclass(frozen=True, slots=True)
class Spread:
    """Changes by parameter name, and what to log: losses, steps, the residual before each layer."""

    deltas: dict[str, Delta]
    stats: dict[str, float]


def write_apart(
    lm: LanguageModel,
    batches: Sequence[Sequence[EditRecord]],
    *,
    layers: Sequence[int],
    value: ValueSpec,
    texts: Sequence[str],
    solve: Solve,
) -> list[Spread]:
    """Find the target hidden states of all *batches* at the last of *layers* together, and spread each batch's with *solve*."""
    tasks = [_task(lm, r, texts, value) for batch in batches for r in batch]
    found = iter(target_value.optimise(lm, tasks, layer=layers[-1], site="block", spec=value))
    return [_spread(lm, batch, layers, texts, [next(found) for _ in batch], solve) for batch in batches]


def _spread(
    lm: LanguageModel,
    batch: Sequence[EditRecord],
    layers: Sequence[int],
    texts: Sequence[str],
    found: Sequence[target_value.Value],
    solve: Solve,
) -> Spread:
    goals = torch.stack([v.origin + v.shift for v in found]).double()
    deltas, residuals = _layers(lm, batch, layers, texts, goals, solve)
    stats = {
        "loss": sum(v.loss for v in found) / len(found),
        "first_loss": sum(v.first_loss for v in found) / len(found),
        "value_steps": sum(v.steps for v in found) / len(found),
    }
    stats |= {f"residual/{layer}": r for layer, r in zip(layers, residuals, strict=True)}
    return Spread(deltas, stats)


def _task(lm: LanguageModel, record: EditRecord, texts: Sequence[str], spec: ValueSpec) -> target_value.Task:
    target = demanded(lm, record, strip_dummy_piece=spec.strip_dummy_piece)
    return target_value.task(lm, record.template, record.subject, target, texts, decoded=spec.ref_decoded_rows)


def demanded(lm: LanguageModel, record: EditRecord, *, strip_dummy_piece: bool = False) -> tokens.Target:
    """Return the target with a space before it unless it has one; a leading BOS or unk is not demanded (quirk Q48)."""
    text = tokens.spaced(record.target)
    target = tokens.target(lm, record.prompt, text, strip_dummy_piece=strip_dummy_piece)
    ids = target.alone
    if len(ids) < 2 or ids[0] not in (lm.tokenizer.bos_token_id, lm.tokenizer.unk_token_id):
        return target
    return tokens.Target(text, ids[1:], target.demanded if strip_dummy_piece else ids[1:])


def subject_keys(
    lm: LanguageModel, batch: Sequence[EditRecord], layers: Sequence[int], texts: Sequence[str]
) -> dict[int, Tensor]:
    """Return the context-averaged keys ``[d_in, n]`` (fp64) of *batch* at each layer of the model as it stands."""
    packs, value = _packs(lm, batch, texts), lm.layout.mlp_out
    with torch.no_grad(), hooks.capture(lm, [(value.format(layer), "input") for layer in layers]) as seen:
        blocks.run_packs(lm, packs, last=max(layers))
    return {layer: _columns(packs.last_states(seen[value.format(layer), "input"]), len(batch)) for layer in layers}


def _packs(lm: LanguageModel, batch: Sequence[EditRecord], texts: Sequence[str]) -> prefix_tree.PackedRows:
    """Return every record in every context, each up to the subject's last token: nothing after it matters to its key."""
    rows = [row for record in batch for row in keys.context_rows(lm, record, texts)]
    return prefix_tree.pack_rows(lm, rows)


def _columns(every: Tensor, n: int) -> Tensor:
    """Average the keys ``[n·c, d_in]`` of each record over its contexts; ``[d_in, n]`` in fp64."""
    apart = every.double().view(n, len(every) // n, -1)
    return torch.stack([keys.grouped_mean(k) for k in apart], dim=1)


def _layers(
    lm: LanguageModel,
    batch: Sequence[EditRecord],
    layers: Sequence[int],
    texts: Sequence[str],
    goals: Tensor,
    solve: Solve,
) -> tuple[dict[str, Delta], list[float]]:
    """Go up the layers; at each, recompute keys and the current hidden state with the lower updates in place.

    A layer's update does not move its own input, so each pass starts at the layer just updated.
    """
    top, n = layers[-1], len(batch)
    packs = _packs(lm, batch, texts)
    block, value = lm.layout.block, lm.layout.mlp_out
    with torch.no_grad(), hooks.capture(lm, [(block.format(layers[0]), "input")]) as seen:
        blocks.run_packs(lm, packs, last=layers[0])
        states = seen[block.format(layers[0]), "input"]
    deltas: dict[str, Delta] = {}
    residuals = []
    start = layers[0]
    for i, layer in enumerate(layers):
        wanted: list[tuple[str, hooks.Side]] = [(value.format(layer), "input"), (block.format(top), "output")]
        wanted.append((block.format(layer), "input"))
        with torch.no_grad(), ledger.applied(lm, deltas), hooks.capture(lm, wanted) as seen:
            blocks.run_packs(lm, packs, states=states, first=start, last=top)
        columns = _columns(packs.last_states(seen[value.format(layer), "input"]), n)
        now = packs.last_states(seen[block.format(top), "output"]).double().view(n, len(texts), -1)[:, 0]
        rho = (goals - now) / (len(layers) - i)
        residuals.append(float((goals - now).norm(dim=1).mean()))
        deltas[f"{value.format(layer)}.weight"] = LowRank(rho.T, solve(layer, columns).T)
        states, start = seen[block.format(layer), "input"], layer
    return deltas, residuals
