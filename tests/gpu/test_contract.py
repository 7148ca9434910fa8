"""The shipped exam on a device: what editors and wrappers promise on the CPU holds where a tensor left on the CPU is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from raysweep.artifacts import Artifact
from raysweep.config.schema import EditorSpec
from raysweep.editors.base import AnyEditor
from raysweep.editors.build import build_editor
from raysweep.editors.wrappers import WRAPPERS
from raysweep.models.lm import LanguageModel
from raysweep.runtime import repeatable
from raysweep.testing import editor_contract
from raysweep.testing.editor_contract import Exam, promises_of
from raysweep.testing.fixtures import tiny_lm
from raysweep.testing.sham_device import ShamDevice, device, move
from tests.contracts.test_editors import CONFIGS, label, specs

# Neither computes on the device: a configuration's keys, and the names of what an editor asks for.
ELSEWHERE = {editor_contract.config_round_trips, editor_contract.names_its_artifacts}


@dataclass(frozen=True)
class OnDevice(Exam):
    """An exam whose models are all equal, so that what is computed from one of them is computed once."""

    made: dict[str, Artifact] = field(default_factory=dict)

    def artifacts(self, editor: AnyEditor, lm: LanguageModel) -> dict[str, Artifact]:
        if not self.made:
            self.made.update(Exam.artifacts(self, editor, lm))
        return self.made


def on_device() -> LanguageModel:
    lm = tiny_lm("llama", bos=True)
    move(lm.module)
    return lm


def short(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return *config* with two optimisation steps: promises are about what an edit leaves behind, not about how far it gets."""
    return {k: 2 if k == "steps" else short(v) if k == "value" else v for k, v in config.items()}


def chosen() -> list[EditorSpec]:
    """Every editor once, and once inside both wrappers; test_editors.py has the others' results beside the CPU's."""
    both = [spec.wrap for spec in specs() if len(spec.wrap) == len(WRAPPERS.names())]
    plain = [EditorSpec(name=name, config=short(config)) for name, config in CONFIGS.items()]
    return plain + [EditorSpec(name="memit", config=short(CONFIGS["memit"]), wrap=wrap) for wrap in both]


@pytest.mark.parametrize("spec", chosen(), ids=label)
def test_promises_hold_on_a_device(spec: EditorSpec) -> None:
    """All promises of one editor with one model, which each of them leaves as it was.

    Operations whose bits do not repeat on a GPU are refused, as in a trial.
    """
    with ShamDevice(), repeatable(device()):
        exam = OnDevice(build=lambda: build_editor(spec), lm=on_device(), fresh=on_device)
        for promise in promises_of(exam.build(), learns=False):
            if promise not in ELSEWHERE:
                promise(exam)
