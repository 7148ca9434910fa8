"""The vector that makes the model say the target (ROME v*, MEMIT z): every step runs the whole model (docs/methods/rome.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import common
from raysweep.editors.specs import ValueSpec
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord

STOP_LOSS = 5e-2


def optimise(
    lm: LanguageModel, record: EditRecord, target: tokens.Target, contexts: Sequence[str], module: str, spec: ValueSpec
) -> Tensor:
    """Return the output of *module* ``[d]`` at the subject's last token, plus the best shift of it.

    Args:
        lm: the model; left as it was.
        record: the fact to write.
        target: what is to be said.
        contexts: context templates, ``{}`` first.
        module: whose output is shifted: the MLP of a block (ROME) or the block (MEMIT).
        spec: hyper-parameters (``batch`` and ``stop_on_argmax`` mean nothing here).
    """
    ids, mask, labels, spots = _rows(lm, record, target, contexts, spec)
    shift = torch.zeros(lm.module.config.hidden_size, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([shift], lr=spec.lr)
    origin: list[Tensor] = []

    def hook(_: Any, arguments: Any, output: Any) -> Any:
        states = common.first(output)
        if not origin:
            origin.append(states[0, spots[0]].detach().clone())
        states = states.clone()
        states[range(len(spots)), spots] += shift
        return (states, *output[1:]) if isinstance(output, tuple) else states

    base: Tensor | None = None
    with common.hooked(lm, module, hook), torch.enable_grad():
        for iteration in range(spec.steps):
            adam.zero_grad()
            logp = common.logits(lm, ids, mask).log_softmax(-1)
            now = logp[-1, spots[-1]]
            base = now.detach().clone() if base is None else base
            said = logp.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0] * (labels >= 0)
            nll = -said.sum(1)[:-1] / len(target.demanded)
            kl = (now.exp() * (now - base)).sum()
            loss = nll.mean() + spec.kl * kl + spec.weight_decay * shift.norm() / origin[0].norm() ** 2
            if float(loss.detach()) < STOP_LOSS or iteration == spec.steps - 1:
                break
            loss.backward()
            adam.step()
            limit = spec.clamp * origin[0].norm()
            with torch.no_grad():
                if shift.norm() > limit:
                    shift.mul_(limit / shift.norm())
    return origin[0] + shift.detach()


def _rows(
    lm: LanguageModel, record: EditRecord, target: tokens.Target, contexts: Sequence[str], spec: ValueSpec
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return ids, mask, demanded ids (−1 = none) and the look-up index of each row; the last row is ``"{} is a"``."""
    templates = [c.replace("{}", record.template) for c in contexts]
    prompts = [t.replace("{}", record.subject) for t in templates]
    if spec.ref_decoded_rows:
        rows = [tokens.encode(lm, p + tokens.decode(lm, target.alone[:-1])) for p in prompts]
    else:
        rows = [tokens.before_last(lm, p, target) for p in prompts]
    rows.append(tokens.encode(lm, f"{record.subject} is a"))
    spots = [tokens.subject_last(lm, t, record.subject) for t in (*templates, "{} is a")]
    ids, mask = tokens.pad(rows, lm.device)
    labels = torch.full_like(ids, -1)
    for i, row in enumerate(rows[:-1]):
        labels[i, len(row) - len(target.demanded) : len(row)] = torch.tensor(target.demanded, device=lm.device)
    return ids, mask, labels, spots
