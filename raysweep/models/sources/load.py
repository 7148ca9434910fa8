"""The one way a language model gets into memory: every ``from_pretrained`` of the project is here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError
from raysweep.models import attention
from raysweep.models.joined import join
from raysweep.models.layout import LAYOUTS, Layout, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.sources import catalogue, gguf, hub, tokenizer_behaviour
from raysweep.models.sources.base import MODEL_RECIPES, ModelRecipe
from raysweep.models.sources.tokenizer_files import read_tokenizer
from raysweep.models.sources.tokenizers import fit_tokenizer, guarded, load_options
from raysweep.models.spread import devices, spread
from raysweep.models.tokens import encode
from raysweep.runtime import matmul, repeatable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from raysweep.workspace import Workspace

T = TypeVar("T")


def load(spec: ModelSpec, workspace: Workspace, on_step: Callable[[int, int], None] | None = None) -> LanguageModel:
    """Return the model of *spec*: eval mode, nothing requiring grad, on :func:`raysweep.models.spread.devices`.

    Local folders and GGUF files never touch the network. A recipe is trained if nobody has.
    What ``spec.digest`` and ``spec.tokenizer_digest`` say, if given, must still be true of what is loaded.

    Args:
        spec: the model.
        workspace: where it is looked for.
        on_step: called with (step, steps) while a recipe is trained.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
        ModelError: the model is missing, incomplete, damaged, changed since the plan, of an unknown architecture,
            has weights that are not finite or a tokenizer that does not fit; or the hub is out of reach.
        NodeError: there are fewer GPUs than the model is to be spread over.
    """
    there = devices(spec.devices)
    identity = catalogue.identify(spec, workspace)
    where = identity.where
    # the key would cover a branch's name instead of what is loaded
    if spec.provisional:
        raise ModelError(
            f"the key does not cover hub model '{where}': when it was made, neither its commit nor its tokenizer was here",
            hint="`raysweep run` fetches both before it plans; or fetch the model (`raysweep models fetch`) and plan again",
        )
    # what was planned is what must run
    if spec.digest and spec.digest != identity.digest:
        raise ModelError(
            f"model '{spec.name}' at {where} has fingerprint {identity.digest}, the plan saw {spec.digest}",
            hint="the files changed meanwhile; restore them, or plan again",
        )
    if isinstance(where, Path) and where.suffix in MODEL_RECIPES:
        # How a trial multiplies is no part of a recipe, so the model it trains is the same whoever is first to ask.
        with matmul("ieee"), repeatable(there[0]):
            trained = ModelRecipe.open(where, workspace).model(getattr(torch, spec.dtype), on_step)
        module, tokenizer = trained.module, trained.tokenizer
    elif isinstance(where, Path) and where.is_file():
        module, tokenizer = guarded(where, lambda: gguf.read(where))
        module = module.to(getattr(torch, spec.dtype))
    else:
        module, tokenizer = _from_pretrained(where, spec, there[0] if len(there) == 1 else torch.device("cpu"))
    layout = layout_of(module.config)
    check_layout(module, layout)
    _check_finite(module, where)
    # The plan saw the tokenizer without the weights; tokens without a row follow from both, which the key covers.
    planned = fit_tokenizer(tokenizer, identity.bos)
    _check_tokens(tokenizer_behaviour.tokenizer_digest(tokenizer, planned), spec, where)
    bos = fit_tokenizer(tokenizer, identity.bos, vocabulary=module.get_input_embeddings().num_embeddings)
    # nothing is trained unless an editor asks for it, tensor by tensor
    module = module.eval().requires_grad_(False)
    spread(module, layout, there)
    if there[0].type != "cpu":
        join(module, layout)
    digest, name = _digest(identity, module), spec.hparams or spec.name
    lm = LanguageModel(
        module=module, tokenizer=tokenizer, layout=layout, bos=bos, digest=digest, matmul=spec.matmul, name=name
    )
    _check_range(lm, where)
    return lm


def _check_tokens(behaviour: str, spec: ModelSpec, where: Path | str) -> None:
    """Raise :class:`ModelError` unless the tokenizer does what the plan saw."""
    if spec.tokenizer_digest and spec.tokenizer_digest != behaviour:
        raise ModelError(
            f"the tokenizer of model '{spec.name}' at {where} gives other tokens than the plan saw (behaviour {behaviour}, "
            f"planned {spec.tokenizer_digest})",
            hint="another version of transformers or tokenizers? Install the same ones everywhere, or plan again; if it comes "
            "back, delete the folder artifacts/tokenizers",
        )


def _digest(identity: catalogue.ModelIdentity, module: PreTrainedModel) -> str:
    """Return the model's digest; of a hub model, with the commit that was loaded."""
    commit = getattr(module.config, "_commit_hash", None)
    return hub.digest_of(identity.where, commit) if isinstance(identity.where, str) and commit else identity.digest


