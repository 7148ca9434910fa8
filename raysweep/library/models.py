"""Models for people who write Python: by name, by folder, or a transformers model that they have already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raysweep.config.schema import ModelSpec
from raysweep.errors import SpecError
from raysweep.lazy import lazy
from raysweep.workspace import Workspace, resolve_from_cwd

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raysweep.models import layout
    from raysweep.models.lm import LanguageModel
    from raysweep.models.sources import load, tokenizers
else:
    layout, load = lazy("raysweep.models.layout"), lazy("raysweep.models.sources.load")
    tokenizers = lazy("raysweep.models.sources.tokenizers")


def load_model(
    model: str | Path | ModelSpec = "embedded",
    workspace: Workspace | None = None,
    on_step: Callable[[int, int], None] | None = None,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    hparams: str | None = None,
) -> LanguageModel:
    """Return a language model that is ready to be edited: in eval mode, on the GPU where there is one.

    Args:
        model: a name of ``raysweep models ls`` such as ``embedded``, a hub id, a folder, a GGUF file, or a whole specification
            (``raysweep.config.schema.ModelSpec``), which also says revision, BOS policy and devices.
        workspace: where named models lie; None = the current folder (``Workspace.here``).
        on_step: called with (step, steps) where a model has to be trained first.
        dtype: precision of the weights; None = that of the specification, which is float32 by default.
        hparams: whose ``hparams/<editor>/<model>.yaml`` fit this model; None = those of its own name.

    Raises:
        ModelError: there is no such model, or its files cannot be used.

    >>> from raysweep import load_model
    >>> load_model("embedded").n_blocks
    4
    """
    workspace = workspace or Workspace.here()
    spec = model if isinstance(model, ModelSpec) else ModelSpec.model_validate(model_section(str(model), workspace))
    stated = {"dtype": dtype, "hparams": hparams}
    given = {key: value for key, value in stated.items() if value is not None}
    # validated again, as pydantic's model_copy would take any value unseen
    return load.load(ModelSpec.model_validate({**spec.model_dump(), **given}), workspace, on_step)


def adopt_model(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, hparams: str = "", bos: str = "tokenizer"
) -> LanguageModel:
    """Return a transformers model that is in memory already as one that raysweep can edit; its weights are not copied.

    It is put into eval mode and no parameter asks for a gradient any more. Nobody can tell such a model from another one, so
    second moments and the like are computed anew for each :class:`~raysweep.library.session.EditSession`, and not kept.

    Args:
        module: a causal language model of an architecture of ``raysweep ls layouts``.
        tokenizer: its tokenizer.
        hparams: the model whose ``hparams/<editor>/<model>.yaml`` fit this one; empty = none, so all is said in ``config``.
        bos: what stands before every text: ``tokenizer`` = what the tokenizer puts there, ``none``, or the text of a token.

    Raises:
        ModelError: there is no layout for its architecture, or the tokenizer does not fit.

    >>> from raysweep import adopt_model, load_model
    >>> loaded = load_model("embedded")  # in practice: AutoModelForCausalLM.from_pretrained(…)
    >>> adopt_model(loaded.module, loaded.tokenizer, hparams="embedded").name
    'embedded'
    """
    # here, as it brings torch with it (decision 008)
    from raysweep.models.lm import LanguageModel

    found = layout.layout_of(module.config)
    load.check_layout(module, found)
    # the matrix's rows count, not the configuration: an id beyond them has no embedding
    ids = tokenizers.fit_tokenizer(tokenizer, bos, vocabulary=module.get_input_embeddings().num_embeddings)
    module.eval().requires_grad_(False)
    # without a digest: nothing computed of this model can be told from another's, so nothing is kept
    return LanguageModel(module=module, tokenizer=tokenizer, layout=found, bos=ids, name=hparams)


def model_section(text: str, workspace: Workspace, note: Callable[[str], None] | None = None) -> dict[str, str]:
    """Return the ``model`` section that *text* means: a name, or a path, which counts from the current folder.

    A bare name that is known is that model, whatever lies in the current folder; ``./name`` is the folder.

    Args:
        text: as typed.
        workspace: where named models lie.
        note: told where a folder of the same name is passed over; None = nobody is.

    Raises:
        SpecError: *text* is empty.
    """
    if not text:
        raise SpecError(
            "the model has no name", hint="embedded, or one of `raysweep models ls`, a folder, a GGUF file, a hub id"
        )
    # A name has no separator; whatever has one is a path or a hub id.
    bare = not text.startswith("~") and os.sep not in text and "/" not in text
    known = lazy("raysweep.models.sources.catalogue").CATALOGUE
    if bare and (text in known or workspace.find("models", text) is not None):
        # Said, not refused: the name has always meant the model, and a folder may turn up any day.
        if note is not None and workspace.holds(str(Path(text).absolute())):
            note(f"'{text}' is the model of that name; write ./{text} for what lies in this folder")
        return {"name": text}
    where = Path(resolve_from_cwd(text))
    return {"name": where.name, "path": str(where)} if workspace.holds(str(where)) else {"name": text}
