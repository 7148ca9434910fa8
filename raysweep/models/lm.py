"""One object for a model, its tokenizer and its layout, passed everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raysweep.hashing import digest
from raysweep.models.layout import Layout
from raysweep.models.sizes import positions_of
from raysweep.models.sources.tokenizer_behaviour import tokenizer_digest
from raysweep.runtime import Matmul

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal LM ready to be edited.

    Attributes:
        module: the Hugging Face model, in eval mode, no parameter requiring grad.
        tokenizer: its tokenizer (fast; has a pad token).
        layout: where its parts are.
        bos: ids that :func:`raysweep.models.tokens.encode` puts before every text (empty when the tokenizer does it itself).
        digest: fingerprint of everything the pristine model was loaded from; empty = not known.
        turn: what a chat template puts before a user's text, where prompts are turns of a chat; else empty.
        matmul: how a GPU multiplies its fp32 matrices, ``ieee`` or ``tf32`` (:func:`raysweep.runtime.matmul`).
        name: of the model whose hyper-parameter files fit it; empty = not known. Nothing is computed by it.
        open_edits: what takes back the edits of each ``EditSession`` that is still open on this model.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    bos: tuple[int, ...] = ()
    digest: str = ""
    matmul: Matmul = "ieee"
    name: str = ""
    # On the object that it is about, so that two sessions on one model are noticed without any table of models.
    open_edits: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)
    turn: str = ""

    @property
    def identity(self) -> str:
        """16 hex digits over all that decides what the pristine model makes of a text; empty if ``digest`` is.

        That is: what it was loaded from, its precision and that of its products, what its tokenizer does, and the BOS policy.
        Whatever is computed with a pristine model is kept under this name (:class:`raysweep.artifacts.ArtifactRequest`).
        """
        if not self.digest:
            return ""
        # what the tokenizer does, not what its files are: another version may read them differently
        tokens = tokenizer_digest(self.tokenizer, self.bos)
        parts = {"digest": self.digest, "dtype": str(self.dtype), "tokenizer": tokens}
        # What was kept before there was a choice is found again.
        return digest(parts if self.matmul == "ieee" else parts | {"matmul": self.matmul})

    def restore(self) -> None:
        """Take back every edit of an ``EditSession`` that was not closed; the pristine bits are back afterwards."""
        while self.open_edits:
            self.open_edits[-1]()

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where ids go."""
        return self.weight(f"{self.layout.embed}.weight").device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.weight(f"{self.layout.embed}.weight").dtype

    @property
    def n_blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.part(self.layout.blocks))  # type: ignore[arg-type]

    @property
    def positions(self) -> int:
        """The longest row in tokens that the model was made for; 0 = not known."""
        return positions_of(self.module.config.to_dict())

    def part(self, name: str) -> nn.Module:
        """Return the submodule called *name*."""
        part: nn.Module = self.module.get_submodule(name)
        return part

    def attn_out(self, block: int) -> str:
        """Return the name of the last linear map of a block's attention, which of some families is linear in some blocks."""
        usual, linear = self.layout.attn_out, self.layout.linear_attn_out
        # asked of the block itself: configurations list kinds in ways of their own
        owner = self.part(self.layout.block.format(block))
        inside = usual.partition("{}.")[2]
        is_usual = linear is None or any(name == inside for name, _ in owner.named_modules())
        return (usual if is_usual or linear is None else linear).format(block)

    def weight(self, name: str) -> nn.Parameter:
        """Return the parameter called *name*; tied names resolve to the one tensor."""
        # through the module, not a table of parameters: tied names are in no such table
        owner, _, leaf = name.rpartition(".")
        weight: nn.Parameter = getattr(self.part(owner), leaf)
        return weight

    def to_stream(self, block: int, output: Tensor) -> Tensor:
        """Return what a block adds to its stream where its MLP puts out *output* ``[…, d]``: *output* itself, or its norm."""
        norm = self.layout.mlp_out_norm
        if norm is None:
            return output
        part = self.part(norm.format(block))
        # of a model over several devices, a block may be elsewhere than what was captured of it
        there = next(part.parameters()).device
        normed: Tensor = part(output.to(there))
        return normed.to(output.device)

    def transposed(self, name: str) -> bool:
        """Tell whether parameter *name* is stored as ``[d_in, d_out]`` (GPT-2's Conv1D), by the type of its module."""
        # by type, not by shape: a square matrix has no orientation to guess
        owner = self.part(name.rpartition(".")[0])
        if isinstance(owner, nn.Linear):
            return False
        return type(owner).__name__ == "Conv1D"

    def logical(self, name: str) -> Tensor:
        """Return weight *name* as ``[d_out, d_in]`` (a view; do not write to it)."""
        weight = self.weight(name).detach()
        return weight.t() if weight.dim() == 2 and self.transposed(name) else weight
