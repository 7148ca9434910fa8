"""The one way a language model gets into memory: every ``from_pretrained`` of the project is here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, RaysweepError, nearest
from raysweep.lazy import lazy
from raysweep.models import attention
from raysweep.models.embedding_rows import drop_rowless
from raysweep.models.layout import Layout, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.sources import catalogue, gguf, hub, tokenizer_behaviour
from raysweep.models.sources.tokenizer_files import read_tokenizer
from raysweep.runtime import device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raysweep.workspace import Workspace

T = TypeVar("T")


def load(spec: ModelSpec, workspace: Workspace, on_step: Callable[[int, int], None] | None = None) -> LanguageModel:
    """Return the model of *spec*: eval mode, nothing requiring grad, on :func:`raysweep.runtime.device`.

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
    """
    known = catalogue.identify(spec, workspace)
    where = known.where
    # the key would cover a branch's name instead of what is loaded
    if spec.provisional:
        raise ModelError(
            f"the key does not cover hub model '{where}': when it was made, neither its commit nor its tokenizer was here",
            hint="`raysweep run` fetches both before it plans; or fetch the model (`hf download`) and plan again",
        )
    # what was planned is what must run
    if spec.digest and spec.digest != known.digest:
        raise ModelError(
            f"model '{spec.name}' at {where} has fingerprint {known.digest}, the plan saw {spec.digest}",
            hint="the files changed meanwhile; restore them, or plan again",
        )
    if isinstance(where, Path) and where.suffix == catalogue.RECIPE:
        dtype = getattr(torch, spec.dtype)
        trained: LanguageModel = lazy("raysweep.belief.testbed").open_model(where, workspace, dtype, on_step)
        module, tokenizer = trained.module, trained.tokenizer
    elif isinstance(where, Path) and where.is_file():
        module, tokenizer = _guarded(where, lambda: gguf.read(where))
        module = module.to(getattr(torch, spec.dtype))
    else:
        module, tokenizer = _from_pretrained(where, spec)
    layout = layout_of(module.config)
    check_layout(module, layout)
    _check_finite(module, where)
    # The plan saw the tokenizer without the weights; tokens without a row follow from both, which the key covers.
    planned = fit_tokenizer(tokenizer, known.bos)
    _check_tokens(tokenizer_behaviour.tokenizer_digest(tokenizer, planned), spec, where)
    bos = fit_tokenizer(tokenizer, known.bos, vocabulary=module.get_input_embeddings().num_embeddings)
    # nothing is trained unless an editor asks for it, tensor by tensor
    module = module.eval().requires_grad_(False).to(device())
    return LanguageModel(module=module, tokenizer=tokenizer, layout=layout, bos=bos, digest=_digest(known, module))


def open_tokenizer(
    where: Path | str, spec: ModelSpec, workspace: Workspace
) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Return the tokenizer that :func:`load` gives the model of *spec* (resolved), and the ids to prepend by hand.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
        ModelError: it cannot be opened, or does not know the token of the BOS policy.
    """
    if isinstance(where, Path) and where.suffix == catalogue.RECIPE:
        tokenizer = lazy("raysweep.belief.testbed").open_tokenizer(where, workspace)
    elif isinstance(where, Path) and where.is_file():
        tokenizer = gguf.read_tokenizer(where)
    else:
        from transformers import AutoConfig

        options = {**_options(where, spec), "local_files_only": True}
        config = _guarded(where, lambda: AutoConfig.from_pretrained(where, **options))
        tokenizer = _guarded(where, lambda: read_tokenizer(where, config, options))
    return tokenizer, fit_tokenizer(tokenizer, spec.bos)


def fetch_tokenizer(repository: str, spec: ModelSpec) -> str:
    """Fetch the configuration and the tokenizer of a hub model, not its weights; return the commit they are of.

    Raises:
        ModelError: the hub is out of reach, or has no such model or revision.
    """
    from transformers import AutoConfig

    options = _options(repository, spec)
    config = _guarded(repository, lambda: AutoConfig.from_pretrained(repository, **options))
    options["revision"] = commit = str(getattr(config, "_commit_hash", None) or "")
    if not commit:
        raise ModelError(f"hub model '{repository}' names no commit", hint="set model.revision to one")
    _guarded(repository, lambda: read_tokenizer(repository, config, options))
    return commit


def _options(where: Path | str, spec: ModelSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code, "local_files_only": isinstance(where, Path)}
    revision = hub.commit_of(spec.digest) or spec.revision
    return options | ({"revision": revision} if isinstance(where, str) and revision else {})


def _check_tokens(behaviour: str, spec: ModelSpec, where: Path | str) -> None:
    """Raise :class:`ModelError` unless the tokenizer does what the plan saw."""
    if spec.tokenizer_digest and spec.tokenizer_digest != behaviour:
        raise ModelError(
            f"the tokenizer of model '{spec.name}' at {where} gives other tokens than the plan saw (behaviour {behaviour}, "
            f"planned {spec.tokenizer_digest})",
            hint="another version of transformers or tokenizers? Install the same ones everywhere, or plan again; if it comes "
            "back, delete the folder artifacts/tokenizers",
        )


def _digest(known: catalogue.ModelIdentity, module: PreTrainedModel) -> str:
    """Return the model's digest; of a hub model, with the commit that was loaded."""
    commit = getattr(module.config, "_commit_hash", None)
    return hub.digest_of(known.where, commit) if isinstance(known.where, str) and commit else known.digest


def _from_pretrained(where: Path | str, spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    options = _options(where, spec)
    had_progress_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = _guarded(where, lambda: AutoConfig.from_pretrained(where, **options))
        # before gigabytes are read
        layout_of(config)
        attention.windows(config)
        tokenizer = _guarded(where, lambda: read_tokenizer(where, config, options))
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
    message = " ".join(str(error).split())
    if message and isinstance(error, OSError | ValueError | ImportError):
        return message
    return f"{type(error).__name__}: {message}"


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


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, bos: str, *, vocabulary: int | None = None) -> tuple[int, ...]:
    """Give *tokenizer* a pad token and the BOS policy *bos*; return the ids to prepend by hand.

    Args:
        tokenizer: changed in place.
        bos: ``tokenizer`` (as it comes), ``none``, or the text of the token to prepend; in the last two cases the
            tokenizer's own special tokens are switched off.
        vocabulary: rows of the embedding; None = not known yet.

    Raises:
        ModelError: the tokenizer is slow, larger than the embedding, or does not know the token.
    """
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer has no fast version", hint="token offsets are needed; add tokenizer.json")
    if vocabulary is not None:
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
