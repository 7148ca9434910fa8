"""Write a finished trial's edited model as others read it, and only if it proves to be the edited model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from raysweep.atomic import write_folder
from raysweep.errors import ModelError, StoreError
from raysweep.exports import adapter, package
from raysweep.exports.forms import Form
from raysweep.exports.proof import PROMPTS, Claim, prove
from raysweep.exports.trials import EditedTrial
from raysweep.models.lm import LanguageModel


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        form: what it is.
        difference: the largest difference of a logit, read again.
        prompts: how many were asked.
        rank: of an adapter; 0 = it is none.
    """

    folder: Path
    form: Form
    difference: float
    prompts: int
    rank: int = 0


def check_target(folder: Path) -> None:
    """Raise :class:`StoreError` where *folder* holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is there already", hint="name a folder that is empty or not there")


def export(opened: EditedTrial, folder: Path, form: Form) -> Exported:
    """Write *opened* as *form* into *folder*; nothing is left there unless it answers, read again, as the edited model.

    Raises:
        ModelError: the edits cannot be given in that form, or what was written is not the edited model.
        StoreError: *folder* holds something already.
    """
    check_target(folder)
    if opened.has_memory and form is not Form.TENSORS:
        raise ModelError(
            f"the edits of {opened.trial.editor.label} are a memory beside the weights; a plain {form} would silently lack them",
            hint="--as tensors writes a package with the memory, and how to load it",
        )
    # of edited records: there an export that lacks the edits would show first
    prompts = [record.prompt for record in opened.records[:PROMPTS]]
    # the draft gets its name when the block ends well, so a failed proof leaves no folder
    with write_folder(folder) as draft:
        if opened.has_memory:
            # plain transformers cannot hold a memory, so it is read again by our own loader
            package.write_package(opened, draft)
            with opened.attached() as lm:
                logits = package.last_logits(lm, prompts)
            difference, rank = package.prove_package(draft, opened.workspace, prompts, logits), 0
        else:
            with claimed(opened, draft, form, prompts) as (claim, rank):
                (difference,) = prove([claim])
    return Exported(folder, form, difference, len(prompts), rank)


@contextmanager
def claimed(opened: EditedTrial, draft: Path, form: Form, prompts: Sequence[str]) -> Iterator[tuple[Claim, int]]:
    """Write *opened*, an edit of weights, as *form* into *draft*; yield what it claims to answer, and the rank of an adapter."""
    if form is Form.MODEL:
        with opened.attached() as lm:
            write_plain(lm, draft)
            claim = Claim.of(lm, prompts, draft)
        yield claim, 0
        return
    # Both lie over the unedited model, which has to be there as plain transformers reads it.
    with TemporaryDirectory() as root:
        write_plain(opened.lm, Path(root))
        if form is Form.ADAPTER:
            found = adapter.factors(opened.lm, opened.weights)
            rank = adapter.write_adapter(opened.lm, found, opened.trial.model.name, draft)
        else:
            package.write_package(opened, draft)
            rank = 0
        over = {"adapter": draft} if form is Form.ADAPTER else {"tensors": draft / package.TENSORS}
        with opened.attached() as lm:
            claim = Claim.of(lm, prompts, Path(root), **over)
        # inside the `with`: the proof reads the unedited model there before it is deleted
        yield claim, rank


def write_plain(lm: LanguageModel, folder: Path) -> None:
    """Write *lm* as it stands, and its tokenizer, as ``save_pretrained`` does."""
    from transformers.utils import logging

    # the bar would be drawn across whatever the command itself prints
    had_progress_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        lm.module.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    finally:
        if had_progress_bar:
            logging.enable_progress_bar()
