"""The editor that answers from a table: the ceiling of every table, and a fake memory editor for tests.

It reads the records' own probes, which no honest editor may do, and replaces the output head by one that knows the final
hidden state of each asked prefix. Rel, Gen and Loc are 1 by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from raysweep.editors.base import BaseEditor, EditInputs, EditorConfig, EditStep
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import ModulePatch
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models import tokens
    from raysweep.models.forward import blocks
    from raysweep.models.lm import LanguageModel
    from raysweep.models.modules import table_head
    from raysweep.models.sizes import ModelSize
else:
    torch, tokens = lazy("torch"), lazy("raysweep.models.tokens")
    blocks, table_head = lazy("raysweep.models.forward.blocks"), lazy("raysweep.models.modules.table_head")


PROBES = 2  # of a record, with its own answer, about


class OracleConfig(EditorConfig):
    """No hyper-parameters."""


class OracleState(TypedDict):
    """The table: final hidden states ``keys [n, d]`` (fp32), and the next id of each, ``ids [n]`` (int64)."""

    keys: Tensor
    ids: Tensor


class Oracle(BaseEditor[OracleConfig, OracleState]):
    """Remembers ``final hidden state → next id`` for every position of the records' own answers."""

    name = "oracle"
    version = 1
    needs = ()
    config_type = OracleConfig
    patch_kind, spans_devices = "modules", True

    @classmethod
    def working_bytes(cls, config: OracleConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what a pass over the probes of one record takes."""
        return {"activations": activations.passing(shape, size, tokens=PROBES * activations.ROW)}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> OracleState:
        """Return an empty table."""
        width = lm.weight(f"{lm.layout.embed}.weight").shape[1]
        ids = torch.zeros(0, dtype=torch.int64, device=lm.device)
        return {"keys": torch.zeros(0, width, device=lm.device), "ids": ids}

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: OracleState, **given: Unpack[EditInputs]
    ) -> EditStep[OracleState]:
        """Write down the answers of the batch's own probes."""
        scored = [
            tokens.labelled_ids(lm, p.prompt, tokens.join(p.prompt, p.target))
            for r in batch
            for p in r.probes
            if p.against == "target"
        ]
        # Each probe with its answer is one row [T]; the final states [B, T, d] are what the head sees.
        ids, mask = tokens.pad([s.ids for s in scored], lm.device)
        with torch.no_grad():
            hidden = blocks.run(lm, ids=ids, mask=mask).float()
        keys, answers = [state["keys"]], [state["ids"]]
        for i, s in enumerate(scored):
            # the state before each answer token predicts it
            keys.append(hidden[i, s.start - 1 : len(s.ids) - 1])
            answers.append(torch.tensor(s.labels, device=lm.device))
        new: OracleState = {"keys": torch.cat(keys), "ids": torch.cat(answers)}
        return EditStep(self.module_patch(lm, new), new, {"entries": float(len(new["ids"]))})

    def module_patch(self, lm: LanguageModel, state: OracleState) -> ModulePatch:
        """Return the patch that *state* stands for."""
        head = table_head.unwrap(lm.part(lm.layout.head))
        return ModulePatch({lm.layout.head: table_head.TableHead(head, state["keys"], state["ids"])})
