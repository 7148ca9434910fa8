"""What an evaluation does when the accelerator's memory is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raysweep.models import device_memory

T = TypeVar("T")


def within_memory(forward: Callable[[], T], batch: int) -> T:
    """Return what *forward*, a pass over up to *batch* rows, returns; once more after freeing memory, where there was none left.

    ``protocol.eval_batch`` is in the key, so a smaller batch is another trial.

    Raises:
        OutOfMemoryError: there is too little even then; the hint says which batch to set.
    """

    def cure() -> tuple[str, str]:
        message = f"the evaluation needs more memory than there is with protocol.eval_batch = {batch}"
        half = f"--set protocol.eval_batch={batch // 2} (a new trial: the batch is a part of its key, as it moves last bits)"
        return message, half if batch > 1 else "use a larger accelerator, or model.dtype=bfloat16"

    return device_memory.within_memory(forward, f"an evaluation of {batch} rows", cure)
