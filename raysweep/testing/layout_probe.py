"""A layout for a family that has none yet: proposed from what a model's parts are called, how large they are, and what they do.

Nothing of the model but its ``config.json`` is needed. Names and sizes are those of a small random model of the same
configuration, and what no name tells is measured on it: by how much embeddings are multiplied, how far back a block looks, whether
an MLP's output is normed before it is added to the stream, whether rows that begin alike can be computed as one. Whatever was
guessed is told, and the layout contract (:mod:`raysweep.testing.layout_contract`) says whether the whole is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from raysweep.errors import ModelError
from raysweep.models import attention
from raysweep.models.forward import device_blocks
from raysweep.models.layout import BlockForm, Layout, NormKind
from raysweep.models.layouts import gpt2, llama
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.folder import check_config_there, read_header, read_json
from raysweep.testing.layout_contract import check_layout_contract, tiny_model
from raysweep.testing.layout_measures import Proposal, measure
from raysweep.testing.layout_parts import EXPERTS, Parts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 4  # tokens, of the small model: shorter than the rows that are measured
_SIZES = (
    *("hidden_size", "n_embd", "intermediate_size", "ffn_hidden_size", "num_hidden_layers", "n_layer", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "vocab_size", "n_positions", "rotary_dim", *EXPERTS),
    *(
        "max_position_embeddings",
        "original_max_position_embeddings",
        "sliding_window",
        "multi_query",
        "tie_word_embeddings",
    ),
)
# What blocks may compute, by the module that says so.
FORMS: Mapping[str, BlockForm] = {"llama": llama.FORM, "gpt2": gpt2.FORM}


def propose_for(folder: Path) -> Proposal:
    """Return a layout for the model in *folder*; names of its weights are compared with the layout's, if there are any.

    Raises:
        ModelError: there is no readable ``config.json``, it needs code of its own, or see :func:`propose`.
    """
    from transformers import AutoConfig

    check_config_there(folder)
    kind = read_json(folder / "config.json").get("model_type")
    try:
        whole = AutoConfig.from_pretrained(folder)
        proposal = propose(whole.get_text_config())
    except ValueError as error:  # transformers' own: a type that it does not know, code that nobody trusted
        raise ModelError(
            f"{folder / 'config.json'}: transformers makes no model of type '{kind}': {error}",
            hint="a newer transformers may know it; for code that comes with the weights write the layout by hand",
        ) from error
    if whole.get_text_config() is not whole:
        proposal.layout = replace(proposal.layout, part_of=str(whole.model_type))
        proposal.unsure.append(
            "part_of: loading the language model alone was not tried; renamed may have to say what weights are called"
        )
    # of the files only their headers are read
    names = {f".{name}" for file in sorted(folder.glob("*.safetensors")) for name in read_header(file)}
    layout = proposal.layout
    for module in (*layout.mlp_in, layout.mlp_out, layout.embed) if names else ():
        # checkpoints may leave the model's own prefix out
        wanted = module.format(0).partition(".")[2]
        if not any(f".{wanted}." in name for name in names):
            proposal.unsure.append(f"weights: the files have no tensor of '{module.format(0)}'")
    return proposal


def propose(config: PretrainedConfig) -> Proposal:
    """Return a layout for models of *config*.

    Raises:
        ModelError: transformers makes no language model of it, or it has no blocks with an MLP that can be told apart.
    """
    module = small(config)
    parts, unsure = Parts.of(module), list[str]()
    layout = parts.layout(str(config.model_type), unsure)
    proposal = Proposal(replace(layout, defaults=_defaults(config)), unsure=unsure)
    lm = LanguageModel(module=module, tokenizer=cast("PreTrainedTokenizerBase", None), layout=proposal.layout)
    measure(lm, parts, proposal)
    try:
        check_layout_contract(proposal.layout, module)
    except (AssertionError, ModelError) as error:
        proposal.broken = str(error)
        return proposal
    # In one form all blocks see equally far.
    proposal.layout = _form(small(config, windowed=False), proposal)
    return proposal


def small(config: PretrainedConfig, *, windowed: bool = True) -> PreTrainedModel:
    """Return a small random model of *config*: what is no size stays as it is there.

    Args:
        config: of a large one.
        windowed: switch windows on where the family knows of them, so that the rule for them can be told.

    Raises:
        ModelError: it cannot be made.
    """
    sizes = {"num_hidden_layers", "layer_types", "sliding_window", "rope_parameters", "max_window_layers", *_SIZES}
    # what a file may leave out, the family's own defaults fill in again
    tree = config.to_diff_dict()
    drop = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype")
    # A number may be a size by another name, a list one entry for each block: the small model has its own.
    kept: dict[str, Any] = {
        k: v
        for k, v in tree.items()
        if k not in sizes and k not in drop and (v is None or isinstance(v, bool | str | float))
    }
    changes: dict[str, Any] = {"max_position_embeddings": 32}
    types = getattr(config, "layer_types", None)
    if not windowed:
        changes["sliding_window"] = None
        changes |= {} if types is None else {"layer_types": [attention.FULL] * 3}
    elif hasattr(config, "use_sliding_window"):
        # One block without a window, two with one.
        changes |= {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}
    elif hasattr(config, "sliding_window"):
        changes["sliding_window"] = WINDOW
    if windowed and types and "use_sliding_window" not in changes:
        changes["layer_types"] = _three_of(types)
    try:
        return tiny_model(str(config.model_type), **(kept | changes))
    except Exception as error:  # transformers' own, of any kind
        raise ModelError(
            f"no small model of type '{config.model_type}' could be made: {error}",
            hint="give the names of its sizes in _SMALL of raysweep/testing/layout_contract.py",
        ) from error


def _three_of(kinds: list[str]) -> list[str]:
    """Return a kind for each of three blocks, so that each that there is comes up."""
    distinct = list(dict.fromkeys(kinds))
    return [*distinct, *distinct, *distinct][:3]


def _defaults(config: PretrainedConfig) -> dict[str, object]:
    """Return what transformers takes where a file of this family is silent, of sizes and windows."""
    # The class knows what an instance may have dropped (a window that is switched off).
    silent, kind = type(config)(), type(config)
    said = {key: getattr(kind, key, None) for key in _SIZES} | {
        key: getattr(silent, key, None) for key in silent.to_dict() if key in _SIZES
    }
    found = {key: value if value is not None else getattr(kind, key, None) for key, value in said.items()}
    # families whose kinds go round say how many blocks a round has
    kinds = list(getattr(silent, "layer_types", None) or ())
    if attention.SLIDING in kinds and attention.FULL in kinds:
        found["sliding_window_pattern"] = kinds.index(attention.FULL) + 1
    return {key: value for key, value in found.items() if isinstance(value, int | float | bool)}


def _form(module: PreTrainedModel, proposal: Proposal) -> Layout:
    """Look for a known form whose parts the blocks of *module* have, with the kind of norm that makes the model's logits."""
    layout = proposal.layout
    # no form says any of these
    if layout.experts is not None or layout.mlp_out_norm is not None or layout.linear_attn_out is not None:
        return layout
    block = module.get_submodule(layout.block.format(0))
    inside = {name for name, _ in block.named_modules()}
    normed = tuple(f"{layout.block}.{n}" for n in ("self_attn.q_norm", "self_attn.k_norm") if n in inside)
    for known, norm in product(FORMS.values(), get_args(NormKind)):
        form = replace(known, block_class=device_blocks.class_of(block), norm=norm, head_norms=normed)
        lm = LanguageModel(module, cast("PreTrainedTokenizerBase", None), replace(layout, form=form))
        try:
            if device_blocks.supports(lm, 0):
                check_layout_contract(lm.layout, module)
                proposal.unsure.append(
                    "form: it was compared with the blocks of this configuration only; another may scale what these do not"
                )
                return lm.layout
        # a name of the known form is not there, or the contract says that it is another one
        except (AttributeError, AssertionError, ModelError):
            continue
    return layout
