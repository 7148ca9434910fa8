"""What an evaluation does when the accelerator's memory is full."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from raysweep.errors import OutOfMemoryError

log = logging.getLogger(__name__)
T = TypeVar("T")


def within_memory(forward: Callable[[], T], batch: int) -> T:
    """Return what *forward*, a pass over up to *batch* rows, returns; once more after freeing memory, where there was none left.

    The same rows are tried again, never fewer: rows of one pass move each other's last bits, so a smaller batch is another number,
    and another trial (``protocol.eval_batch`` is in the key).

    Raises:
        OutOfMemoryError: there is too little even then; the hint says which batch to set.
    """
    try:
        return forward()
    except torch.OutOfMemoryError as error:
        log.warning(
            "an evaluation of %d rows found no memory (%s); freeing what is cached and trying again", batch, error
        )
    # Outside the handler: the error's traceback keeps the tensors of the failed pass alive.
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return forward()
    except torch.OutOfMemoryError as error:
        message = f"the evaluation needs more memory than there is with protocol.eval_batch = {batch}"
        half = f"--set protocol.eval_batch={batch // 2} (a new trial: the batch is a part of its key, as it moves last bits)"
        hint = half if batch > 1 else "use a larger accelerator, or model.dtype=bfloat16"
        raise OutOfMemoryError(message, hint=hint) from error
