"""Whether a trial's processes can be placed: arithmetic over nodes, one by one. Nothing here imports Ray.

A cluster's totals say little: two nodes with one GPU each never hold a process that asks for two, and Ray would let it wait for
ever without a word. So each process must fit on one node, and the processes of one trial must fit together, over the nodes
that are up or over those that an autoscaler may bring.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raysweep.config.sweep_schema import ResourceSpec
from raysweep.errors import SpecError

_ROUNDING = 1e-9  # of shares such as 0.1, of which ten are a whole
_LISTED = re.compile(r"in\((.*)\)")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A node, or as many as there may be of a kind.

    Attributes:
        name: address of a node, or name of the group to which an autoscaler may add.
        resources: what one of them offers.
        labels: its labels; None = not known before one is up.
        count: how many there are, or may be; infinity = without bound.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] | None = field(default_factory=dict)
    count: float = 1


@dataclass(frozen=True, slots=True)
class Supply:
    """What a cluster has, and what it could have.

    Attributes:
        up: the nodes that are up.
        to_come: the groups of nodes that an autoscaler keeps; empty where there is none, or it does not say.
        most: how much of a resource the autoscaler brings at most over all groups; a resource without an entry has no bound.
    """

    up: Sequence[NodeKind]
    to_come: Sequence[NodeKind] = ()
    most: Mapping[str, float] = field(default_factory=dict)

    def matching(self, labels: Mapping[str, str]) -> Supply:
        """Return the part of it whose labels are as *labels* ask, or may be."""
        up, to_come = ([kind for kind in kinds if selects(labels, kind.labels)] for kinds in (self.up, self.to_come))
        return Supply(up, to_come, self.most)


def selects(selectors: Mapping[str, str], labels: Mapping[str, str] | None) -> bool:
    """Tell whether *labels* are as *selectors* ask, by Ray's rules; of labels that are not known yet, that they may be.

    >>> selects({"card": "in(A100, H100)"}, {"card": "H100"}), selects({"card": "!H100"}, {"card": "H100"})
    (True, False)
    """
    return labels is None or all(_selected(wanted, labels.get(name)) for name, wanted in selectors.items())


def _selected(wanted: str, found: str | None) -> bool:
    bare = wanted.removeprefix("!")
    listed = _LISTED.fullmatch(bare)
    values = [value.strip() for value in listed[1].split(",")] if listed else [bare]
    # A node without the label is not one of those that are ruled out.
    return (found in values) != wanted.startswith("!")


def request(resources: ResourceSpec, supply: Supply, processes: int = 1) -> dict[str, float]:
    """Return what each of the *processes* of a trial asks Ray for.

    Args:
        resources: what the sweep asks for.
        supply: what there is, and may be.
        processes: of one trial, placed together or not at all.

    Raises:
        SpecError: no node can ever hold a process, or the nodes together cannot hold them all.
    """
    labels = resources.labels
    matching = supply.matching(labels)
    kinds = [*matching.up, *matching.to_come]
    if labels and not kinds:
        raise SpecError(
            f"resources.labels: no node has {_labels_text(labels)}; {_found_labels(labels, supply)}",
            hint="`ray status -v` and `ray list nodes` tell labels; `ray start --labels` gives them",
        )
    gpu = resources.gpu
    if gpu == "auto":
        gpu = 1.0 if any(kind.resources.get("GPU", 0) >= 1 for kind in kinds) else 0.0
    if gpu > 1 and gpu % 1:
        raise SpecError(
            f"resources.gpu = {gpu:g}: above 1 it is a whole number", hint="Ray shares one GPU, not several"
        )
    asked = {"CPU": resources.cpu, "GPU": gpu, "memory": float(resources.memory)}
    asked = {name: amount for name, amount in asked.items() if amount}
    if not any(fits(asked, kind) for kind in kinds):
        raise SpecError(_too_large(asked, kinds), hint=_hint(supply))
    together = max(capacity(asked, matching.up), _limited(asked, matching))
    if together < processes:
        raise SpecError(
            f"resources.shards = {processes} processes with {amounts(asked)} each, but all nodes together hold {together:g}",
            hint=_hint(supply),
        )
    return asked


def capacity(asked: Mapping[str, float], kinds: Sequence[NodeKind]) -> float:
    """Return how many processes that ask for *asked* the nodes of *kinds* hold at once.

    >>> capacity({"CPU": 2}, [NodeKind("a", {"CPU": 3}), NodeKind("b", {"CPU": 3})])
    2.0
    """
    return float(sum(kind.count * held for kind in kinds if (held := fits(asked, kind))))


def fits(asked: Mapping[str, float], kind: NodeKind) -> int:
    """Return how many processes that ask for *asked* one node of *kind* holds at once."""
    return min((_times(kind.resources.get(name, 0), amount, name) for name, amount in asked.items()), default=0)


def _times(available: float, amount: float, name: str) -> int:
    if math.isinf(available):
        return sys.maxsize  # of what a group of nodes has without bound
    if name == "GPU" and amount < 1:
        # A share of a card lies on one card: three shares of 0.6 do not fit on two cards.
        return math.floor(available + _ROUNDING) * math.floor(1 / amount + _ROUNDING)
    return math.floor(available / amount + _ROUNDING)


def _limited(asked: Mapping[str, float], supply: Supply) -> float:
    """Return how many processes fit once an autoscaler has brought all that it may."""
    bounds = (supply.most[name] / amount for name, amount in asked.items() if name in supply.most)
    return min(capacity(asked, supply.to_come), *(math.floor(bound + _ROUNDING) for bound in bounds), math.inf)


def amounts(asked: Mapping[str, float]) -> str:
    """Return *asked* in words.

    >>> amounts({"CPU": 2.0, "GPU": 0.5, "memory": 3 << 30})
    '2 CPU, 0.5 GPU, 3 GiB of memory'
    """
    return ", ".join(
        f"{amount / 2**30:.3g} GiB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in asked.items()
    )


def _too_large(asked: Mapping[str, float], kinds: Sequence[NodeKind]) -> str:
    """Return the sentence that names the largest of *kinds*, and what it lacks of *asked*."""
    first = f"no node can hold a trial, which asks for {amounts(asked)}"
    if not kinds:
        return f"{first}: none is up"

    def share(kind: NodeKind) -> tuple[float, ...]:
        # The node that lacks least: of what it has least of, then of all.
        shares = [min(kind.resources.get(name, 0) / amount, 1.0) for name, amount in asked.items()]
        return min(shares), sum(shares)

    largest = max(kinds, key=share)
    has = {name: largest.resources.get(name, 0.0) for name in asked}
    lacks = {name: amount - has[name] for name, amount in asked.items() if amount - has[name] > _ROUNDING}
    short = f"lacks {amounts(lacks)}" if lacks else "has no whole card left for the share"
    return f"{first}: the largest, {largest.name}, has {amounts(has)} and {short}"


def _hint(supply: Supply) -> str:
    less = "ask for less (resources.cpu, gpu, memory, shards), or join a larger cluster with --address"
    # Most autoscalers do not tell Ray what they could bring.
    return less if supply.to_come else f"{less}; where an autoscaler brings larger nodes, let it start one first"


def _labels_text(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _found_labels(wanted: Mapping[str, str], supply: Supply) -> str:
    """Return what the nodes have under the names of *wanted*."""
    known = [kind.labels for kind in supply.up if kind.labels]
    found = sorted({f"{name}={labels[name]}" for labels in known for name in wanted if name in labels})
    return f"there is {', '.join(found)}" if found else "none has a label of that name"