def _from_pretrained(
    where: Path | str, spec: ModelSpec, there: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    options = load_options(where, spec)
    had_progress_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        whole = guarded(where, lambda: AutoConfig.from_pretrained(where, **options))
        config = language_part(whole)
        layout = layout_of(config)  # before gigabytes are read
        attention.windows(config)
        tokenizer = guarded(where, lambda: read_tokenizer(where, whole, options))
        renamed = {"key_mapping": dict(layout.renamed)} if config is not whole else {}
        loaded = guarded(
            where,
            lambda: AutoModelForCausalLM.from_pretrained(
                where,
                config=config,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=_attention(config),
                output_loading_info=True,
                **renamed,
                **_placement(there),
                **options,
            ),
        )
    finally:
        if had_progress_bar:
            logging.enable_progress_bar()
    module, info = loaded
    # transformers fills missing weights with random numbers and only warns
    lost = sorted({*info["missing_keys"], *(key for key, *_ in info.get("mismatched_keys", ()))})
    if lost:
        raise ModelError(
            f"{where}: the checkpoint lacks {len(lost)} weights the architecture needs: {', '.join(lost[:3])} …",
            hint="they would be random numbers; the files belong to another model or are incomplete",
        )
    return module, tokenizer


def language_part(config: PretrainedConfig) -> PretrainedConfig:
    """Return what *config* says of a model's language model, where that is loaded alone; else *config* itself."""
    # itself, where there are no parts
    text: PretrainedConfig = config.get_text_config()
    kind = str(text.model_type)
    is_part = text is not config and kind in LAYOUTS and LAYOUTS.get(kind).part_of == str(config.model_type)
    return text if is_part else config


def _placement(there: torch.device) -> dict[str, object]:
    """Return the options with which transformers puts weights on a device one by one, as it reads and rounds them.

    Otherwise the whole model would be in the host's memory first. transformers needs the package accelerate for it; without
    that, and on a CPU, there are no options: :func:`load` moves the model when it is whole, to the same bits.
    """
    return {} if there.type == "cpu" or find_spec("accelerate") is None else {"device_map": {"": there}}


def _attention(config: PretrainedConfig) -> str | None:
    """Name the attention implementation: sdpa where the architecture has it; None (its default) for remote code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"


def check_layout(module: PreTrainedModel, layout: Layout) -> None:
    """Raise :class:`ModelError` unless every name of *layout* resolves in every block of *module*."""
    top = (layout.body, layout.blocks, layout.norm, layout.head, layout.embed)
    normed = () if layout.mlp_out_norm is None else (layout.mlp_out_norm,)
    per_block = (layout.block, layout.mlp, *layout.mlp_in, layout.mlp_out, *normed)
    try:
        lm = LanguageModel(module=module, tokenizer=cast("PreTrainedTokenizerBase", None), layout=layout)
        for name in (*top, *(part.format(i) for part in per_block for i in range(lm.n_blocks))):
            module.get_submodule(name)
        for i in range(lm.n_blocks):
            module.get_submodule(lm.attn_out(i))
    except AttributeError as error:
        raise ModelError(
            f"layout '{layout.model_type}' does not fit {type(module).__name__}: {error}",
            hint=f"mend raysweep/models/layouts/{layout.model_type}.py",
        ) from error


def _check_range(lm: LanguageModel, where: Path | str) -> None:
    """Raise :class:`ModelError` if a float16 model cannot even read a sentence: what it computes leaves the range of float16.

    Such models were trained in bf16, which has the range of fp32; what is too large in them is so for the first token of any text.
    """
    if lm.dtype is not torch.float16:
        return
    ids = torch.tensor([encode(lm, "The capital of France is Paris.")], device=lm.device)
    with torch.no_grad():
        logits = lm.module(input_ids=ids, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"{where}: in float16 this model gives NaN or infinity for a plain sentence; its activations pass 65504",
            hint="model.dtype: bfloat16 has the same size and the range of float32",
        )


def _check_finite(module: PreTrainedModel, where: Path | str) -> None:
    bad = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight.detach().sum()))]
    # A sum of finite numbers may overflow in half precision: look again, entry by entry.
    bad = [name for name in bad if not bool(torch.isfinite(module.get_parameter(name).detach()).all())]
    if bad:
        raise ModelError(
            f"{where}: {len(bad)} weights hold NaN or infinity, first '{bad[0]}'",
            hint="the file is damaged, or model.dtype is too narrow for this model (float16 ends at 65504)",
        )
