"""What a configuration says about attention: how far back each block looks, and how long a row may be. No torch.

All of it reads a Hugging Face configuration, or the mapping that ``config.json`` holds, with transformers' defaults for what is not
there. What raysweep does not model is refused here, by name, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of a block's kind of attention
_NEVER = ("gpt2", "gptj", "llama")  # their code in transformers looks at no window, whatever the configuration says
_QWEN = ("qwen2", "qwen3")
_TABULATED = ("gpt2", "gptj")  # positions end
_CONTEXT = {"mistral": 131_072, **dict.fromkeys(_QWEN, 32_768)}  # transformers' max_position_embeddings


def windows(config: object) -> tuple[int | None, ...]:
    """Return, for each block, how many tokens a token sees (itself included); None: all before it.

    Raises:
        ModelError: a block attends in a way that is not modelled.
    """
    kind = str(_get(config, "model_type", ""))
    count = int(_get(config, "num_hidden_layers", _get(config, "n_layer", 0)))
    # these three classes have no window, so a stray sliding_window in the file must not be believed
    if kind in _NEVER:
        return (None,) * count
    window = _get(config, "sliding_window", 4096 if kind in ("mistral", *_QWEN) else None)
    if kind == "mistral":
        return (window,) * count
    # Qwen files carry a window that counts only together with this switch
    if kind in _QWEN and not _get(config, "use_sliding_window", False):
        window = None
    types = _get(config, "layer_types", None)
    # older files name no kinds: blocks below max_window_layers are full, as transformers reads it
    if types is None and kind in _QWEN:
        full = int(_get(config, "max_window_layers", 28))
        return tuple(None if window is None or i < full else window for i in range(count))
    if types is None and window is None:
        return (None,) * count
    # a kind that is not one of the two would be given the wrong mask without a word
    unknown = sorted({t for t in types or ("sliding_window",) if t not in (FULL, SLIDING)})
    if unknown or (window is None and SLIDING in types):
        kinds = ", ".join(unknown) or f"{SLIDING} without a window"
        raise ModelError(
            f"model_type '{kind}': attention of kind {kinds} is not modelled",
            hint=f"known: {FULL}, {SLIDING} with sliding_window; for another kind add its mask to raysweep/models/attention.py",
        )
    return tuple(window if t == SLIDING else None for t in types)


def row_limit(config: object) -> tuple[int, str] | None:
    """Return the longest row whose numbers depend on that row alone, and why longer ones do not; None: every row does.

    With ``rope_type: dynamic`` or ``longrope`` the angles of *all* tokens change once the longest row of a forward pass is
    longer than the original context, so the numbers of a row would depend on what it is packed with.
    """
    # transformers 5 calls it rope_parameters, older files rope_scaling; some nest one table per kind of attention
    rope = _get(config, "rope_parameters", None) or _get(config, "rope_scaling", None) or {}
    for each in (rope, *(v for v in rope.values() if isinstance(v, Mapping))):
        kind = str(each.get("rope_type") or each.get("type") or "default")
        longest = _get(config, "max_position_embeddings", _CONTEXT.get(str(_get(config, "model_type", "")), 2048))
        if kind == "longrope":
            inside = each.get("original_max_position_embeddings", longest)
            longest = _get(config, "original_max_position_embeddings", None) or inside
        if "dynamic" in kind or kind == "longrope":
            return int(
                longest
            ), f"rope_type '{kind}' changes the angles of every token of a batch once one row is longer"
    return None


def is_limited(config: object) -> bool:
    """Tell whether rows may be too long for the model at all."""
    return _get(config, "model_type", "") in _TABULATED or row_limit(config) is not None


def check_row(config: object, length: int) -> None:
    """Raise :class:`ModelError` if a row of *length* tokens is longer than the model allows.

    That is :func:`row_limit`, and where positions are learnt or tabulated, their number.
    """
    limit = row_limit(config)
    # learnt and tabulated positions end: transformers would fail with an index error deep inside
    if limit is None and _get(config, "model_type", "") in _TABULATED:
        limit = int(_get(config, "n_positions", 1024)), "the model has no more positions"
    if limit is not None and length > limit[0]:
        raise ModelError(
            f"a row of {length} tokens is longer than {limit[0]}: {limit[1]}",
            hint="use shorter records (or texts: moments.width), or a model made for longer ones",
        )


def _get(config: object, key: str, default: object) -> Any:
    """Return a value of a configuration or of a mapping."""
    if isinstance(config, Mapping):
        return config.get(key, default)
    return getattr(config, key, default)
