"""A change of the residual stream, spread over several layers: the part that MEMIT and AlphaEdit share.

One target hidden state ``z`` per record at the last chosen layer ``L`` (MEMIT eq. 16), then layer by layer upwards, with the lower
updates in place (MEMIT eq. 20; docs/methods/memit.md)::

    ρ_l = (z − h^L) / (layers left, this one included)      what is still missing, shared out over this layer and those above it
    ΔW_l = ρ_l X_lᵀ                                         X_l from the keys K_l; the methods differ only in it (``Solve``)

``h^L`` is the output of block ``L`` by now, at the subject's last token of the bare prompt; ``K_l`` are the keys there, averaged
over contexts. Both are read anew at each layer. What a pack of rows is, see ``models/forward/prefix_tree.py``.

Shape legend: ``n`` records of the batch, ``c`` context templates, ``d`` width of the stream (and of a value), ``d_in`` width of a
key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.editors.locate import keys, target_value
from raysweep.editors.specs import ValueSpec
from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks, key_passes, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Delta, LowRank
from raysweep.models.step_graphs import StepGraphs
from raysweep.records import EditRecord

# layer, K [d_in, n] fp64 → X [d_in, n] fp64
Solve = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LayerUpdates:
    """What writes one batch.

    Attributes:
        deltas: changes by parameter name.
        stats: losses, steps, and the mean norm of what is missing before each layer.
    """

    deltas: dict[str, Delta]
    stats: dict[str, float]


def spread_over_layers(
    lm: LanguageModel,
    batches: Sequence[Sequence[EditRecord]],
    *,
    layers: Sequence[int],
    value: ValueSpec,
    templates: Sequence[str],
    solve: Solve,
    graphs: StepGraphs | None = None,
) -> list[LayerUpdates]:
    """Return what writes each of *batches* into the model as it stands; no batch sees another.

    Args:
        lm: the model; left as it was.
        batches: records that are written together; the target values of all batches are looked for together.
        layers: blocks to change, rising; target values are those of the last one.
        value: how target values are optimised.
        templates: context templates, the bare one first.
        solve: returns ``X [d_in, n]`` for a layer and its keys ``K [d_in, n]``, both fp64.
        graphs: where steps are captured, those recorded so far.
    """
    tasks = [_task(lm, r, templates, value) for batch in batches for r in batch]
    # Values are looked for together, over all batches; each batch then takes its own, in order.
    found = target_value.optimise(lm, tasks, layer=layers[-1], site="block", spec=value, graphs=graphs)
    values = iter(found)
    return [_layer_updates(lm, batch, layers, templates, [next(values) for _ in batch], solve) for batch in batches]


def _layer_updates(
    lm: LanguageModel,
    batch: Sequence[EditRecord],
    layers: Sequence[int],
    templates: Sequence[str],
    values: Sequence[target_value.Value],
    solve: Solve,
) -> LayerUpdates:
    """Turn the target values of one batch into changes of all layers, and say how it went."""
    goals = torch.stack([v.origin + v.shift for v in values]).double()  # z [n, d]
    deltas, residuals = _climb_layers(lm, batch, layers, templates, goals, solve)
    stats = {
        "loss": sum(v.loss for v in values) / len(values),
        "first_loss": sum(v.first_loss for v in values) / len(values),
        "value_steps": sum(v.steps for v in values) / len(values),
    }
    stats |= {f"residual/{layer}": r for layer, r in zip(layers, residuals, strict=True)}
    return LayerUpdates(deltas, stats)


def _task(lm: LanguageModel, record: EditRecord, templates: Sequence[str], spec: ValueSpec) -> target_value.ValueTask:
    """Return what to optimise for *record*: its prompt in every context, and the ids that are demanded behind it."""
    target = demanded(lm, record, strip_dummy_piece=spec.strip_dummy_piece)
    return target_value.value_task(
        lm, record.template, record.subject, target, templates, decoded=spec.ref_decoded_rows
    )


def demanded(lm: LanguageModel, record: EditRecord, *, strip_dummy_piece: bool = False) -> tokens.Target:
    """Return the target with a space before it unless it has one; a leading BOS or unk is not demanded (quirk Q48)."""
    text = tokens.with_space(record.target)
    target = tokens.target(lm, record.prompt, text, strip_dummy_piece=strip_dummy_piece)
    # The published code drops a leading BOS or unk of the target encoded alone.
    ids = target.alone
    if len(ids) < 2 or ids[0] not in (lm.tokenizer.bos_token_id, lm.tokenizer.unk_token_id):
        return target
    return tokens.Target(text, ids[1:], target.demanded if strip_dummy_piece else ids[1:])


def subject_keys(
    lm: LanguageModel, batch: Sequence[EditRecord], layers: Sequence[int], templates: Sequence[str]
) -> dict[int, Tensor]:
    """Return the context-averaged keys of *batch* at each layer of the model as it stands.

    Args:
        lm: the model.
        batch: ``n`` records with a subject.
        layers: blocks whose value matrix's input is read.
        templates: context templates, the bare one first.

    Returns:
        ``{layer: [d_in, n]}`` in fp64.
    """
    packs, value = _packs(lm, batch, templates), lm.layout.mlp_out
    with torch.no_grad(), hooks.capture(lm, [(value.format(layer), "input") for layer in layers]) as seen:
        blocks.run_packs(lm, packs, last=max(layers))
    return {
        layer: _context_means(packs.last_states(seen[value.format(layer), "input"]), len(batch)) for layer in layers
    }


def _packs(lm: LanguageModel, batch: Sequence[EditRecord], templates: Sequence[str]) -> prefix_tree.PackedRows:
    """Return every record in every context, each up to the subject's last token: nothing after it matters to its key."""
    rows = [row for record in batch for row in keys.context_rows(lm, record, templates)]
    return prefix_tree.pack_rows(lm, rows)


