"""Where things are in a model: one declarative :class:`Layout` per architecture family, chosen by ``config.model_type``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysweep.errors import ModelError, nearest
from raysweep.registry import Registry


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

    def input_of(self, module: str) -> str:
        """Return a name for what enters *module*: its own, or for the first linear maps of an MLP the MLP's.

        Modules with equal names read the same tensor (``gate_proj`` and ``up_proj`` of one block).
        """
        owner = module.rpartition(".")[0]
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


def layout_of(config: Any) -> Layout:
    """Return the layout for a Hugging Face *config*.

    Raises:
        ModelError: no layout knows ``config.model_type``.
    """
    kind = str(config.model_type)
    if kind not in LAYOUTS:
        raise ModelError(
            f"no layout for model_type '{kind}'",
            hint=f"{nearest(kind, LAYOUTS.names())}; add raysweep/models/layouts/{kind}.py and a line in models/layout.py",
        )
    return LAYOUTS.get(kind)
