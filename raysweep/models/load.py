"""The one way a language model gets into memory: every ``from_pretrained`` of the project is here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, RaysweepError, nearest
from raysweep.lazy import lazy
from raysweep.models import catalogue, gguf
from raysweep.models.layout import Layout, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.rowless import drop_rowless
from raysweep.runtime import device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raysweep.workspace import Workspace

T = TypeVar("T")
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load(spec: ModelSpec, workspace: Workspace, told: Callable[[int, int], None] | None = None) -> LanguageModel:
    """Return the model of *spec*: eval mode, nothing requiring grad, on :func:`raysweep.runtime.device`.

    Local folders and GGUF files never touch the network. A recipe is trained if nobody has; *told* hears of every step.
    If ``spec.digest`` is given, the files must still have it.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
        ModelError: the model is missing, incomplete, damaged, changed since the plan, of an unknown architecture,
            has weights that are not finite or a tokenizer that does not fit; or the hub is out of reach.
    """
    where = catalogue.locate(spec, workspace)
    known = catalogue.resolve(spec, workspace)
    if spec.digest and spec.digest != known.digest:
        raise ModelError(
            f"model '{spec.name}' at {where} has fingerprint {known.digest}, the plan saw {spec.digest}",
            hint="the files changed meanwhile; restore them, or plan again",
        )
    if isinstance(where, Path) and where.suffix == catalogue.RECIPE:
        return lazy("raysweep.belief.testbed").open_model(where, workspace, getattr(torch, spec.dtype), told)  # type: ignore[no-any-return]
    if isinstance(where, Path) and where.is_file():
        module, tokenizer = _guarded(where, lambda: gguf.read(where))
        module = module.to(getattr(torch, spec.dtype))
    else:
        module, tokenizer = _from_pretrained(where, spec)
    layout = layout_of(module.config)
    check_layout(module, layout)
    _check_finite(module, where)
    bos = fit_tokenizer(tokenizer, known.bos, vocabulary=module.get_input_embeddings().num_embeddings)
    module = module.eval().requires_grad_(False).to(device())
    return LanguageModel(module=module, tokenizer=tokenizer, layout=layout, bos=bos, digest=known.digest)


def _from_pretrained(where: Path | str, spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code, "local_files_only": isinstance(where, Path)}
    if isinstance(where, str) and spec.revision:
        options["revision"] = spec.revision
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = _guarded(where, lambda: AutoConfig.from_pretrained(where, **options))
        layout_of(config)  # before gigabytes are read
        tokenizer = _guarded(where, lambda: _tokenizer_class(where, options).from_pretrained(where, **options))
        loaded = _guarded(
            where,
            lambda: AutoModelForCausalLM.from_pretrained(
                where,
                config=config,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=_attention(config),
                output_loading_info=True,
                **options,
            ),
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    module, info = loaded
    lost = sorted({*info["missing_keys"], *(key for key, *_ in info.get("mismatched_keys", ()))})
    if lost:
        raise ModelError(
            f"{where}: the checkpoint lacks {len(lost)} weights the architecture needs: {', '.join(lost[:3])} …",
            hint="they would be random numbers; the files belong to another model or are incomplete",
        )
    return module, tokenizer


def _tokenizer_class(where: Path | str, options: Mapping[str, Any]) -> Any:
    """Return what reads the tokenizer.

    A checkpoint that declares a generic class means its ``tokenizer.json`` as it is; ``AutoTokenizer`` would choose
    by architecture instead, and Qwen2's class then replaces the splitting rule and adds a token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(str(where), **options).get("tokenizer_class")
    return PreTrainedTokenizerFast if declared in _GENERIC else AutoTokenizer


