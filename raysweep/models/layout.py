"""Where things are in a model: one declarative :class:`Layout` per architecture family, chosen by ``config.model_type``.

A model is read as a residual stream: the embedding begins it, each block adds its attention's and its MLP's output to it, the final
norm ends it, the head makes logits of it. ``docs/add_an_architecture.md`` adds a family step by step, and
``raysweep/testing/layout_contract.py`` examines it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raysweep.errors import ModelError, nearest
from raysweep.registry import Registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MlpSide = Literal["in", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Dotted names of a family's parts; ``{}`` is the block number.

    Attributes:
        model_type: ``config.model_type`` of Hugging Face.
        body: the module that maps ids to final hidden states (its output has been normed).
        blocks: the list of blocks.
        block: one block; its output (or the first element of it) is the residual stream.
        mlp: the block's MLP; its output is what ROME shifts.
        mlp_in: first linear maps of the MLP (MEND, WISE, GRACE edit these on some models).
        mlp_out: last linear map of the MLP, whose input is the key and whose output is the value.
        attn_out: last linear map of the attention.
        norm: final norm.
        head: output projection (may be tied to ``embed``).
        embed: token embedding.
        embed_scale: of a configuration, by how much the model multiplies a row of the embedding matrix before it enters block 0
            (Gemma: ``√hidden_size``); None: not at all.
    """

    model_type: str
    body: str
    blocks: str
    block: str
    mlp: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    attn_out: str
    norm: str
    head: str
    embed: str
    embed_scale: Callable[[PretrainedConfig], float] | None = None

    def mlp_matrix(self, layer: int, side: MlpSide) -> str:
        """Return the name of a block's value matrix (``out``: ``mlp_out``) or of its first linear map (``in``: c_fc, gate_proj)."""
        return (self.mlp_out if side == "out" else self.mlp_in[0]).format(layer)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the names of its parts by what they are, for those who compare names before a model is loaded."""
        return {
            "block": (self.block,),
            "mlp": (self.mlp,),
            "mlp_in": self.mlp_in,
            "mlp_out": (self.mlp_out,),
            "attn": (self.attn_out.rpartition(".")[0],),
            "norm": (self.norm,),
            "head": (self.head,),
            "embed": (self.embed,),
        }

    def input_of(self, module: str) -> str:
        """Return a name for what enters *module*: its own, or for the first linear maps of an MLP the MLP's.

        Modules with equal names read the same tensor (``gate_proj`` and ``up_proj`` of one block).
        """
        # "model.layers.3.mlp.gate_proj" → "model.layers.3.mlp"
        owner = module.rpartition(".")[0]
        # the block number is the one part of a dotted name that is digits
        number = next((part for part in owner.split(".") if part.isdigit()), "")
        shares = bool(number) and any(first.format(number) == module for first in self.mlp_in)
        return self.mlp.format(number) if shares else module


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "gpt2": "raysweep.models.layouts.gpt2:LAYOUT",
        "gptj": "raysweep.models.layouts.gptj:LAYOUT",
        "llama": "raysweep.models.layouts.llama:LAYOUT",
        "mistral": "raysweep.models.layouts.mistral:LAYOUT",
        "qwen2": "raysweep.models.layouts.qwen2:LAYOUT",
        "qwen3": "raysweep.models.layouts.qwen3:LAYOUT",
    },
)


def layout_of(config: PretrainedConfig) -> Layout:
    """Return the layout for a Hugging Face *config*.

    Raises:
        ModelError: no layout knows ``config.model_type``.
    """
    # by type, never by the name of the checkpoint
    kind = str(config.model_type)
    if kind not in LAYOUTS:
        raise ModelError(
            f"no layout for model_type '{kind}'",
            hint=f"{nearest(kind, LAYOUTS.names())}; add raysweep/models/layouts/{kind}.py and a line in models/layout.py",
        )
    return LAYOUTS.get(kind)
