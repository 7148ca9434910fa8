"""An editor: it adds a multiple of ones to a value matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysweep import Editor, EditRecord
from raysweep.config.schema import Block, Positive
from raysweep.editors.base import EditorConfig, EditStep
from raysweep.lazy import lazy
from raysweep.models.patches import Dense, WeightDelta

if TYPE_CHECKING:
    import torch

    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")


class ShiftConfig(EditorConfig):
    """Its hyper-parameters."""

    layer: Block = 0
    size: Positive = 1.0


class Shift(Editor[ShiftConfig, None]):
    """Adds ``size`` to every entry of a matrix, whatever the records say."""

    name = "shift"
    version = 1
    config_type = ShiftConfig

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrix of the chosen block."""
        return (f"{lm.layout.mlp_out.format(self.config.layer)}.weight",)

    def edit(self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **_: object) -> EditStep[None]:
        """Propose the shift."""
        (name,) = self.edited_parameters(lm)
        change = torch.full_like(lm.logical(name), self.config.size)
        return EditStep(WeightDelta({name: Dense(change)}), state, {"size": self.config.size})