def _attention(config: Any) -> str | None:
    """Name the attention implementation: sdpa where the architecture has it; None (its default) for remote code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"


def _guarded(where: Path | str, call: Callable[[], T]) -> T:
    """Run *call*; turn whatever a third party's loader raises into a :class:`ModelError` that says what to do."""
    try:
        return call()
    except RaysweepError:
        raise
    except ImportError as error:
        package = error.name or next(iter(re.findall(r"pip install ([\w.\[\]-]+)", str(error))), "")
        hint = f"pip install {package}" if package else "install the package it names"
        raise ModelError(
            f"{where}: loading it needs a package that is not installed: {_line(error)}", hint=hint
        ) from error
    except MemoryError as error:
        hint = "a smaller model.dtype, a smaller model, or a larger machine"
        raise ModelError(f"{where}: there is not enough memory to load it", hint=hint) from error
    except BaseException as error:  # Rust's panics are no Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unloadable(where, error) from error


def _unloadable(where: Path | str, error: BaseException) -> ModelError:
    text = _line(error)
    if "trust_remote_code" in text:
        hint = "set model.trust_remote_code: true if you trust the code that comes with it"
    elif isinstance(where, Path):
        hint = "copy or fetch the model again"
    elif "gated" in text.lower():
        hint = "accept the model's licence on the hub and run `hf auth login`"
    else:
        hint = (
            "offline models: 'embedded', and what `raysweep models ls` shows as fetched; or give a folder as model.path"
        )
    what = f"{where}: cannot be loaded" if isinstance(where, Path) else f"hub model '{where}' cannot be loaded"
    return ModelError(f"{what}: {text}", hint=hint)


def _line(error: BaseException) -> str:
    """Return what *error* says, on one line; its type too where that is not one of ours to read."""
    said = " ".join(str(error).split())
    return said if said and isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: {said}"


def check_layout(module: PreTrainedModel, layout: Layout) -> None:
    """Raise :class:`ModelError` unless every name of *layout* resolves in every block of *module*."""
    top = (layout.body, layout.blocks, layout.norm, layout.head, layout.embed)
    per_block = (layout.block, layout.mlp, *layout.mlp_in, layout.mlp_out, layout.attn_out)
    try:
        count = len(module.get_submodule(layout.blocks))
        for name in (*top, *(part.format(i) for part in per_block for i in range(count))):
            module.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"layout '{layout.model_type}' does not fit {type(module).__name__}: {error}",
            hint=f"mend raysweep/models/layouts/{layout.model_type}.py",
        ) from error


def _check_finite(module: PreTrainedModel, where: Path | str) -> None:
    bad = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight.detach().sum()))]
    # A sum of finite numbers may overflow in half precision: look again, entry by entry.
    bad = [name for name in bad if not bool(torch.isfinite(module.get_parameter(name).detach()).all())]
    if bad:
        raise ModelError(
            f"{where}: {len(bad)} weights hold NaN or infinity, first '{bad[0]}'",
            hint="the file is damaged, or model.dtype is too narrow for this model (float16 ends at 65504)",
        )


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, bos: str, *, vocabulary: int) -> tuple[int, ...]:
    """Give *tokenizer* a pad token and the BOS policy *bos*; return the ids to prepend by hand.

    Args:
        tokenizer: changed in place.
        bos: ``tokenizer`` (as it comes), ``none``, or the text of the token to prepend; in the last two cases the
            tokenizer's own special tokens are switched off.
        vocabulary: rows of the embedding.

    Raises:
        ModelError: the tokenizer is slow, larger than the embedding, or does not know the token.
    """
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer has no fast version", hint="token offsets are needed; add tokenizer.json")
    drop_rowless(tokenizer, vocabulary)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has neither a pad nor an EOS token", hint="set one in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if bos == "tokenizer":
        return ()
    _silence_special_tokens(tokenizer)
    if bos == "none":
        return ()
    table = tokenizer.get_vocab()
    if bos not in table:
        special = sorted({str(token) for token in tokenizer.all_special_tokens})
        raise ModelError(f"model.bos {bos!r} is not a token of this tokenizer", hint=nearest(bos, special))
    return (int(table[bos]),)


def _silence_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make encoding add nothing by itself."""
    from tokenizers.processors import TemplateProcessing

    def silent() -> bool:
        return bool(tokenizer("a").input_ids == tokenizer("a", add_special_tokens=False).input_ids)

    if not silent():
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    if not silent():
        raise ModelError("the tokenizer's own BOS cannot be switched off", hint="use model.bos: tokenizer")
