"""What a configuration says about attention: how far back each block looks, and how long a row may be. No torch.

All of it reads a Hugging Face configuration, or the mapping that ``config.json`` holds, with transformers' defaults for what is not
there. What raysweep does not model is refused here, by name, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep.errors import ModelError
from raysweep.models.layout import LAYOUTS, Layout

# transformers' names of a block's kind of attention
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_ABSENT = object()


def windows(config: object, layout: Layout | None = None) -> tuple[int | None, ...]:
    """Return, for each block, how many tokens a token sees (itself included); None: all before it.

    The family's layout says how its configurations are read (``Layout.windows``): *layout*, or else the one in the table.

    Raises:
        ModelError: a block attends in a way that is not modelled.
    """
    layout = layout or _layout(config)
    rule = layout.windows if layout is not None and layout.windows is not None else typed_windows
    return rule(config)


def no_windows(config: object) -> tuple[int | None, ...]:
    """Of families whose code in transformers looks at no window: a stray ``sliding_window`` in the file must not be believed."""
    return (None,) * _blocks(config)


def equal_windows(config: object) -> tuple[int | None, ...]:
    """Of families with ``sliding_window`` in every block."""
    return (_get(config, "sliding_window", None),) * _blocks(config)


def switched_windows(config: object) -> tuple[int | None, ...]:
    """Of Qwen, whose files carry a window that counts only together with ``use_sliding_window``."""
    window = _get(config, "sliding_window", None) if _get(config, "use_sliding_window", False) else None
    if _get(config, "layer_types", None) is not None:
        return _by_type(config, window)
    # older files name no kinds: blocks below max_window_layers are full, as transformers reads it
    full = int(_get(config, "max_window_layers", 28))
    return tuple(None if window is None or i < full else window for i in range(_blocks(config)))


def rotary_only(config: object) -> tuple[int | None, ...]:
    """Of Falcon, whose older models add to scores by distance (ALiBi) instead of turning queries and keys.

    Raises:
        ModelError: ``alibi`` is set.
    """
    if _get(config, "alibi", False):
        raise ModelError(
            f"model_type '{_get(config, 'model_type', '')}': alibi: true is not modelled",
            hint="use a model with rotary positions (alibi: false)",
        )
    return no_windows(config)


def patterned_windows(config: object) -> tuple[int | None, ...]:
    """Of families whose files may leave the kinds out: then each so many blocks there is one that sees all.

    Raises:
        ModelError: tokens look ahead, logits are capped, or a kind is not modelled.
    """
    # what would change logits without a word
    for key in ("use_bidirectional_attention", "final_logit_softcapping", "attn_logit_softcapping"):
        if _get(config, key, None):
            raise ModelError(f"model_type '{_get(config, 'model_type', '')}': {key} is set, which is not modelled")
    if _get(config, "layer_types", None) is not None:
        return typed_windows(config)
    window, pattern = _get(config, "sliding_window", None), int(_get(config, "sliding_window_pattern", 1))
    return tuple(None if (i + 1) % pattern == 0 else window for i in range(_blocks(config)))


def full_or_linear(config: object) -> tuple[int | None, ...]:
    """Of hybrid families, in whose other blocks a state goes from token to token: none has a window.

    Raises:
        ModelError: a kind is neither.
    """
    types, kind = _get(config, "layer_types", None) or (), str(_get(config, "model_type", ""))
    _refuse_kinds(kind, {t for t in types if t not in (FULL, LINEAR)})
    return no_windows(config)


def typed_windows(config: object) -> tuple[int | None, ...]:
    """Of families that name the kind of each block's attention in ``layer_types``; without them, and without a window: full.

    Raises:
        ModelError: a kind is not modelled.
    """
    return _by_type(config, _get(config, "sliding_window", None))


def _by_type(config: object, window: int | None) -> tuple[int | None, ...]:
    types = _get(config, "layer_types", None)
    if types is None and window is None:
        return no_windows(config)
    # a kind that is not one of the two would be given the wrong mask without a word
    unknown = {str(t) for t in types or ("sliding_window",) if t not in (FULL, SLIDING)}
    if window is None and SLIDING in (types or ()) and not unknown:
        unknown = {f"{SLIDING} without a window"}
    _refuse_kinds(str(_get(config, "model_type", "")), unknown)
    return tuple(window if t == SLIDING else None for t in types)


def _refuse_kinds(model_type: str, unknown: set[str]) -> None:
    if unknown:
        raise ModelError(
            f"model_type '{model_type}': attention of kind {', '.join(sorted(unknown))} is not modelled",
            hint=f"known: {FULL}, {SLIDING} with sliding_window; for another kind add its mask to raysweep/models/attention.py",
        )


def row_limit(config: object) -> tuple[int, str] | None:
    """Return the longest row whose numbers depend on that row alone, and why longer ones do not; None: every row does.

    With ``rope_type: dynamic`` or ``longrope`` the angles of *all* tokens change once the longest row of a forward pass is
    longer than the original context, so the numbers of a row would depend on what it is packed with.
    """
    # transformers 5 calls it rope_parameters, older files rope_scaling; some nest one table per kind of attention
    rope = _get(config, "rope_parameters", None) or _get(config, "rope_scaling", None) or {}
    for each in (rope, *(v for v in rope.values() if isinstance(v, Mapping))):
        kind = str(each.get("rope_type") or each.get("type") or "default")
        longest = _get(config, "max_position_embeddings", 2048)
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
    return _positions_end(config) or row_limit(config) is not None


def check_row(config: object, length: int) -> None:
    """Raise :class:`ModelError` if a row of *length* tokens is longer than the model allows.

    That is :func:`row_limit`, and where positions are learnt or tabulated, their number.
    """
    limit = row_limit(config)
    # learnt and tabulated positions end: transformers would fail with an index error deep inside
    if limit is None and _positions_end(config):
        limit = int(_get(config, "n_positions", 1024)), "the model has no more positions"
    if limit is not None and length > limit[0]:
        raise ModelError(
            f"a row of {length} tokens is longer than {limit[0]}: {limit[1]}",
            hint="use shorter records (or texts: moments.width), or a model made for longer ones",
        )


def _layout(config: object) -> Layout | None:
    kind = str(_value(config, "model_type") or "")
    return LAYOUTS.get(kind) if kind in LAYOUTS else None


def _positions_end(config: object) -> bool:
    layout = _layout(config)
    return layout is not None and layout.positions_end


def _blocks(config: object) -> int:
    return int(_get(config, "num_hidden_layers", _get(config, "n_layer", 0)))


def _get(config: object, key: str, default: object) -> Any:
    """Return a value of a configuration or of a mapping; where it is silent, what transformers takes, or else *default*."""
    value = _value(config, key)
    if value is not _ABSENT:
        return value
    layout = _layout(config) if key != "model_type" else None
    return layout.defaults.get(key, default) if layout is not None else default


def _value(config: object, key: str) -> Any:
    return config.get(key, _ABSENT) if isinstance(config, Mapping) else getattr(config, key, _ABSENT)
