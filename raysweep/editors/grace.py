"""GRACE: a codebook of keys, values and radii around one linear map (Hartvigsen et al. 2023; docs/methods/grace.md).

The map's output at the query's token (the prompt's last one) is replaced by the value of the nearest key, if it is near enough::

    h(x) = ν_i   if ‖x − κ_i‖₂ ≤ ε_i, i = argmin_j ‖x − κ_j‖₂,      else W x + b

An edit with query ``x`` makes an entry ``(x, ν, ε_init)``, or uses the nearest one, or splits the space between two
(``grace_entries.py``); then ``ν`` alone is trained by Adam on the mean cross-entropy of the target. The weights never change.

How a value is trained is in ``grace_values.py``.

Shape legend: ``n`` entries; ``κ [n, d_in]``, ``ν [n, d_out]``, ``ε [n]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, Unpack, cast

from raysweep.config.schema import Block, Count, Positive
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors import grace_entries
from raysweep.editors.base import KEYS_PER_EDIT, BaseEditor, EditInputs, EditorConfig, EditStep, JointInputs, Proposal
from raysweep.editors.grace_entries import GraceState
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import ModulePatch
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors import grace_values
    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
    from raysweep.models.modules import codebook, replacement
    from raysweep.models.sizes import ModelSize
else:
    torch, tokens = lazy("torch"), lazy("raysweep.models.tokens")
    grace_values = lazy("raysweep.editors.grace_values")
    codebook, replacement = lazy("raysweep.models.modules.codebook"), lazy("raysweep.models.modules.replacement")

# relative to a query and its distance: by how much another batch may round the same query otherwise
_ROUNDING = 1e-5


class GraceConfig(EditorConfig):
    """Hyper-parameters of GRACE.

    Attributes:
        layer: the block that gets the codebook.
        matrix: its first linear map (``in``: c_fc, gate_proj) or its value matrix (``out``).
        steps (updates): Adam updates of the value, per edit.
        lr: of Adam, fresh for each edit.
        radius (distance of hidden states): of a new key.
        start: a value starts from uniform random numbers (``cold``) or from the map's present output (``warm``).
        expand: what an edit with a neighbour's own target does to it: ``coverage`` widens its radius, ``moving_average``
            also moves its key half-way.
        replace: where a hit replaces the output: at the prompt's ``last`` token, at all tokens before it (``prompt``), at
            ``all`` tokens.
        ref: targets are "the same" by the published rule (mean of a label vector that includes the prompt's masked positions,
            and that of the entry mirrored in the table; quirk Q18), and a query that meets a key exactly is a neighbour like
            any other. Off: targets are compared id by id, an edit of a known key with another target takes its entry over, and what
            was just written lies inside the radius of its entry, rounding included.
        batch (records): records whose values are trained together, with ``matrix: out``; each enters the codebook in its turn.
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"num_pert", "reg", "val_reg", "dropout", "dist_fn"})
    added: ClassVar[frozenset[str]] = frozenset({"batch"})
    theirs: ClassVar[Table] = tables.GRACE

    layer: Block
    matrix: Literal["in", "out"] = "out"
    steps: Count = 50
    lr: Positive = 1.0
    radius: Positive = 1.0
    start: Literal["cold", "warm"] = "cold"
    expand: Literal["coverage", "moving_average"] = "coverage"
    replace: Literal["last", "prompt", "all"] = "last"
    ref: bool = False
    batch: Count = 1


