"""AlphaEdit, plain: per layer and edit a general solve with ``d_out`` right-hand sides, in fp32 (docs/methods/alphaedit.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.plain import common, memit, values
from raysweep.editors.alphaedit import AlphaEditConfig
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


def begin(config: AlphaEditConfig, projectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the keys to be preserved, ``C_p [d_in, d_in]`` by layer: none yet."""
    return {layer: torch.zeros_like(projectors[layer]) for layer in config.layers}


def edit(
    lm: LanguageModel,
    record: EditRecord,
    config: AlphaEditConfig,
    contexts: Sequence[str],
    projectors: Mapping[int, Tensor],
    memory: dict[int, Tensor],
) -> common.Changes:
    """Return the change that writes *record*; *memory* is advanced, the model left as it was."""
    top = lm.layout.block.format(config.layers[-1])
    goal = values.optimise(lm, record, memit.targets(lm, record), contexts, top, config.value)
    names = [f"{lm.layout.mlp_out.format(layer)}.weight" for layer in config.layers]
    changes: common.Changes = {}
    with common.put_back(lm, names):
        for i, (layer, name) in enumerate(zip(config.layers, names, strict=True)):
            key = memit.key(lm, record, contexts, layer).float()
            _, now = common.at_subject(lm, [record.template], record.subject, top)
            share, projector = (goal - now[0]) / (len(names) - i), projectors[layer]
            left = projector @ (torch.outer(key, key) + config.pre * memory[layer])
            left = left + config.ridge * torch.eye(len(key), device=key.device)
            solved = torch.linalg.solve(left, projector @ torch.outer(key, share))
            changes[name] = common.stored(lm, name, solved.T)
            common.add(lm, {name: changes[name]})
        if config.pre:
            for layer in config.layers:
                key = memit.key(lm, record, contexts, layer).float()
                memory[layer] = memory[layer] + torch.outer(key, key)
    return changes
