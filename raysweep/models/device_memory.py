"""What happens when an accelerator's memory is full: the same work once more, then an error that says what to set."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from raysweep.errors import OutOfMemoryError

log = logging.getLogger(__name__)
T = TypeVar("T")


def within_memory(work: Callable[[], T], what: str, cure: Callable[[], tuple[str, str]]) -> T:
    """Return what *work* returns; once more after freeing what is cached, where there was no memory left.

    The same work is done again, never a part of it: rows of one forward pass move each other's last bits, so fewer of them together
    are another number, and another trial.

    Args:
        work: changes nothing, so that it can be done twice.
        what: names it, for the log.
        cure: returns the message and the hint of the error.

    Raises:
        OutOfMemoryError: there is too little memory even then.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        log.warning("%s found no memory (%s); freeing what is cached and trying again", what, error)
    # Outside the handler: the error's traceback keeps the tensors of the failed attempt alive.
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return work()
    except torch.OutOfMemoryError as error:
        message, hint = cure()
        raise OutOfMemoryError(message, hint=hint) from error