class Grace(BaseEditor[GraceConfig, GraceState]):
    """Writes each record into a codebook; the model's weights stay as they are."""

    name = "grace"
    version = 2
    config_type = GraceConfig
    patch_kind = "modules"
    paper = "Hartvigsen et al. 2023, arXiv 2211.11031"

    @classmethod
    def state_bytes(
        cls, config: GraceConfig, matrices: Sequence[tuple[int, int]], columns: int
    ) -> Mapping[str, int] | None:
        """Return the bytes of a codebook with an entry for each edit, which is the most it has: key, value and radius in fp32."""
        entries = columns // KEYS_PER_EDIT
        return {"codebook": 4 * entries * sum(d_out + d_in + 1 for d_out, d_in in matrices)}

    @classmethod
    def working_bytes(cls, config: GraceConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what the training of one value keeps of the blocks above."""
        blocks = max(shape.layers - 1 - config.layer, 0)
        kept = activations.kept_for_gradients(shape, size, blocks=blocks, packs=1, tokens=activations.ROW)
        return {"activations": kept + activations.of_the_head(shape, size, predictions=activations.TARGET)}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> GraceState:
        """Return an empty codebook."""
        # an earlier codebook may stand around the map; the sizes are those of the bare one
        d_out, d_in = replacement.weight_and_bias(replacement.unwrap(lm.part(self._name(lm))))[0].shape
        empty = torch.zeros(0, device=lm.device)
        return {
            "keys": empty.reshape(0, d_in),
            "values": empty.reshape(0, d_out),
            "radii": empty,
            "labels": [],
            "masked": [],
        }

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: GraceState, **given: Unpack[EditInputs]
    ) -> EditStep[GraceState]:
        """Write the records one after the other (the method knows no batches)."""
        stats: dict[str, float] = {}
        for record in batch:
            # the last record's stats stand for the batch: its losses, and the size of the book after all of it
            state, stats = self._write(lm, record, state, given["rng"])
        return EditStep(self.module_patch(lm, state), state, stats)

    def module_patch(self, lm: LanguageModel, state: GraceState) -> ModulePatch:
        """Return the patch that *state* stands for."""
        name = self._name(lm)
        return ModulePatch({name: self._module(lm, state["keys"], state["values"], state["radii"])})

    # The value of a new entry depends on no other entry, so it may be trained before it is known where it goes.

    def can_propose(self) -> bool:
        """Whether the codebook replaces a block's last map: of the first map, what is read depends on the entry's radius."""
        return self.config.matrix == "out"

    @property
    def group_size(self) -> int:
        """``batch`` where values may be trained apart."""
        return self.config.batch if self.can_propose() else 1

    def propose(self, lm: LanguageModel, batch: Sequence[EditRecord], **given: Unpack[EditInputs]) -> Proposal:
        """Train the value of a new entry for each record."""
        return {str(i): self._trained(lm, [record], [given["rng"]])[0] for i, record in enumerate(batch)}

    def propose_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[Proposal]:
        """Train the values of all batches, of one record each, in the same passes."""
        if any(len(batch) != 1 for batch in batches):
            return super().propose_many(lm, batches, **given)
        trained = self._trained(lm, [batch[0] for batch in batches], given["rngs"])
        return [{"0": one} for one in trained]

    def absorb(self, lm: LanguageModel, state: GraceState, proposal: Proposal) -> EditStep[GraceState]:
        """Put each record's entry into the codebook; where it is a neighbour's, train that one's value on."""
        stats: dict[str, float] = {}
        for number in range(len(proposal)):
            # what propose returned, here or elsewhere
            one = cast("TrainedValue", proposal[str(number)])
            text = tokens.LabelledIds(tuple(one["ids"]), one["start"])
            new, entry, event = grace_entries.place(
                state, one["query"], one["value"], (list(text.labels), text.start), self.config
            )
            # a neighbour's value stands for this record too, so it is trained on with this text, from where it is
            if event in grace_entries.TRAINED_ON:
                state, stats = self._train_entry(lm, self._reading(lm, [text]), new, entry, event)
            else:
                state, stats = new, _stats(new, event, one["losses"])
        return EditStep(self.module_patch(lm, state), state, stats)

    def _trained(
        self, lm: LanguageModel, records: Sequence[EditRecord], rngs: Sequence[torch.Generator]
    ) -> list[TrainedValue]:
        """Return the value of a new entry for each of *records*, trained together."""
        texts = [tokens.labelled_ids(lm, r.prompt, tokens.join(r.prompt, r.target)) for r in records]
        reading = self._reading(lm, texts)
        starts = torch.stack([self._start(output, rng) for output, rng in zip(reading.outputs, rngs, strict=True)])
        values, losses = reading.train(lm, starts, steps=self.config.steps, lr=self.config.lr)
        return [
            {"ids": list(text.ids), "start": text.start, "query": query, "value": value, "losses": [each[0], each[-1]]}
            for text, query, value, each in zip(texts, reading.queries, values, losses, strict=True)
        ]

    def start_value(self, width: int, rng: torch.Generator) -> Tensor:
        """Draw the start of a cold value."""
        # uniform in [0, 1), as published, and on the CPU, so that every device starts from the same numbers
        return torch.rand(width, generator=rng)

    def _start(self, output: Tensor, rng: torch.Generator) -> Tensor:
        """Return where a new value starts, given the map's present *output* ``[d_out]``."""
        return output if self.config.start == "warm" else self.start_value(len(output), rng).to(output.device)

    def _name(self, lm: LanguageModel) -> str:
        return lm.layout.mlp_matrix(self.config.layer, self.config.matrix)

    def _module(self, lm: LanguageModel, keys: Tensor, values: Tensor, radii: Tensor) -> codebook.Codebook:
        bare = replacement.unwrap(lm.part(self._name(lm)))
        # the published codebook compares without slack, and may lose its own query in another batch
        rounding = 0.0 if self.config.ref else _ROUNDING
        return codebook.Codebook(bare, keys, values, radii, replace=self.config.replace, rounding=rounding)

    def _write(
        self, lm: LanguageModel, record: EditRecord, state: GraceState, rng: torch.Generator
    ) -> tuple[GraceState, dict[str, float]]:
        """Return the codebook with *record* in it, and what to log."""
        text = tokens.labelled_ids(lm, record.prompt, tokens.join(record.prompt, record.target))
        reading = self._reading(lm, [text])
        target = (list(text.labels), text.start)
        value = self._start(reading.outputs[0], rng)
        new, entry, event = grace_entries.place(state, reading.queries[0], value, target, self.config)
        return self._train_entry(lm, reading, new, entry, event)

    def _reading(self, lm: LanguageModel, texts: Sequence[tokens.LabelledIds]) -> grace_values.Reading:
        where = (self.config.layer, self.config.matrix, self.config.replace)
        return grace_values.Reading.of(lm, texts, self._name(lm), *where)

    def _train_entry(
        self, lm: LanguageModel, reading: grace_values.Reading, new: GraceState, entry: int, event: str
    ) -> tuple[GraceState, dict[str, float]]:
        """Train the value of one entry of *new*, in place; return the codebook and what to log."""
        # A codebook of this one entry: during training the query hits it by construction.
        module = None
        # what the first map puts out runs through the rest of its block, so a module must stand in for it
        if self.config.matrix == "in":
            module = self._module(lm, new["keys"][entry, None], new["values"][entry, None], new["radii"][entry, None])
        start = new["values"][entry, None]
        values, losses = reading.train(lm, start, steps=self.config.steps, lr=self.config.lr, module=module)
        # place() returned copies, so the caller's codebook stays as it was
        new["values"][entry] = values[0]
        return new, _stats(new, event, losses[0])


class TrainedValue(TypedDict):
    """A record's entry before it has a place in the codebook.

    Attributes:
        ids, start: of its text, and where the target begins in it.
        query: ``[d_in]``, fp32.
        value: ``[d_out]``, fp32, trained.
        losses: the first and the last.
    """

    ids: list[int]
    start: int
    query: Tensor
    value: Tensor
    losses: list[float]


def _stats(book: GraceState, event: str, losses: Sequence[float]) -> dict[str, float]:
    stats = {"loss": losses[-1], "first_loss": losses[0], "entries": float(len(book["keys"]))}
    return stats | {name: float(name == event) for name in grace_entries.EVENTS}
