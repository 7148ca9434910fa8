"""The exam every layout sits: its names resolve, and each part does what the layout says it does.

A failure is a sentence: the field of the layout, what was found, and what the layout made one expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from raysweep.models.forward import blocks, device_blocks, fused, prefix_tree
from raysweep.models.forward.given import Given
from raysweep.models.hooks import Side, capture, first
from raysweep.models.layout import Layout
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import check_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# all different, so that axes that change places do not fit
_VOCABULARY, _WIDTH, _HIDDEN = 40, 16, 24
_LLAMA: Mapping[str, object] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    # fewer than query heads, so that grouped queries are examined too
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
}
_GPT: Mapping[str, object] = {"n_embd": _WIDTH, "n_inner": _HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": 32}
_FALCON = {key: value for key, value in _LLAMA.items() if key not in ("intermediate_size", "head_dim")}
_SMALL: Mapping[str, Mapping[str, object]] = {
    "falcon": {**_FALCON, "ffn_hidden_size": _HIDDEN},
    # Blocks of both kinds, and a window that is shorter than the rows of the contract.
    "gemma3_text": {
        **_LLAMA,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": _GPT,
    "gpt_oss": {
        **_LLAMA,
        "sliding_window": 4,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 4,
            "truncate": False,
        },
    },
    "qwen3_5_text": {
        **_LLAMA,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 4),
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
}


def tiny_model(model_type: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a random three-block model of a family: width 16, MLP 24 wide, 40 tokens, fp32, eval mode.

    Args:
        model_type: as in ``config.model_type``; families without a recipe of their own get Llama's names.
        seed: of the weights; the global generator is left as it was.
        changes: configuration values that replace or add to the recipe's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    recipe = {"vocab_size": _VOCABULARY, **ids, **_SMALL.get(model_type, _LLAMA), **changes}
    config = AutoConfig.for_model(model_type, **recipe)
    # weights are drawn on the CPU: no accelerator's generator is moved, nor asked for
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():  # biases and norms too, so that none is invisible
            torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.1)
    return cast("PreTrainedModel", model.eval().requires_grad_(False))


def check_layout_contract(layout: Layout, module: PreTrainedModel) -> None:
    """Examine whether *layout* describes *module*; ``docs/add_an_architecture.md`` explains each promise.

    1. Every name resolves, in every block.
    2. ``mlp_out`` and ``attn_out`` are linear maps: ``W k + b`` is what they put out, with ``W`` in the orientation that
       :meth:`LanguageModel.logical` says; ``mlp_in`` has the widths of ``mlp_out`` the other way round.
    3. ``embed`` begins the residual stream: what enters block 0 is its row times ``embed_scale``, up to something that depends on
       positions only.
    4. Each block's output enters the next; ``norm`` of the last block's is what ``body`` puts out; ``head`` of that is the logits.
    5. What is added to the output of ``mlp_out`` or ``mlp`` is added to the block's output, through ``mlp_out_norm`` where there is
       one; that of ``attn_out`` reaches it.
    6. A forward pass can be resumed at any block (:func:`raysweep.models.forward.blocks.run`) and ends in the same logits.
    7. ``form``, if there is one, and ``position_embed`` say what the blocks compute: from their parameters come the same logits.

    Args:
        layout: what is examined.
        module: a small model of the family, fp32, whose stream and MLP differ in width (:func:`tiny_model`).

    Raises:
        ModelError: a name of the layout does not resolve.
        AssertionError: a promise is broken; the message says what was found, and what the layout made one expect.
    """
    check_layout(module, layout)
    lm = LanguageModel(module=module, tokenizer=cast("PreTrainedTokenizerBase", None), layout=layout)
    # [2, 6], without 0 and 1: some models treat the ids of BOS, end and padding apart
    ids = torch.arange(2, 14, device=lm.device).reshape(2, 6)
    _check_maps(lm, ids)
    _check_embedding(lm, ids)
    _check_stream(lm, ids)
    for field in ("mlp", "mlp_out", "attn_out"):
        if field != "mlp_out" or layout.experts is None:
            _check_writes(lm, ids, field)
    _check_resuming(lm, ids)
    _check_form(lm, ids)


def _check_maps(lm: LanguageModel, ids: Tensor) -> None:
    """``W k + b = v`` at ``mlp_out`` and ``attn_out``, and ``mlp_in`` reads the width that ``mlp_out`` writes."""
    layout = lm.layout
    for block in range(lm.n_blocks):
        maps = {"attn_out": lm.attn_out(block)}
        if layout.experts is None:
            maps["mlp_out"] = layout.mlp_out.format(block)
        for field, name in maps.items():
            weight = lm.logical(f"{name}.weight")
            with capture(lm, [(name, "input"), (name, "output")]) as seen, torch.no_grad():
                lm.module(ids)
            key, value = seen[name, "input"], seen[name, "output"]
            d_out, d_in = weight.shape
            _require(
                (key.shape[-1], value.shape[-1]) == (d_in, d_out),
                f"{field}: '{name}' maps {key.shape[-1]} numbers to {value.shape[-1]}, but its weight read as [d_out, d_in] maps "
                f"{d_in} to {d_out}: LanguageModel.transposed (raysweep/models/lm.py) must know this kind of module",
            )
            bias = getattr(lm.part(name), "bias", None)
            product = key @ weight.T + (0.0 if bias is None else bias)
            _require_close(product, value, f"{field}: W k + b of '{name}' is not what it puts out; it is no linear map")
        if layout.experts is not None:  # which no linear map makes the output of
            continue
        width, hidden = lm.logical(f"{layout.mlp_out.format(block)}.weight").shape
        _require(
            width != hidden,
            f"mlp_out: the weight of '{layout.mlp_out.format(block)}' is square ({width} × {hidden}), so that nothing tells d_in "
            "from d_out: it is not the last map of the MLP, or the examined model's MLP must be given another width",
        )
        for part in layout.mlp_in:
            shape = tuple(lm.logical(f"{part.format(block)}.weight").shape)
            rows = 2 * hidden if layout.fused_gate else hidden
            _require(
                shape == (rows, width),
                f"mlp_in: the weight of '{part.format(block)}' has shape {shape}; a first map of this MLP has {(rows, width)}, "
                f"the shape of mlp_out turned round{', twice as high (fused_gate)' if layout.fused_gate else ''}",
            )


def _check_embedding(lm: LanguageModel, ids: Tensor) -> None:
    """What enters block 0 is ``embed_scale`` times the embedding's row, plus what depends on positions only."""
    layout, first_block = lm.layout, lm.layout.block.format(0)
    matrix = lm.weight(f"{layout.embed}.weight").detach()
    vocabulary = lm.module.config.vocab_size
    _require(
        len(matrix) == vocabulary,
        f"embed: '{layout.embed}' has {len(matrix)} rows, the vocabulary has {vocabulary} tokens",
    )

    def entering(tokens: Tensor) -> Tensor:
        with capture(lm, [(first_block, "input")]) as seen, torch.no_grad():
            lm.module(tokens)
        return seen[first_block, "input"]

    # other tokens at the same positions: in the difference, learnt positions cancel
    others = ids.flip(0, 1)
    moved, rows = entering(ids) - entering(others), matrix[ids] - matrix[others]
    measured = float((moved * rows).sum() / (rows * rows).sum())  # least squares: moved ≈ measured · rows
    _require_close(
        moved,
        measured * rows,
        f"embed: what enters block 0 is no multiple of the rows of '{layout.embed}' (plus what depends on positions only)",
    )
    scale = 1.0 if layout.embed_scale is None else layout.embed_scale(lm.module.config)
    said = "embed_scale is not set, which says 1" if layout.embed_scale is None else f"embed_scale says {scale:.6g}"
    _require(
        # far above what fp32 rounds off, far below any other scale that a family might have
        abs(measured - scale) <= 1e-4 * abs(scale),
        f"embed_scale: what enters block 0 is {measured:.6g} times the row of '{layout.embed}', and {said}: give the layout a "
        f"function of the configuration that returns {measured:.6g} for this model",
    )


