"""Tokenizers as a model is loaded with: opened without its weights, fetched, given a pad token and the BOS policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, RaysweepError, nearest
from raysweep.models.embedding_rows import drop_rowless
from raysweep.models.sources import gguf, hub
from raysweep.models.sources.base import MODEL_RECIPES, ModelRecipe
from raysweep.models.sources.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raysweep.workspace import Workspace

T = TypeVar("T")


def open_tokenizer(
    where: Path | str, spec: ModelSpec, workspace: Workspace
) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Return the tokenizer that :func:`load` gives the model of *spec* (resolved), and the ids to prepend by hand.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
        ModelError: it cannot be opened, or does not know the token of the BOS policy.
    """
    if isinstance(where, Path) and where.suffix in MODEL_RECIPES:
        tokenizer = ModelRecipe.open(where, workspace).tokenizer()
    elif isinstance(where, Path) and where.is_file():
        tokenizer = gguf.read_tokenizer(where)
    else:
        from transformers import AutoConfig

        # planning never touches the network: fetch_tokenizer has been called where it may
        options = {**load_options(where, spec), "local_files_only": True}
        config = guarded(where, lambda: AutoConfig.from_pretrained(where, **options))
        tokenizer = guarded(where, lambda: read_tokenizer(where, config, options))
    return tokenizer, fit_tokenizer(tokenizer, spec.bos)


def fetch_tokenizer(repository: str, spec: ModelSpec) -> str:
    """Fetch the configuration and the tokenizer of a hub model, not its weights; return the commit they are of.

    Raises:
        ModelError: the hub is out of reach, or has no such model or revision.
    """
    from transformers import AutoConfig

    options = load_options(repository, spec)
    config = guarded(repository, lambda: AutoConfig.from_pretrained(repository, **options))
    # a branch may move between the two calls, so the tokenizer is fetched at the commit of the configuration
    options["revision"] = commit = str(getattr(config, "_commit_hash", None) or "")
    if not commit:
        raise ModelError(f"hub model '{repository}' names no commit", hint="set model.revision to one")
    guarded(repository, lambda: read_tokenizer(repository, config, options))
    return commit


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, bos: str, *, vocabulary: int | None = None) -> tuple[int, ...]:
    """Give *tokenizer* a pad token and the BOS policy *bos*; return the ids to prepend by hand.

    Args:
        tokenizer: changed in place.
        bos: ``tokenizer`` (as it comes), ``none``, or the text of the token to prepend; in the last two cases the
            tokenizer's own special tokens are switched off.
        vocabulary: rows of the embedding; None = not known yet.

    Raises:
        ModelError: the tokenizer is slow, cannot encode, is larger than the embedding, or does not know the token.
    """
    # spans of subjects and targets are found by character offsets, which slow tokenizers do not have
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer has no fast version", hint="token offsets are needed; add tokenizer.json")
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        if getattr(tokenizer, f"{role}_token") == "":  # no text has it and it has no id: it is none
            setattr(tokenizer, f"{role}_token", None)
    try:
        tokenizer("a", verbose=False)
    except Exception as error:  # odd values in tokenizer_config.json are met on first use only
        raise ModelError(
            f"the tokenizer cannot encode a text: {_line(error)}",
            hint="a value of the wrong kind in tokenizer_config.json, such as model_max_length? Copy or fetch the model again",
        ) from error
    # added tokens may have ids beyond the embedding: looking them up would fail deep inside the model
    if vocabulary is not None:
        drop_rowless(tokenizer, vocabulary)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has neither a pad nor an EOS token", hint="set one in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    # from here on the ids that are put before a text are ours, so the tokenizer must add none
    if bos == "tokenizer":
        return ()
    _silence_special_tokens(tokenizer)
    if bos == "none":
        return ()
    # by the table, not by encoding: a text that is no token would be cut to pieces instead of refused
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

    # only where needed: the processor that makes way for an empty template may also trim offsets
    if not silent():
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    if not silent():
        raise ModelError("the tokenizer's own BOS cannot be switched off", hint="use model.bos: tokenizer")


def load_options(where: Path | str, spec: ModelSpec) -> dict[str, object]:
    """Return what ``from_pretrained`` is told of the place *where* and the revision."""
    options: dict[str, object] = {
        "trust_remote_code": spec.trust_remote_code,
        "local_files_only": isinstance(where, Path),
    }
    # what was planned wins over what a branch has become since
    revision = hub.commit_of(spec.digest) or spec.revision
    return options | ({"revision": revision} if isinstance(where, str) and revision else {})


def guarded(where: Path | str, call: Callable[[], T]) -> T:
    """Run *call*; turn whatever a third party's loader raises into a :class:`ModelError` that says what to do."""
    try:
        return call()
    # ours say already what to do
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
    speaks_for_itself = message and isinstance(error, OSError | ValueError | ImportError)
    return message if speaks_for_itself else f"{type(error).__name__}: {message}"
