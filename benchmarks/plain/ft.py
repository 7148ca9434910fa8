"""FT, plain (docs/methods/ft.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.plain import common
from raysweep.editors.ft import FineTuneConfig
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


def names(lm: LanguageModel, config: FineTuneConfig) -> list[str]:
    """Return the trained parameters."""
    leaves = ("weight", "bias") if config.train_bias else ("weight",)
    modules = [lm.layout.mlp_out.format(layer) for layer in config.layers]
    return [f"{m}.{leaf}" for m in modules for leaf in leaves if getattr(lm.part(m), leaf, None) is not None]


def edit(lm: LanguageModel, record: EditRecord, config: FineTuneConfig) -> common.Changes:
    """Return the change that writes *record*; the model is left as it was."""
    trained = names(lm, config)
    weights = [lm.weight(n) for n in trained]
    with common.put_back(lm, trained) as start:
        for weight in weights:
            weight.requires_grad_(True)
        try:
            _train(lm, record, config, start)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None
        return {n: lm.weight(n).detach() - start[n] for n in trained}


def _train(lm: LanguageModel, record: EditRecord, config: FineTuneConfig, start: dict[str, Tensor]) -> None:
    adam = torch.optim.Adam([lm.weight(n) for n in start], lr=config.lr, weight_decay=config.weight_decay)
    for _ in range(config.steps):
        adam.zero_grad()
        with torch.enable_grad():
            loss = _last(lm, record, config) if config.objective == "prompt_last" else _each(lm, record)
        if float(loss.detach()) < config.stop_loss:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        if config.norm_constraint is not None:
            width = config.norm_constraint
            with torch.no_grad():
                for name, before in start.items():
                    weight = lm.weight(name)
                    weight.copy_(torch.maximum(torch.minimum(weight, before + width), before - width))


def _last(lm: LanguageModel, record: EditRecord, config: FineTuneConfig) -> Tensor:
    """Return the loss that demands every target token at the prompt's last token."""
    ids, mask = tokens.pad([tokens.encode(lm, record.prompt)], lm.device)
    text = tokens.with_added_space(record.target)
    wanted = lm.tokenizer(text)["input_ids"] if config.ask_special else tokens.encode_alone(lm, text)
    wanted = [t for t in wanted if t != lm.tokenizer.unk_token_id]
    logp = common.logits(lm, ids, mask).log_softmax(-1)
    return -logp[0, -1, wanted].mean()


def _each(lm: LanguageModel, record: EditRecord) -> Tensor:
    """Return the cross-entropy of the target given the prompt."""
    asked = tokens.labelled_ids(lm, record.prompt, record.prompt + tokens.with_added_space(record.target))
    ids, mask = tokens.pad([asked.ids], lm.device)
    logp = common.logits(lm, ids, mask).log_softmax(-1)
    return -logp[0, range(asked.start - 1, len(asked.ids) - 1), list(asked.labels)].mean()
