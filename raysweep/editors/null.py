"""The editor that does nothing: the floor of every table, and a fake for tests."""

from __future__ import annotations

from collections.abc import Mapping

from raysweep.editors.base import BaseEditor, EditorConfig, EditStep
from raysweep.models.patches import WeightDelta


class NullConfig(EditorConfig):
    """No hyper-parameters."""


class Null(BaseEditor[NullConfig, None]):
    """Proposes an empty patch."""

    name = "null"
    version = 1
    needs = ()
    spans_devices = True
    config_type = NullConfig

    @classmethod
    def working_bytes(cls, config: NullConfig, shape: object, size: int) -> Mapping[str, int]:
        """Return nothing."""
        return {}

    def edited_parameters(self, lm: object) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def edit(self, lm: object, batch: object, state: None, **_: object) -> EditStep[None]:
        """Propose no change."""
        return EditStep(WeightDelta({}), state)
