"""An editor, ours or plain, with published hyper-parameters, ready to write records into a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.plain import alphaedit as plain_alphaedit
from benchmarks.plain import common
from benchmarks.plain import ft as plain_ft
from benchmarks.plain import grace as plain_grace
from benchmarks.plain import memit as plain_memit
from benchmarks.plain import rome as plain_rome
from raysweep.config.hparams import find
from raysweep.config.schema import EditorSpec, ModelSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord
from raysweep.workspace import Workspace

Write = Callable[[Sequence[EditRecord]], Mapping[str, float]]
SIMIE_LAM = 10.0


@dataclass(frozen=True, slots=True)
class Arm:
    """An editor and how it is used.

    Attributes:
        editor: its name.
        together: how many records it takes at once, none seeing another.
        simie: inside SimIE (sequential).
        captured: by recorded steps (``value.captured``), where the device can record; elsewhere by ordinary ones.
    """

    editor: str
    together: int = 1
    simie: bool = False
    captured: bool = False

    @property
    def label(self) -> str:
        """``memit+simie``, ``memit x16``, ``captured memit``."""
        before, simie = "captured " if self.captured else "", "+simie" if self.simie else ""
        return f"{before}{self.editor}{simie}{f' x{self.together}' if self.together > 1 else ''}"

    @property
    def recorded(self) -> bool:
        """Whether steps are recorded here."""
        return self.captured and torch.accelerator.is_available()

    def spec(self, shape: models.Shape, steps: int = 0) -> EditorSpec:
        """Return the editor with the hyper-parameters of *shape*; *steps* replaces the length of its optimisation."""
        source = find(self.editor, ModelSpec(name=shape.hparams), Workspace(Path(__file__).parents[2]))
        assert source is not None, f"hparams/{self.editor}/{shape.hparams}.yaml is not there"
        config: dict[str, Any] = {k: v for k, v in source.tree.items() if k != "for"}
        last = int(str(shape.sizes.get("num_hidden_layers") or shape.sizes.get("n_layer"))) - 1
        for key in {"layer", "layers"} & config.keys():
            blocks = config[key]
            # A reduced shape may have fewer blocks than the published one.
            config[key] = min(blocks, last) if key == "layer" else sorted({min(block, last) for block in blocks})
        if "contexts" in config:
            config["contexts"] = {"templates": models.TEMPLATES}
        if "value" in config:
            config["value"] = dict(config["value"])
        # Steps and batch stand where the optimisation is described: in a part of its own, or among the editor's keys.
        optimisation = config.get("value", config)
        optimisation["steps"] = steps or shape.steps or optimisation["steps"]
        if self.recorded:
            optimisation["captured"] = True
        if self.together > 1:
            optimisation["batch"] = self.together
        wraps = (WrapSpec(name="simie", config={"lam": SIMIE_LAM}),) if self.simie else ()  # type: ignore[arg-type]
        return EditorSpec(name=self.editor, config=config, wrap=wraps)  # type: ignore[arg-type]

    def steps(self, shape: models.Shape) -> int:
        """Return how many steps the optimisation of *shape*'s hyper-parameters has at most."""
        config: Any = self.spec(shape).config
        return int(getattr(config, "value", config).steps)

    def ours(self, lm: LanguageModel, shape: models.Shape, steps: int = 0) -> tuple[Write, Ledger]:
        """Return what writes records with our editor, and the ledger that takes everything back."""
        editor = build_editor(self.spec(shape, steps))
        given = models.artifacts(lm, editor)
        ledger, state = Ledger(lm), editor.begin(lm, given)

        def write(batch: Sequence[EditRecord]) -> Mapping[str, float]:
            nonlocal state
            if self.together > 1:
                batches, rngs = [[record] for record in batch], [_fresh() for _ in batch]
                if editor.is_stateless:
                    return editor.edit_many(lm, batches, artifacts=given, rngs=rngs)[0].stats
                editor.propose_many(lm, batches, artifacts=given, rngs=rngs)
                return {}
            step = editor.edit(lm, batch, state, artifacts=given, rng=_fresh())
            ledger.apply(step.patch)
            state = step.state
            return step.stats

        return write, ledger

    def plain(self, lm: LanguageModel, shape: models.Shape, steps: int = 0) -> Write:
        """Return what computes edits the published way (``benchmarks/plain``); the model stays as it is."""
        editor: Any = build_editor(self.spec(shape, steps))
        if self.editor == "grace":
            return _plain_codebook(lm, editor.config)
        make = _plain_edit(lm, editor, models.artifacts(lm, editor))

        def write(batch: Sequence[EditRecord]) -> Mapping[str, float]:
            for record in batch:
                make(lm, record)
            return {}

        return write


def _plain_edit(
    lm: LanguageModel, editor: Any, given: Mapping[str, Any]
) -> Callable[[LanguageModel, EditRecord], common.Changes]:
    """Return the plain counterpart of *editor*, with what it computes once for a run computed."""
    config = editor.config
    if editor.name == "ft":
        return partial(plain_ft.edit, config=config)
    kind = "projector" if editor.name == "alphaedit" else "moments"
    matrices: dict[int, Tensor] = {
        int(name.partition("/")[2]): one.tensors[kind].to(lm.device)
        for name, one in given.items()
        if name.startswith(f"{kind}/")
    }
    if editor.name == "alphaedit":
        memory = plain_alphaedit.begin(config, matrices)
        return partial(
            plain_alphaedit.edit, config=config, contexts=models.TEMPLATES, projectors=matrices, memory=memory
        )
    if editor.name == "rome":
        inverse = plain_rome.inverses(config, matrices)
        return partial(plain_rome.edit, config=config, contexts=models.TEMPLATES, inverse=inverse)
    return partial(plain_memit.edit, config=config, contexts=models.TEMPLATES, moments=matrices)


def _plain_codebook(lm: LanguageModel, config: Any) -> Write:
    book = plain_grace.Book()
    width = len(lm.logical(f"{lm.layout.mlp_matrix(config.layer, config.matrix)}.weight"))

    def write(batch: Sequence[EditRecord]) -> Mapping[str, float]:
        for record in batch:
            start = torch.rand(width, generator=_fresh()).to(lm.device, lm.dtype)
            plain_grace.edit(lm, record, config, book, start)
        return {}

    return write


def _fresh() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)
