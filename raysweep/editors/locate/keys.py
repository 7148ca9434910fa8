"""Keys: what enters the edited linear map ``y = W k``, at the subject's last token or at every token.

ROME, MEMIT and AlphaEdit take the key at the subject's last token, averaged over contexts; SimIE takes the keys of all tokens of
prompt and target as the columns of ``K_t [d_in, k]`` (docs/methods/rome.md, docs/methods/simie.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks, resume
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


def all_token_keys(lm: LanguageModel, records: Sequence[EditRecord], modules: Sequence[str]) -> dict[str, Tensor]:
    """Return the inputs of *modules* at every token of ``prompt + target``, as columns (SimIE).

    BOS, all prompt tokens and all target tokens count; a space is put before the target unless it begins with one.

    Returns:
        ``{module: [d_in, k]}`` with ``k`` the number of tokens of all records, in the model's dtype.
    """
    # Unlike the evaluation, a space is put only before a target that has none (quirk Q4).
    rows = [tokens.encode(lm, r.prompt + tokens.with_space(r.target)) for r in records]
    ids, mask = tokens.pad(rows, lm.device)
    with torch.no_grad(), hooks.capture(lm, [(m, "input") for m in modules]) as seen:
        blocks.run(lm, ids=ids, mask=mask, last=resume.last_block_of(lm, modules))
    # (row, column) of the tokens that are no padding, known on the host: a mask as an index would be read back
    row, column = torch.tensor([(i, j) for i, row in enumerate(rows) for j in range(len(row))], device=lm.device).T
    # [rows, T, d_in] → [k, d_in], turned into columns
    return {m: seen[m, "input"][row, column].T for m in modules}


def context_rows(lm: LanguageModel, record: EditRecord, contexts: Sequence[str]) -> list[list[int]]:
    """Return, for each context, the ids of the prompt up to the subject's last token.

    By causality nothing after that token matters to its key.
    """
    rows = []
    for context in contexts:
        # The template's own slot stays open, so that the subject's end is found behind the context.
        template = tokens.in_context(lm, context, record.template)
        last = tokens.subject_last(lm, template, record.subject)
        rows.append(tokens.encode(lm, template.replace("{}", record.subject))[: last + 1])
    return rows


def grouped_mean(keys: Tensor) -> Tensor:
    """Return ``½ (k(bare) + mean k(contexts))`` of keys ``[1 + c, d]``, the bare prompt's first (docs/methods/memit.md)."""
    return keys[0] if keys.shape[0] == 1 else (keys[0] + keys[1:].mean(0)) / 2
