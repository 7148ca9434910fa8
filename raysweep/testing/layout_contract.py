"""The exam every layout sits: its names resolve, and each part does what the layout says it does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from raysweep.models.hooks import capture, first
from raysweep.models.layout import Layout
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import check_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VOCABULARY, _WIDTH, _HIDDEN = 40, 16, 24
_LLAMA: Mapping[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
}
_GPT: Mapping[str, Any] = {"n_embd": _WIDTH, "n_inner": _HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": 32}
_SMALL: Mapping[str, Mapping[str, Any]] = {"gpt2": _GPT, "gptj": {**_GPT, "rotary_dim": 4}}


def tiny_model(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():  # biases and norms too, so that none is invisible
            torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.1)
    return cast("PreTrainedModel", model.eval().requires_grad_(False))


def check_layout_contract(layout: Layout, module: PreTrainedModel) -> None:
    """Raise ``AssertionError`` unless *layout* describes *module*.

    Promises examined: every name resolves; ``mlp_out`` maps the key to the value in the orientation that
    :meth:`LanguageModel.logical` says; MLP and attention write into the block's output; blocks follow each other;
    ``norm`` ends the body; ``head`` turns its output into logits; ``embed`` begins it.
    """
    check_layout(module, layout)
    lm = LanguageModel(module=module, tokenizer=cast(Any, None), layout=layout)
    ids = torch.arange(2, 14).reshape(2, 6)
    _check_maps(lm, ids)
    _check_stream(lm, ids)
    for part in (layout.mlp, layout.mlp_out, layout.attn_out):
        _check_writes(lm, ids, part.format(lm.n_blocks - 1))


def _check_maps(lm: LanguageModel, ids: Tensor) -> None:
    """``W k + b = v`` at ``mlp_out`` and ``attn_out``, and ``mlp_in`` reads the width that ``mlp_out`` writes."""
    for block in range(lm.n_blocks):
        for name in (lm.layout.mlp_out.format(block), lm.layout.attn_out.format(block)):
            weight = lm.logical(f"{name}.weight")
            with capture(lm, [(name, "input"), (name, "output")]) as seen, torch.no_grad():
                lm.module(ids)
            bias = getattr(lm.part(name), "bias", None)
            value = seen[name, "input"] @ weight.T + (0.0 if bias is None else bias)
            torch.testing.assert_close(value, seen[name, "output"], msg=f"{name}: W k + b is not its output")
        width, hidden = lm.logical(f"{lm.layout.mlp_out.format(block)}.weight").shape
        assert width != hidden, "the examined model must tell d_in and d_out apart"
        for part in lm.layout.mlp_in:
            shape = lm.logical(f"{part.format(block)}.weight").shape
            assert shape == (hidden, width), f"{part.format(block)}: shape {tuple(shape)}, wanted {(hidden, width)}"


def _check_stream(lm: LanguageModel, ids: Tensor) -> None:
    """The embedding enters block 0, each block's output enters the next, norm and head end the model."""
    blocks = [lm.layout.block.format(i) for i in range(lm.n_blocks)]
    sides = [(name, side) for name in blocks for side in ("input", "output")]
    ends = [(lm.layout.embed, "output"), (lm.layout.norm, "output"), (lm.layout.head, "input")]
    with capture(lm, cast(Any, [*sides, *ends])) as seen, torch.no_grad():
        logits = lm.module(ids).logits
        body = first(lm.part(lm.layout.body)(ids)[0])
        head = lm.part(lm.layout.head)(body)
        norm = lm.part(lm.layout.norm)(seen[blocks[-1], "output"])
    for before, after in pairwise(blocks):
        assert torch.equal(seen[before, "output"], seen[after, "input"]), f"{before} does not feed {after}"
    torch.testing.assert_close(norm, body, msg="norm of the last block is not the body's output")
    torch.testing.assert_close(head, logits, msg="head of the body's output is not the logits")
    assert lm.weight(f"{lm.layout.embed}.weight").shape[0] == lm.module.config.vocab_size
    assert torch.equal(seen[lm.layout.embed, "output"], lm.weight(f"{lm.layout.embed}.weight")[ids])


def _check_writes(lm: LanguageModel, ids: Tensor, name: str) -> None:
    """What is added to the output of *name* in the last block reaches the block's output."""
    last = lm.layout.block.format(lm.n_blocks - 1)
    shift = torch.linspace(-1.0, 1.0, lm.weight(f"{lm.layout.embed}.weight").shape[1])

    def run() -> Tensor:
        with capture(lm, [(last, "output")]) as seen, torch.no_grad():
            lm.module(ids)
        return seen[last, "output"]

    plain = run()
    handle = lm.part(name).register_forward_hook(
        lambda module, args, output: (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
    )
    try:
        moved = run()
    finally:
        handle.remove()
    if name == lm.layout.attn_out.format(lm.n_blocks - 1):  # the MLP may read it too
        assert not torch.allclose(moved, plain), f"{name} does not write into the residual stream"
    else:
        torch.testing.assert_close(moved - plain, shift.expand_as(plain), atol=1e-5, rtol=1e-4)
