"""ROME, plain (docs/methods/rome.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.plain import common, values
from raysweep.editors.rome import RomeConfig
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


def inverses(config: RomeConfig, moments: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return ``C⁻¹`` by layer, once for a run as in the published code; nothing if the key is not adjusted."""
    if not config.adjust:
        return {}
    return {layer: torch.linalg.inv(common.damped(m, config.moments.damping)) for layer, m in moments.items()}


def edit(
    lm: LanguageModel,
    record: EditRecord,
    config: RomeConfig,
    contexts: Sequence[str],
    inverse: Mapping[int, Tensor],
) -> common.Changes:
    """Return the change that writes *record*; the model is left as it was."""
    names = {layer: f"{lm.layout.mlp_out.format(layer)}.weight" for layer in config.layers}
    changes: common.Changes = {}
    with common.put_back(lm, list(names.values())):
        for layer in config.layers:
            change = _layer(lm, record, layer, config, contexts, inverse)
            changes[names[layer]] = common.stored(lm, names[layer], change)
            common.add(lm, {names[layer]: changes[names[layer]]})
    return changes


def _layer(
    lm: LanguageModel,
    record: EditRecord,
    layer: int,
    config: RomeConfig,
    contexts: Sequence[str],
    inverse: Mapping[int, Tensor],
) -> Tensor:
    module = lm.layout.mlp_out.format(layer)
    templates = [c.replace("{}", record.template) for c in contexts]
    entering, _ = common.at_subject(lm, templates, record.subject, module)
    left = entering.double().mean(0)
    if config.adjust:
        left = inverse[layer] @ left
    left = left / left.norm()
    target = tokens.target(lm, record.prompt, tokens.with_added_space(record.target))
    goal = values.optimise(lm, record, target, contexts, lm.layout.mlp.format(layer), config.value)
    key, output = (x[0].double() for x in common.at_subject(lm, [record.template], record.subject, module))
    return torch.outer((goal.double() - output) / (key @ left), left)
