"""What an export may be; imports no torch."""

from __future__ import annotations

from enum import StrEnum


class Form(StrEnum):
    """What an export is."""

    MODEL = "model"
    TENSORS = "tensors"
    ADAPTER = "adapter"