def _check_stream(lm: LanguageModel, ids: Tensor) -> None:
    """Each block's output enters the next, norm and head end the model."""
    layout = lm.layout
    names = [layout.block.format(i) for i in range(lm.n_blocks)]
    sides: list[tuple[str, Side]] = [(name, side) for name in names for side in ("input", "output")]
    with capture(lm, sides) as seen, torch.no_grad():
        logits = lm.module(ids).logits
        body = first(lm.part(layout.body)(ids)[0])
        head = lm.part(layout.head)(body)
        norm = lm.part(layout.norm)(seen[names[-1], "output"])
    for before, after in pairwise(names):
        sentence = f"block: what leaves '{before}' is not what enters '{after}'"
        # nothing lies between two blocks, so not a bit may differ
        _require_close(seen[before, "output"], seen[after, "input"], sentence, atol=0.0, rtol=0.0)
    _require_close(
        norm, body, f"norm: '{layout.norm}' of what leaves the last block is not what '{layout.body}' puts out"
    )
    _require_close(head, logits, f"head: '{layout.head}' of what '{layout.body}' puts out is not the model's logits")


def _check_writes(lm: LanguageModel, ids: Tensor, field: str) -> None:
    """What is added to the output of a part in the last block reaches the block's output."""
    block = lm.n_blocks - 1
    name = lm.attn_out(block) if field == "attn_out" else getattr(lm.layout, field).format(block)
    last = lm.layout.block.format(block)
    # not the same everywhere: a norm that takes off the mean would hide that
    shift = torch.linspace(-1.0, 1.0, lm.weight(f"{lm.layout.embed}.weight").shape[1], device=lm.device)

    def leaving() -> tuple[Tensor, Tensor]:
        with capture(lm, [(last, "output"), (name, "output")]) as seen, torch.no_grad():
            lm.module(ids)
        return seen[last, "output"], seen[name, "output"]

    plain, output = leaving()
    handle = lm.part(name).register_forward_hook(
        lambda module, args, output: (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
    )
    try:
        shifted, _ = leaving()
    finally:
        handle.remove()
    if field == "attn_out":  # the MLP may read it too, so how far the output moves is not known
        reaches = not torch.allclose(shifted, plain)
        _require(reaches, f"attn_out: a shift of what '{name}' puts out does not reach what '{last}' puts out")
    else:
        norm = lm.layout.mlp_out_norm
        through = "" if norm is None else f", through '{norm.format(block)}' (mlp_out_norm)"
        sentence = f"{field}: a shift of what '{name}' puts out is not added to what '{last}' puts out{through}"
        with torch.no_grad():
            expected = lm.to_stream(block, output + shift) - lm.to_stream(block, output)
        _require_close(shifted - plain, expected, sentence, atol=1e-5, rtol=1e-4)


def _check_resuming(lm: LanguageModel, ids: Tensor) -> None:
    """From what enters a block, the blocks from there on make the logits of the whole model."""
    names = [lm.layout.block.format(i) for i in range(lm.n_blocks)]
    with capture(lm, [(name, "input") for name in names]) as seen, torch.no_grad():
        logits = lm.module(ids).logits
    mask = torch.ones_like(ids)
    for number, name in enumerate(names):
        with torch.no_grad():
            resumed = blocks.logits(lm, blocks.run(lm, states=seen[name, "input"], mask=mask, first=number))
        sentence = f"block: the blocks from '{name}' on, run on what enters it, do not end in the model's logits"
        _require_close(resumed, logits, sentence)


def _check_form(lm: LanguageModel, ids: Tensor) -> None:
    """What the layout says of its blocks, computed from their parameters alone, makes the logits of the whole model."""
    form, n = lm.layout.form, ids.shape[1]
    # an inherited form that is of another class is not used
    if form is None or device_blocks.class_of(lm.part(lm.layout.block.format(0))) != form.block_class:
        return
    _require(
        device_blocks.supports(lm, 0),
        "form: a block holds parameters that it does not name, blocks differ in their windows, or the activation is not known",
    )
    positions = torch.arange(n, device=lm.device).expand(len(ids), -1)
    # [B, n, n]: each token sees itself and what is before it
    seen = torch.ones(len(ids), n, n, dtype=torch.bool, device=lm.device).tril()
    mask = prefix_tree.attention_mask(lm, seen, positions, positions)
    assert isinstance(mask, Tensor)
    with torch.no_grad():
        of_form = device_blocks.DeviceBlocks.prepare(lm, Given(0, positions, mask, [None] * lm.n_blocks))
        hidden = of_form(fused.entering(lm, ids, positions)).view(*ids.shape, -1)
        found, logits = blocks.logits(lm, hidden), lm.module(ids).logits
    sentence = "form: what is computed as it says (or what position_embed says enters block 0) does not end in the model's logits"
    _require_close(found, logits, sentence)


def _require(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)


def _require_close(value: Tensor, expected: Tensor, sentence: str, *, atol: float = 1e-5, rtol: float = 1.3e-6) -> None:
    """Raise ``AssertionError`` with *sentence* and the size of the difference unless the two are equal up to rounding."""
    _require(value.shape == expected.shape, f"{sentence} (shape {tuple(value.shape)} and not {tuple(expected.shape)})")
    far = float((value - expected).abs().max())
    largest = float(expected.abs().max())
    _require(
        torch.allclose(value, expected, atol=atol, rtol=rtol),
        f"{sentence} (they differ by up to {far:.3g}, of numbers up to {largest:.3g})",
    )
