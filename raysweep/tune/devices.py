"""The GPUs that a process was given are used, or the trial is refused with the reason; those that it was not given stay unused."""

from __future__ import annotations

import os
import platform

from raysweep.errors import NodeError
from raysweep.lazy import lazy

# Set but empty, they hide every GPU from this process (NVIDIA's and AMD's).
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
runtime = lazy("raysweep.runtime")  # it imports torch


def take_given() -> float | None:
    """Return how many GPUs, or which share of one, Ray gave this actor; hide all from it where that is none.

    None = this is no actor of Ray's, so nobody gives any.
    It comes before anything asks torch for GPUs: what torch has seen once it sees for good.
    """
    import ray

    # Asking for the context where there is no Ray would start one.
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    gpus = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))
    if not gpus:
        # Ray leaves them all visible to an actor that asked for none; each would then compute on the first one.
        os.environ.update(dict.fromkeys(_VISIBLE, ""))
    return gpus


def demand(gpus: float) -> None:
    """Let this process compute on the *gpus* that it was given, with its share of the memory where that is less than one.

    Raises:
        NodeError: torch does not see as many, or sees some where none was given.
    """
    seen: int = runtime.visible_gpus()
    where = platform.node()
    if seen < gpus:
        noun = "GPU was" if gpus <= 1 else "GPUs were"
        raise NodeError(
            f"{where}: {gpus:g} {noun} given to this trial, but torch sees {seen}", hint=runtime.why_unseen()
        )
    if not gpus and seen:
        raise NodeError(
            f"{where}: no GPU was given to this trial (resources.gpu = 0), but torch sees {seen}",
            hint="set CUDA_VISIBLE_DEVICES to nothing before Python starts, or ask for a GPU",
        )
    if 0 < gpus < 1:
        # Ray counts shares, but keeps nobody to his: without a bound the first trial would take the memory of all.
        lazy("torch").cuda.set_per_process_memory_fraction(gpus)