def _context_means(every: Tensor, n: int) -> Tensor:
    """Average the keys ``[n·c, d_in]`` of each record over its contexts; ``[d_in, n]`` in fp64."""
    by_record = every.double().view(n, len(every) // n, -1)  # rows are record by record: [n, c, d_in]
    return torch.stack([keys.grouped_mean(k) for k in by_record], dim=1)


def _climb_layers(
    lm: LanguageModel,
    batch: Sequence[EditRecord],
    layers: Sequence[int],
    templates: Sequence[str],
    goals: Tensor,
    solve: Solve,
) -> tuple[dict[str, Delta], list[float]]:
    """Go up the layers; at each, recompute keys and the current hidden state with the lower updates in place.

    A layer's update does not move its own input, so each pass starts at the layer just updated.
    """
    n, value = len(batch), lm.layout.mlp_out
    deltas: dict[str, Delta] = {}
    residuals = []
    with torch.no_grad():
        passes = key_passes.prepare(lm, _packs(lm, batch, templates), layers)
    for i, layer in enumerate(layers):
        # One pass gives this layer's keys, and h^L under the changes so far; those below the layer changed last are in what enters.
        with torch.no_grad():
            every, top = passes.read(layer, dict(list(deltas.items())[-1:]))
        # h^L at the subject's last token of the bare prompt, the first of each record's contexts: [n, d]
        now = top.double().view(n, len(templates), -1)[:, 0]
        # This layer takes an equal share of what is missing, so the last one takes all that is left.
        rho = (goals - now) / (len(layers) - i)
        residuals.append((goals - now).norm(dim=1).mean())
        columns = _context_means(every, n)
        deltas[f"{value.format(layer)}.weight"] = LowRank(rho.T, solve(layer, columns).T)  # ρᵀ [d, n] · Xᵀ [n, d_in]
    # one read for all layers
    return deltas, torch.stack(residuals).tolist()
