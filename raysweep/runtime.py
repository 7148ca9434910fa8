"""What this process computes on; never part of a trial's key."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """Return the GPU that torch sees first, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
