"""What the Ray that this process is connected to has for trials, as :mod:`raysweep.tune.placement` counts it. Imports Ray."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence

import ray
from ray import tune
from ray.util import placement_group, placement_group_table

from raysweep.errors import SpecError
from raysweep.tune.placement import NodeKind, Supply, amounts, fits


def supply() -> Supply:
    """Return the nodes that are up, and what an autoscaler may still bring."""
    up = [
        NodeKind(str(node["NodeManagerAddress"]), node["Resources"], node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
    to_come, most = _to_come()
    return Supply(up, to_come, most)


def _to_come() -> tuple[list[NodeKind], dict[str, float]]:
    """Return the groups of nodes in the autoscaler's configuration and its bounds, as far as it told Ray; mostly it did not."""
    try:
        # The source of Ray's `get_max_resources_from_cluster_config`, which gives only the sums over all groups: these let a
        # process pass that fits on no single node.
        from ray._private.state import state

        config = state.get_cluster_config()
    except (ImportError, AttributeError):  # private: another Ray may not have it
        return [], {}
    if config is None:
        return [], {}
    groups = [
        NodeKind(
            group.name or "a node to come",
            # -1 stands for "as much as is asked for", as a count and as an amount.
            {name: math.inf if _is_unbounded(amount) else float(amount) for name, amount in group.resources.items()},
            None,
            math.inf if group.max_count == -1 else float(group.max_count),
        )
        for group in config.node_group_configs
        if group.max_count
    ]
    return groups, {name: float(amount) for name, amount in config.max_resources.items()}


def _is_unbounded(amount: int) -> bool:
    # The field has no sign, so that -1 arrives as the largest number of 64 bits.
    return amount < 0 or amount >= sys.maxsize


def bundles(asked: Mapping[str, float], processes: int, labels: Mapping[str, str]) -> tune.PlacementGroupFactory:
    """Return the request for a trial's *processes*, each of which asks for *asked* on a node with *labels*.

    Raises:
        SpecError: this Ray cannot place by labels.
    """
    if not labels:
        return tune.PlacementGroupFactory([dict(asked)] * processes)
    if "bundle_label_selector" not in inspect.signature(placement_group).parameters:
        raise SpecError(
            f"resources.labels: placement groups of Ray {ray.__version__} know no labels", hint="pip install -U ray"
        )
    return tune.PlacementGroupFactory([dict(asked)] * processes, bundle_label_selector=[dict(labels)] * processes)


def has_place() -> bool:
    """Tell whether some trial of this process has been given its place, so that only its processes are still to start."""
    job = ray.get_runtime_context().get_job_id()
    # The id of a placement group ends in that of the job that made it.
    return any(name.endswith(job) and group["state"] == "CREATED" for name, group in placement_group_table().items())


def why_waiting(asked: Mapping[str, float], processes: int, labels: Mapping[str, str]) -> str:
    """Return what a trial that waits for its place asks for, and how many nodes there are."""
    up = supply().matching(labels).up
    # A head without processors is no node to a trial.
    able = [node for node in up if node.resources.get("CPU")]
    return reason(asked, processes, able)


def reason(asked: Mapping[str, float], processes: int, nodes: Sequence[NodeKind]) -> str:
    """Return what a trial asks for, and what can be said of *nodes*."""
    each = amounts(asked) if processes == 1 else f"{processes} times {amounts(asked)}"
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} up"
    state = "none free" if any(fits(asked, node) for node in nodes) else "none large enough"
    return f"a trial asks for {each}; {f'{count}, {state}' if nodes else 'no node is up'}"
