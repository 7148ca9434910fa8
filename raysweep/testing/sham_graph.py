"""A recorded step of the sham device: it refuses what a GPU refuses while it records, and when it replays.

``torch.accelerator.Graph`` cannot record on a device without kernels. This one does the work anew at each replay, so that the
numbers are right; what it holds the work to is that

* inside it nothing waits for the device and nothing is uploaded;
* whatever of its inputs it changes is left as it was by recording, which does nothing;
* the memory of its inputs is where it was when they were recorded.

Put it in the place of :func:`raysweep.models.step_graphs.graph_on`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from raysweep.testing.sham_device import ShamDevice, ShamTensor


class ShamGraph:
    """Some work on the sham device, recorded.

    Attributes:
        captures: how often it was recorded; ``replays`` and ``warm_ups`` how often it was done.
    """

    def __init__(self) -> None:
        self._inputs: list[ShamTensor] = []
        self.captures = self.replays = self.warm_ups = 0
        self._work: Callable[[], None] | None = None
        self._addresses: list[int] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do *work*."""
        self.warm_ups += 1
        work()

    def capture(self, work: Callable[[], None], inputs: Sequence[torch.Tensor]) -> None:
        """Record *work*, which reads and writes *inputs*.

        Raises:
            RuntimeError: it waits for the device or uploads something.
        """
        self._inputs = [t for t in inputs if isinstance(t, ShamTensor)]
        before = [t.held.clone() for t in self._inputs]
        self._within(work, "is not permitted while a stream is captured")
        for tensor, was in zip(self._inputs, before, strict=True):
            # those that are expanded hold a number in many places, and no step writes into them
            if not torch.equal(tensor.held, was):
                tensor.held.copy_(was)
        self._work, self._addresses = work, self._now()
        self.captures += 1

    def replay(self) -> None:
        """Do the work.

        Raises:
            RuntimeError: an input lies elsewhere by now.
        """
        assert self._work is not None, "nothing was recorded"
        if self._now() != self._addresses:
            raise RuntimeError("an input of the recorded step has moved: a GPU would read the memory of before")
        self._within(self._work, "is not what was recorded")
        self.replays += 1

    def _now(self) -> list[int]:
        return [t.held.data_ptr() for t in self._inputs]

    def _within(self, work: Callable[[], None], why: str) -> None:
        with ShamDevice() as sham:
            work()
        if sham.total.syncs or sham.total.uploads:
            asked = ", ".join(name for name, _ in sham.operations.most_common())
            raise RuntimeError(
                f"{sham.total.syncs} waits and {sham.total.uploads} uploads: that {why}; operations: {asked}"
            )


def graph_on(device: torch.device, pool: object) -> ShamGraph:
    """Return an empty graph."""
    return ShamGraph()
