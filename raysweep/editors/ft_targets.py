"""What FT demands of a model: rows of ids, and which token is to be predicted where (docs/methods/ft.md).

FT-L (:func:`prompt_last`) demands every target token at the prompt's last token, FT-M (:func:`target_new`) each given the ones
before it.

Shape legend: ``k`` demanded tokens of all rows, ``p`` distinct positions that predict them, ``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.models import tokens
from raysweep.models.forward import head, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord


@dataclass(frozen=True, slots=True)
class Targets:
    """Rows of ids, and the tokens demanded of them: (row, position that predicts it, id, weight)."""

    rows: list[list[int]]
    demanded: list[tuple[int, int, int, float]]

    def locate(self, packs: prefix_tree.PackedRows) -> LocatedTargets:
        """Find the predicting positions in *packs*; positions that several tokens are demanded of are read once."""
        # A row's positions lie anywhere in its pack: rows that begin alike share them.
        places = [
            (packs.row_positions[row][0], packs.row_positions[row][1][position])
            for row, position, _, _ in self.demanded
        ]
        distinct = list(dict.fromkeys(places))
        device = packs.ids.device
        pack, column = torch.tensor(distinct).T
        which = None if distinct == places else torch.tensor([distinct.index(place) for place in places], device=device)
        token, weight = (torch.tensor(c, device=device) for c in zip(*(d[2:] for d in self.demanded), strict=True))
        return LocatedTargets(pack, column, which, token, weight)


@dataclass(frozen=True, slots=True)
class LocatedTargets:
    """Where demanded tokens are predicted in packs.

    Attributes:
        pack, column: the predicting positions, each once; on the host, where it is worked out what is computed.
        which: ``[k]`` index into them, per demanded token; None: one at each, in order.
        token: ``[k]`` its id.
        weight: ``[k]`` its weight in the loss.
    """

    pack: Tensor
    column: Tensor
    which: Tensor | None
    token: Tensor
    weight: Tensor

    def nll(self, lm: LanguageModel, hidden: Tensor) -> Tensor:
        """Return ``weight · (−log p(id))`` ``[k]`` of each demanded token, given the normed states ``[p, d]`` at the positions."""
        return -head.target_logprobs(lm, hidden, self.which, self.token) * self.weight


def joined(targets: Sequence[Targets]) -> Targets:
    """Return all *targets* as one, weights unchanged."""
    rows: list[list[int]] = []
    demanded = []
    for one in targets:
        demanded += [(len(rows) + row, position, token, weight) for row, position, token, weight in one.demanded]
        rows += one.rows
    return Targets(rows, demanded)


def prompt_last(lm: LanguageModel, batch: Sequence[EditRecord], *, special: bool, strip: bool) -> Targets:
    """Demand every target token at the prompt's last token (FT-L); the loss is the mean over a record's tokens, then over records.

    Args:
        lm: the model, for its tokenizer.
        batch: records to learn together.
        special: demand the special tokens that the tokenizer puts around a text, too (published; quirk Q13).
        strip: do not demand SentencePiece's stand-alone space piece (quirk Q6).

    Returns:
        One row per record, its prompt. Tokens equal to unk are not demanded.
    """
    rows, demanded = [], []
    for i, record in enumerate(batch):
        prompt = tokens.encode(lm, record.prompt)
        text = tokens.with_added_space(record.target)
        alone = tokens.target(lm, record.prompt, text, strip_dummy_piece=strip)
        ids = list(alone.demanded)
        if special:
            # the special tokens that the tokenizer puts around the target when it stands alone
            # Find the target's own ids in its encoding with special tokens, and keep those before and behind.
            around, n = lm.tokenizer(text)["input_ids"], len(alone.alone)
            begin = next(i for i in range(len(around)) if tuple(around[i : i + n]) == alone.alone)
            ids = [*around[:begin], *ids, *around[begin + n :]]
        ids = [t for t in ids if t != lm.tokenizer.unk_token_id]
        rows.append(prompt)
        demanded += [(i, len(prompt) - 1, t, 1.0 / (len(ids) * len(batch))) for t in ids]
    return Targets(rows, demanded)


def target_new(lm: LanguageModel, batch: Sequence[EditRecord]) -> Targets:
    """Demand each target token given the prompt and the earlier ones (FT-M); the same means as in :func:`prompt_last`."""
    rows, demanded = [], []
    for i, record in enumerate(batch):
        scored = tokens.labelled_ids(lm, record.prompt, record.prompt + tokens.with_added_space(record.target))
        rows.append(list(scored.ids[:-1]))  # nothing is asked after the last token
        weight = 1.0 / (len(scored.labels) * len(batch))
        demanded += [(i, scored.start - 1 + j, t, weight) for j, t in enumerate(scored.labels)]
    return Targets(rows, demanded)
