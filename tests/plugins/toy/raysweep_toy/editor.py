"""An editor: it adds a number to every entry of the first value matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep import Editor
from raysweep.config.schema import Positive
from raysweep.editors.base import EditorConfig, EditStep
from raysweep.models.patches import Dense, WeightDelta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep import EditRecord
    from raysweep.models.lm import LanguageModel


class ShiftConfig(EditorConfig):
    """Its one hyper-parameter."""

    size: Positive = 1.0


class Shift(Editor[ShiftConfig, None]):
    """Whatever the records say, ``size`` is added."""

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the first value matrix."""
        return (f"{lm.layout.mlp_out.format(0)}.weight",)

    def edit(self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **_: object) -> EditStep[None]:
        """Propose the shift."""
        (name,) = self.edited_parameters(lm)
        change = Dense(0 * lm.logical(name) + self.config.size)
        return EditStep(patch=WeightDelta({name: change}), state=state, stats={"size": self.config.size})

    name = "shift"
    version = 1
    config_type = ShiftConfig
