"""MEMIT, plain (docs/methods/memit.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.plain import common, values
from raysweep.editors.memit import MemitConfig
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


def edit(
    lm: LanguageModel,
    record: EditRecord,
    config: MemitConfig,
    contexts: Sequence[str],
    moments: Mapping[int, Tensor],
) -> common.Changes:
    """Return the change that writes *record*; the model is left as it was."""
    top = lm.layout.block.format(config.layers[-1])
    goal = values.optimise(lm, record, targets(lm, record), contexts, top, config.value).double()
    names = [f"{lm.layout.mlp_out.format(layer)}.weight" for layer in config.layers]
    changes: common.Changes = {}
    with common.put_back(lm, names):
        for i, (layer, name) in enumerate(zip(config.layers, names, strict=True)):
            column = key(lm, record, contexts, layer)
            _, now = common.at_subject(lm, [record.template], record.subject, top)
            share = (goal - now[0].double()) / (len(names) - i)
            weighted = config.moment_weight * common.damped(moments[layer], config.moments.damping)
            solved = torch.linalg.solve(weighted + torch.outer(column, column), column)
            changes[name] = common.stored(lm, name, torch.outer(share, solved))
            common.add(lm, {name: changes[name]})
    return changes


def key(lm: LanguageModel, record: EditRecord, contexts: Sequence[str], layer: int) -> Tensor:
    """Return the key at *layer* ``[d_in]`` in fp64; the bare prompt weighs one half."""
    templates = [c.replace("{}", record.template) for c in contexts]
    keys, _ = common.at_subject(lm, templates, record.subject, lm.layout.mlp_out.format(layer))
    bare, others = keys[0].double(), keys[1:].double()
    return (bare + others.mean(0)) / 2 if len(others) else bare


def targets(lm: LanguageModel, record: EditRecord) -> tokens.Target:
    """Return what is to be said; a leading BOS or unk is not asked for."""
    text = tokens.with_space(record.target)
    ids = tuple(tokens.encode_alone(lm, text))
    ids = ids[1:] if len(ids) > 1 and ids[0] in (lm.tokenizer.bos_token_id, lm.tokenizer.unk_token_id) else ids
    return tokens.Target(text, ids, ids)
