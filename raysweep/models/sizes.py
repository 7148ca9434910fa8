"""Sizes of models from their ``config.json``, without torch: for estimates, never for numerics.

A decoder of ``L`` blocks, MLPs of width ``m``, on a stream of width ``d`` has about ``L (2 d (q + kv) + 2 d m) + V d`` weights
(``3 d m`` with a gate, ``2 V d`` where the head is not the embedding); ``q`` and ``kv`` are the widths of all queries and of all
keys, ``V`` is the vocabulary. For a model by name see :func:`raysweep.models.sources.catalogue.sizes_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raysweep.models.layout import LAYOUTS

COPY_LIMIT = 4 << 30  # bytes; larger models are loaded again for the next trial instead of restored from a second copy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder.

    Attributes:
        hidden: width of the residual stream; ``d_out`` of a value matrix.
        mlp_width: width inside an MLP; ``d_in`` of a value matrix.
        layers: number of blocks.
        vocab: number of tokens.
        q_width: width of the queries of all heads.
        kv_width: width of the keys of all heads (and of the values).
        gated: whether an MLP has two first linear maps.
        tied: whether the output projection is the token embedding.
        positions: learnt positions; 0 = none.
        heads: of the queries in a block; 0 = not told.
        experts: MLPs of a block.
    """

    hidden: int
    mlp_width: int
    layers: int
    vocab: int
    q_width: int
    kv_width: int
    gated: bool
    tied: bool
    positions: int = 0
    heads: int = 0
    experts: int = 1

    @property
    def parameters(self) -> int:
        """About how many numbers the weights are; biases and norms are left out."""
        # Q and O, K and V
        attention = 2 * self.hidden * (self.q_width + self.kv_width)
        mlp = self.experts * (3 if self.gated else 2) * self.hidden * self.mlp_width
        ends = (1 if self.tied else 2) * self.vocab + self.positions
        return self.layers * (attention + mlp) + ends * self.hidden


def size_from_config(config: Mapping[str, object]) -> ModelSize | None:
    """Return the sizes in a Hugging Face *config*, or None if its architecture is not known.

    What the configuration does not say is what transformers takes then.
    """
    kind = str(config.get("model_type", ""))
    if kind not in LAYOUTS:
        return None
    layout = LAYOUTS.get(kind)
    # the file wins over the defaults
    config = {**layout.defaults, **config}
    try:
        hidden = _first(config, "hidden_size", "n_embd")
        heads = _first(config, "num_attention_heads", "n_head")
        # some families (Qwen 3, Gemma) have heads whose widths don't add up to the stream
        head = _whole(config.get("head_dim") or hidden // heads)
        return ModelSize(
            hidden=hidden,
            mlp_width=_first(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden),
            layers=_first(config, "num_hidden_layers", "n_layer"),
            vocab=_first(config, "vocab_size"),
            q_width=heads * head,
            kv_width=_key_heads(config, heads) * head,
            gated=layout.gated,
            tied=bool(config.get("tie_word_embeddings", False)),
            positions=_whole(config.get("n_positions", 0)) if "n_embd" in config and "rotary_dim" not in config else 0,
            heads=heads,
            experts=1 if layout.experts is None else _first(config, layout.experts),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _key_heads(config: Mapping[str, object], heads: int) -> int:
    """Return how many heads of keys there are for *heads* of queries."""
    # Falcon: one for all, unless it is of the newer kind, which names their number
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return _whole(config.get("num_key_value_heads") or config.get("num_kv_heads") or heads)


def positions_of(config: Mapping[str, object]) -> int:
    """Return the longest row in tokens that a model of *config* was made for; 0 = not known.

    Learnt positions end there. Rotary ones do not, but beyond it a model was never trained, and its answers mean nothing.
    """
    return _whole(config.get("max_position_embeddings") or config.get("n_positions") or 0)


def _first(config: Mapping[str, object], *names: str, default: int | None = None) -> int:
    """Return the first of the entries *names* that *config* has."""
    value = next((config[n] for n in names if config.get(n) is not None), default)
    if value is None:
        raise KeyError(names[0])
    return _whole(value)


def _whole(value: object) -> int:
    """Return an entry of a configuration as a whole number; a list or a table is none."""
    if not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is no number")
    return int(value)
