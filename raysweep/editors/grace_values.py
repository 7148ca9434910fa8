"""Training the values of GRACE's entries, of one record or of several that do not see each other (docs/methods/grace.md).

A value ``ν`` stands in for the output of one linear map at some tokens of its record. Everything that it cannot reach is computed
once (``models/forward/resume.py``); Adam then minimises the mean cross-entropy of the target in ``ν`` alone.

Shape legend: ``n`` records, a pack each; ``S`` tokens of a pack that are computed again, ``k`` target tokens of all records,
``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysweep.models import hooks, tokens
from raysweep.models.forward import head, prefix_tree, resume
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import codebook, replacement


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of the records with the bare map in place, and what a training needs.

    Attributes:
        name: of the map.
        layer: its block.
        queries: ``[n, d_in]`` its input at each prompt's last token, fp32.
        outputs: ``[n, d_out]`` its output there, fp32.
        remainder: the tokens that a value can reach.
        last: of each record, the column of its prompt's last token among them.
        replaced: ``[n, S, 1]`` True where the value takes the output's place.
        beside: ``[n, S, d]`` what enters the remaining blocks without the map's output; None for a map whose own block is
            computed again, as its value runs through that.
        spots: where the target tokens are predicted.
        labels: ``[k]`` their ids.
        lengths: how many of them each record has.
    """

    name: str
    layer: int
    queries: Tensor
    outputs: Tensor
    remainder: resume.Remainder
    last: Sequence[int]
    replaced: Tensor
    beside: Tensor | None
    spots: resume.ReadPositions
    labels: Tensor
    lengths: Sequence[int]

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        texts: Sequence[tokens.LabelledIds],
        name: str,
        layer: int,
        matrix: Literal["in", "out"],
        replace: codebook.Replace,
    ) -> Reading:
        """Read *texts*: prompts with their targets.

        Args:
            lm: the model.
            texts: of the records; a single one where *matrix* is ``in``.
            name: of the map.
            layer: its block.
            matrix: whether it is the block's first map or its last.
            replace: at which tokens a value takes the output's place.
        """
        packs = _pack_each(lm, texts)
        # What the replacement changes, and so what has to be computed again in each step: [n, T]. On the host, where it is known
        # which columns are no padding.
        token, begin = torch.arange(packs.ids.shape[1]), torch.tensor([text.start - 1 for text in texts])
        change = (token >= begin[:, None] if replace == "last" else token >= 0).expand(packs.ids.shape)
        # a single pack is filled up only where that makes its products faster
        change = (change & packs.real if len(texts) > 1 else change).to(lm.device)
        last = begin.to(lm.device)
        bare = replacement.unwrap(lm.part(name))
        sides: list[tuple[str, hooks.Side]] = [(name, "input"), (name, "output")]
        # The query is read with the bare map in place: what earlier entries answer must not move it.
        with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}), hooks.capture(lm, sides) as seen:
            rest = resume.remainder_after(lm, packs, change, first=layer + 1)
        # A value of the first map runs through its own block, so that block is computed again too.
        if matrix == "in":
            with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}):
                rest = resume.remainder_after(lm, packs, change, first=layer)
        # the map's input and output at each prompt's last token
        row = torch.arange(len(texts), device=lm.device)
        queries, outputs = (seen[name, side][row, last].float() for _, side in sides)
        token_of, end = rest.token_of, last[:, None]
        place = {"last": token_of == end, "prompt": token_of < end, "all": token_of >= 0}
        # with the value matrix, the block's output is what comes of the map's output plus the stream beside it, which stays
        stays = matrix == "out"
        beside = rest.states - rest.select(lm.to_stream(layer, seen[name, "output"])) if stays else None
        # The tokens from the prompt's last one on predict the target tokens.
        ends = [(i, node) for i, text in enumerate(texts) for node in range(text.start - 1, len(text.ids) - 1)]
        pack, node = torch.tensor(ends, device=lm.device).T
        return cls(
            name=name,
            layer=layer,
            queries=queries,
            outputs=outputs,
            remainder=rest,
            last=rest.column_of[row, last].tolist(),
            replaced=place[replace][..., None],
            beside=beside,
            spots=rest.upper.read_at(pack, rest.column_of[pack, node]),
            labels=torch.tensor([label for text in texts for label in text.labels], device=lm.device),
            lengths=[len(text.labels) for text in texts],
        )

    def train(
        self, lm: LanguageModel, starts: Tensor, *, steps: int, lr: float, module: codebook.Codebook | None = None
    ) -> tuple[Tensor, list[list[float]]]:
        """Train a value for each record, from ``starts [n, d_out]`` on, by *steps* updates of Adam at rate *lr*.

        Args:
            lm: the model.
            starts: not changed.
            steps: updates.
            lr: of Adam.
            module: takes the map's place, where that is its block's first one; its values are set.

        Returns:
            The values ``[n, d_out]``, and the losses of each record before each update.
        """
        # Adam goes entry by entry, and the records share nothing: each value is trained as it would be alone.
        leaf = starts.clone().requires_grad_(True)
        adam = torch.optim.Adam([leaf], lr=lr, fused=True)
        states, history = self.remainder.states, []
        with (
            replacement.modules_replaced(lm, {} if module is None else {self.name: module}),
            # Tell the codebook where the prompt ends in what remains.
            replacement.row_context(lm, self.last, torch.ones_like(self.remainder.token_of)),
        ):
            for _ in range(steps):
                if module is not None:
                    module.values = leaf
                with torch.enable_grad():
                    moved = states
                    if self.beside is not None:
                        value = leaf[:, None, :].to(self.beside.dtype)
                        moved = torch.where(self.replaced, self.beside + lm.to_stream(self.layer, value), states)
                    logp = head.target_logprobs(lm, self.spots.hidden(lm, moved), None, self.labels)
                    loss = torch.stack([-one.mean() for one in torch.split(logp, list(self.lengths))])
                (leaf.grad,) = torch.autograd.grad(loss.sum(), [leaf])
                adam.step()
                history.append(loss.detach())
        return leaf.detach(), torch.stack(history, dim=1).tolist()


def _pack_each(lm: LanguageModel, texts: Sequence[tokens.LabelledIds]) -> prefix_tree.PackedRows:
    """Put each text into a pack of its own, where its nodes are its tokens."""
    trees = [prefix_tree.PrefixTree() for _ in texts]
    for tree, text in zip(trees, texts, strict=True):
        tree.add(text.ids[:-1])  # nothing is predicted after the last token
    return prefix_tree.lay_out(lm, trees, [])
