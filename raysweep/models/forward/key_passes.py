"""What enters the last maps of some blocks, and what leaves the top one, while those maps are changed from the lowest upwards.

On a CPU, and where blocks do not run in few operations, each pass begins at the block changed last and goes through the model's own
modules. On an accelerator a pass begins behind that block's attention: the change of its last map moves nothing before it.

Shape legend: ``R`` rows, ``B`` packs, ``N`` tokens of a pack, ``n`` tokens without padding, ``d`` width of the stream, ``d_in`` of
a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.models import hooks, ledger
from raysweep.models.forward import blocks, device_blocks, fused, prefix_tree
from raysweep.models.forward.device_blocks import DeviceBlocks
from raysweep.models.forward.device_parts import Maps
from raysweep.models.forward.given import Given
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Delta


@dataclass(slots=True)
class ModulePasses:
    """Passes through the model's modules.

    Attributes:
        lm: the model.
        packs: the rows.
        top: the last block.
        states: ``[B, N, d]`` what enters block *start*.
        start: where the next pass begins.
    """

    lm: LanguageModel
    packs: prefix_tree.PackedRows
    top: int
    states: Tensor
    start: int

    @classmethod
    def prepare(cls, lm: LanguageModel, packs: prefix_tree.PackedRows, layers: Sequence[int]) -> ModulePasses:
        """Compute what enters the lowest layer, which does not change."""
        name = lm.layout.block.format(layers[0])
        with hooks.capture(lm, [(name, "input")]) as seen:
            # A hook sees what enters a block only when the block runs, so the pass goes one block too far.
            blocks.run_packs(lm, packs, last=layers[0])
        return cls(lm, packs, layers[-1], seen[name, "input"], layers[0])

    def read(self, layer: int, below: Mapping[str, Delta]) -> tuple[Tensor, Tensor]:
        """Return what enters the last map of *layer* ``[R, d_in]`` and what leaves the top block ``[R, d]``, at each row's end.

        Args:
            layer: above those read before.
            below: the change of the layer that was read before; earlier ones are in what enters.
        """
        block, key = self.lm.layout.block, self.lm.layout.mlp_out.format(layer)
        top, here = block.format(self.top), block.format(layer)
        with (
            # the layer that was read before is the first that this pass runs, so its change must be in place
            ledger.applied(self.lm, below),
            hooks.capture(self.lm, [(key, "input"), (top, "output"), (here, "input")]) as seen,
        ):
            blocks.run_packs(self.lm, self.packs, states=self.states, first=self.start, last=self.top)
        # No later change lies below this layer, so what enters it is final.
        self.states, self.start = seen[here, "input"], layer
        return self.packs.last_states(seen[key, "input"]), self.packs.last_states(seen[top, "output"])


@dataclass(slots=True)
class DevicePasses:
    """Passes in few operations.

    Attributes:
        lm: the model.
        blocks: up to the top one.
        last: ``[R]`` the last token of each row.
        states: ``[n, d]`` what enters block *start*.
        start: where the next pass begins.
        opened: of the layer read before, the stream beside its last map ``[n, d]`` and what enters the map ``[n, d_in]``.
    """

    lm: LanguageModel
    blocks: DeviceBlocks
    last: Tensor
    states: Tensor
    start: int
    opened: tuple[Tensor, Tensor] | None = None

    @classmethod
    def prepare(
        cls, lm: LanguageModel, packs: prefix_tree.PackedRows, mask: Tensor, layers: Sequence[int]
    ) -> DevicePasses:
        """Compute what enters the lowest layer, which does not change."""
        top = layers[-1]
        # No keys and values are given from before: what enters are whole rows.
        given = Given(0, packs.positions, mask, [None] * (top + 1), packs.real, top + 1)
        made = DeviceBlocks.prepare(lm, given)
        # Tokens are numbered without padding here, so (pack, column) is translated, once and on the host.
        last = torch.tensor(
            made.tokens_at([(pack, columns[-1]) for pack, columns in packs.row_positions]), device=mask.device
        )
        states = made.slots.take(fused.entering(lm, packs.ids, packs.positions))
        return cls(lm, made, last, made.run(states, 0, layers[0]), layers[0])

    def read(self, layer: int, below: Mapping[str, Delta]) -> tuple[Tensor, Tensor]:
        """As :meth:`ModulePasses.read`."""
        states = self.states
        if self.opened is not None:
            with ledger.applied(self.lm, below):
                # Taken anew: the maps in `blocks` are views of the parameters that `applied` has set aside.
                down = Maps.of(self.lm, [self.lm.layout.mlp_out.format(self.start - 1)])
            states = down.add_to(*self.opened)
        # What comes before the last map does not depend on that map's change, so the next pass begins here.
        self.opened = self.blocks.until_down(layer, self.blocks.run(states, self.start, layer))
        self.start = layer + 1
        # The layer's own map is still unchanged here: its change is solved from what this returns.
        above = self.blocks.run(self.blocks.down(layer, *self.opened), self.start, len(self.blocks.blocks))
        return self.opened[1][self.last], above[self.last]


def prepare(lm: LanguageModel, packs: prefix_tree.PackedRows, layers: Sequence[int]) -> ModulePasses | DevicePasses:
    """Return passes through the blocks up to the last of *layers*; call it, and them, without gradient."""
    if not packs.ids.is_cpu and device_blocks.supports(lm, 0, layers[-1] + 1):
        mask = prefix_tree.attention_mask(lm, packs.visible, packs.positions, packs.positions)
        if isinstance(mask, Tensor):
            return DevicePasses.prepare(lm, packs, mask, layers)
    return ModulePasses.prepare(lm, packs, layers)
