"""An editor that takes its time: each edit adds a little to one matrix, by the record, after a sleep; on demand it fails."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from raysweep.config.schema import Block
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep
from raysweep.hashing import text_digest
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Dense, WeightDelta
from raysweep.records import EditRecord


class DriftConfig(EditorConfig):
    layer: Block = 0
    seconds: float = 0.0
    fails: bool = False


class Drift(BaseEditor[DriftConfig, None]):
    name = "drift"
    version = 1
    config_type = DriftConfig

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        return (f"{lm.layout.mlp_out.format(self.config.layer)}.weight",)

    def edit(self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **_: object) -> EditStep[None]:
        time.sleep(self.config.seconds)
        if self.config.fails:
            raise ValueError("asked to fail")
        (name,) = self.edited_parameters(lm)
        weight = lm.weight(name).T if lm.transposed(name) else lm.weight(name)
        generator = torch.Generator().manual_seed(int(text_digest(batch[0].id)[:8], 16))
        return EditStep(WeightDelta({name: Dense(1e-3 * torch.randn(weight.shape, generator=generator))}), state)
