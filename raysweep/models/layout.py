"""Where things are in a model: one declarative :class:`Layout` per architecture family, chosen by ``config.model_type``.

A model is read as a residual stream: the embedding begins it, each block adds its attention's and its MLP's output to it, the final
norm ends it, the head makes logits of it. ``docs/add_an_architecture.md`` adds a family step by step, and
``raysweep/testing/layout_contract.py`` examines it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from raysweep.errors import ModelError, nearest
from raysweep.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

MlpSide = Literal["in", "out"]
NormKind = Literal["layer", "rms", "rms_plus_one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """What a family's blocks compute, for those who compute it from the parameters (``raysweep/models/forward/device_blocks.py``).

    With ``u = norm₁(x)`` a block is ``y = x + o(attention(turn(q u), turn(k u), v u))`` and ``z = y + mlp(norm₂(y))``, or
    ``y + mlp(u)`` where there is no second norm. The MLP is ``down(act(up w))``, or ``down(act(gate w) ⊙ up w)`` where ``mlp_in``
    of the layout names two maps. Maps may have biases. Names are those of modules, ``{}`` the block number.

    Attributes:
        block_class: full name of the class that computes this; a block of any other class is left to itself.
        norm: of all norms: ``layer`` (with mean and bias), ``rms`` or ``rms_plus_one``, which multiplies by ``1 + w``.
        attention_norm: ``norm₁``.
        mlp_norm: ``norm₂``; None: the MLP stands beside the attention and reads what it reads.
        qkv: the maps to queries, keys and values; or the one that makes all three, in this order.
        head_norms: norms of each head's queries and keys before they are turned; empty: none.
        angles: of the body, a tensor of the stream's device and dtype, and positions ``[B, S]``: ``cos`` and ``sin`` of each
            token's angles, ``[B, S, r/2]`` where the first ``r`` entries of each head are turned; None: positions are learnt.
        pairs: neighbours ``(2i, 2i+1)`` are turned together; else ``(i, i + r/2)``.
        scale: of the block, by what attention scores are multiplied.
    """

    block_class: str
    norm: NormKind
    attention_norm: str
    mlp_norm: str | None
    qkv: tuple[str, ...]
    head_norms: tuple[str, ...] = ()
    angles: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    pairs: bool = False
    scale: Callable[[nn.Module], float]


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
        fused_gate: the one map of ``mlp_in`` makes gate and values together, ``[2 m, d]``.
        mlp_out: last linear map of the MLP, whose input is the key and whose output is the value.
        experts: the key of the configuration that tells between how many MLPs each token of a block chooses; ``mlp_out`` is then
            the module that holds them; None: there is one.
        mlp_out_norm: the norm of what the MLP has put out, before it is added to the stream; None: it is added as it is.
        attn_out: last linear map of the attention.
        linear_attn_out: last linear map of a block's linear attention, where some blocks have that instead; None: none has.
        norm: final norm.
        head: output projection (may be tied to ``embed``).
        embed: token embedding.
        embed_scale: of a configuration, by how much the model multiplies a row of the embedding matrix before it enters block 0
            (Gemma: ``√hidden_size``); None: not at all.
        activation: the key of the configuration that names the MLP's activation.
        overwrites_mlp_output: the block adds to what ``mlp_out`` has put out, in place, so that whoever captures it must copy it.
        defaults: what transformers takes where a configuration is silent, of sizes, windows and positions.
        positions_end: positions are learnt or tabulated: no row can be longer than the table.
        windows: of a configuration, how many tokens each block sees (itself included; None: all before it); None: as
            ``sliding_window`` and ``layer_types`` say (:func:`raysweep.models.attention.typed_windows`).
        position_embed: the table of learnt positions, which is added to the embedding; None: there is none.
        form: what a block computes, exactly; None: only its own modules know, and they are run on an accelerator too.
        shares_prefixes: whether rows that begin alike may be computed as one sequence, with a mask, and give what each gives alone;
            not so where a token's state is more than attention's keys and values (linear attention) or where tokens of a batch
            compete (experts with a capacity).
        part_of: ``model_type`` of models that have more parts (one to see with), of which this is the language model, and is loaded
            alone; empty: of none.
        renamed: what the language model's weights are called there, as patterns, and here; transformers' own renaming goes before.
    """

    model_type: str
    body: str
    blocks: str
    block: str
    mlp: str
    mlp_in: tuple[str, ...]
    fused_gate: bool = False
    mlp_out: str
    experts: str | None = None
    mlp_out_norm: str | None = None
    attn_out: str
    linear_attn_out: str | None = None
    norm: str
    head: str
    embed: str
    embed_scale: Callable[[PretrainedConfig], float] | None = None
    activation: str = "hidden_act"
    overwrites_mlp_output: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    positions_end: bool = False
    windows: Callable[[object], tuple[int | None, ...]] | None = None

    position_embed: str | None = None
    form: BlockForm | None = None
    shares_prefixes: bool = True
    part_of: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def gated(self) -> bool:
        """Whether an MLP multiplies its values by a gate."""
        return self.fused_gate or len(self.mlp_in) == 2

    @property
    def lacks(self) -> dict[str, str]:
        """Return what an editor may need (``BaseEditor.needs``) and cannot have in models of this family, with the reason."""
        found = {}
        if self.experts is not None:
            found["dense_mlp"] = (
                "each token chooses between experts, so there is no linear map that makes the MLP's output"
            )
        if self.mlp_out_norm is not None:
            found["plain_mlp_output"] = (
                "the MLP's output is normed before it is added to the stream, so what is missing in the stream is no change of it"
            )
        return found

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
            # the attention has no field of its own: it is the module that holds this map
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
        # mlp_out reads something else, the key, so only the first maps go by the MLP's name
        shares = bool(number) and any(first.format(number) == module for first in self.mlp_in)
        return self.mlp.format(number) if shares else module


# as texts, so that listing families imports none of them (decision 008)
LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "falcon": "raysweep.models.layouts.falcon:LAYOUT",
        "gemma3_text": "raysweep.models.layouts.gemma3:LAYOUT",
        "gpt2": "raysweep.models.layouts.gpt2:LAYOUT",
        "gpt_oss": "raysweep.models.layouts.gpt_oss:LAYOUT",
        "gpt_neox": "raysweep.models.layouts.gpt_neox:LAYOUT",
        "gptj": "raysweep.models.layouts.gptj:LAYOUT",
        "llama": "raysweep.models.layouts.llama:LAYOUT",
        "mistral": "raysweep.models.layouts.mistral:LAYOUT",
        "olmo": "raysweep.models.layouts.olmo:LAYOUT",
        "olmo2": "raysweep.models.layouts.olmo2:LAYOUT",
        "phi": "raysweep.models.layouts.phi:LAYOUT",
        "phi3": "raysweep.models.layouts.phi3:LAYOUT",
        "qwen2": "raysweep.models.layouts.qwen2:LAYOUT",
        "qwen3": "raysweep.models.layouts.qwen3:LAYOUT",
        "qwen3_5_text": "raysweep.models.layouts.qwen3_5:LAYOUT",
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
