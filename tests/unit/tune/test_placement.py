"""Whether a trial can be placed: node by node, with what an autoscaler may bring, and by labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.state import state

from raysweep.config.sweep_schema import ResourceSpec
from raysweep.errors import SpecError
from raysweep.tune import placement, ray_nodes
from raysweep.tune.placement import NodeKind, Supply, capacity, fits, request, selects


def up(*nodes: Mapping[str, float], to_come: tuple[NodeKind, ...] = (), **most: float) -> Supply:
    return Supply([NodeKind(f"n{i}", node) for i, node in enumerate(nodes, 1)], to_come, most)


@pytest.mark.parametrize(
    ("resources", "supply", "processes", "asked"),
    [
        ({}, up({"CPU": 4}), 1, {"CPU": 1}),
        ({"cpu": 2, "memory": 5}, up({"CPU": 4, "GPU": 2, "memory": 9}), 1, {"CPU": 2, "GPU": 1, "memory": 5}),
        ({"gpu": 0.25}, up({"CPU": 4, "GPU": 1}), 1, {"CPU": 1, "GPU": 0.25}),
        ({"gpu": 0}, up({"CPU": 4, "GPU": 1}), 1, {"CPU": 1}),
        ({}, up({"CPU": 4}, {"CPU": 1, "GPU": 1}), 1, {"CPU": 1, "GPU": 1}),
        ({"cpu": 3}, up({"CPU": 4}, {"CPU": 4}), 2, {"CPU": 3}),
        ({"gpu": 0.5}, up({"CPU": 4, "GPU": 1}), 2, {"CPU": 1, "GPU": 0.5}),
        ({"cpu": 0.1}, up({"CPU": 1}), 10, {"CPU": 0.1}),
        # a head without processors, and nodes that the autoscaler may bring
        ({"cpu": 8}, up({}, to_come=(NodeKind("big", {"CPU": 8}, None, 2),)), 2, {"CPU": 8}),
        ({"gpu": 4}, up({"CPU": 1}, to_come=(NodeKind("any", {"CPU": math.inf, "GPU": math.inf}, None),)), 1,
         {"CPU": 1, "GPU": 4}),
        ({"cpu": 2}, up({"CPU": 1}, to_come=(NodeKind("many", {"CPU": 2}, None, math.inf),)), 1000, {"CPU": 2}),
        ({}, up({"CPU": 1}, to_come=(NodeKind("gpus", {"CPU": 2, "GPU": 1}, None, 1),)), 1, {"CPU": 1, "GPU": 1}),
    ],
)  # fmt: skip
def test_what_fits_is_asked_for(
    resources: dict[str, Any], supply: Supply, processes: int, asked: dict[str, float]
) -> None:
    assert request(ResourceSpec(**resources), supply, processes) == asked


@pytest.mark.parametrize(
    ("resources", "supply", "processes", "said"),
    [
        # together they have enough, no one of them does
        ({"gpu": 2}, up({"CPU": 4, "GPU": 1}, {"CPU": 8, "GPU": 1}), 1,
         "no node can hold a trial, which asks for 1 CPU, 2 GPU: the largest, n1, has 4 CPU, 1 GPU and lacks 1 GPU"),
        ({"cpu": 8}, up({"CPU": 2}, {"CPU": 4}), 1,
         "no node can hold a trial, which asks for 8 CPU: the largest, n2, has 4 CPU and lacks 4 CPU"),
        ({"gpu": 3}, up({"CPU": 4}), 1, "the largest, n1, has 4 CPU, 0 GPU and lacks 3 GPU"),
        # the one with processors has no GPU, the one with the GPU too few processors
        ({"cpu": 4, "gpu": 1}, up({"CPU": 8}, {"CPU": 2, "GPU": 1}), 1, "the largest, n2, has 2 CPU, 1 GPU and lacks 2 CPU"),
        ({"memory": 8 << 30}, up({"CPU": 4, "memory": 6 << 30}), 1, "lacks 2 GiB of memory"),
        ({"cpu": 3, "shards": 3}, up({"CPU": 4}, {"CPU": 4}), 3,
         "resources.shards = 3 processes with 3 CPU each, but all nodes together hold 2"),
        # 1.8 of two cards, but the third share would lie on two
        ({"gpu": 0.6, "shards": 3}, up({"CPU": 4, "GPU": 2}), 3, "all nodes together hold 2"),
        ({"gpu": 1.5}, up({"CPU": 4, "GPU": 2}), 1, "above 1 it is a whole number"),
        ({}, up(), 1, "none is up"),
        # groups of four processors never bring eight, however many there are
        ({"cpu": 8}, up({"CPU": 1}, to_come=(NodeKind("small", {"CPU": 4}, None, math.inf),)), 1,
         "the largest, small, has 4 CPU and lacks 4 CPU"),
        ({"cpu": 2, "shards": 4}, up({"CPU": 2}, to_come=(NodeKind("few", {"CPU": 2}, None, 9),), CPU=6.0), 4,
         "all nodes together hold 3"),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_with_what_is_lacking(
    resources: dict[str, Any], supply: Supply, processes: int, said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        request(ResourceSpec(**resources), supply, processes)
    assert said in caught.value.message
    assert caught.value.hint


LABELLED = Supply([
    NodeKind("a", {"CPU": 2, "GPU": 1}, {"ray.io/accelerator-type": "A100"}),
    NodeKind("b", {"CPU": 9}, {}),
])  # fmt: skip


def test_labels_narrow_the_nodes() -> None:
    wanted = {"ray.io/accelerator-type": "A100"}
    assert request(ResourceSpec(labels=wanted), LABELLED) == {"CPU": 1, "GPU": 1}
    assert request(ResourceSpec(labels={"ray.io/accelerator-type": "!A100"}), LABELLED) == {"CPU": 1}
    with pytest.raises(SpecError, match="has 2 CPU, 1 GPU and lacks 3 CPU"):
        request(ResourceSpec(cpu=5, labels=wanted), LABELLED)
    with pytest.raises(
        SpecError, match=r"no node has ray\.io/accelerator-type=H100; there is ray\.io/accelerator-type=A100"
    ):
        request(ResourceSpec(labels={"ray.io/accelerator-type": "H100"}), LABELLED)
    with pytest.raises(SpecError, match="no node has zone=x; none has a label of that name"):
        request(ResourceSpec(labels={"zone": "x"}), LABELLED)
    coming = Supply(LABELLED.up, [NodeKind("h", {"CPU": 4}, None, 2)])
    assert request(ResourceSpec(labels={"zone": "x"}), coming) == {"CPU": 1}


@pytest.mark.parametrize(
    ("selector", "matching"),
    [("A", "a"), ("!A", "bn"), ("in(A, B)", "ab"), ("in(A,B)", "ab"), ("!in(A,B)", "n"), ("C", "")],
)
def test_selectors_mean_what_they_mean_to_ray(selector: str, matching: str) -> None:
    nodes: dict[str, dict[str, str]] = {"a": {"k": "A"}, "b": {"k": "B"}, "n": {}}
    assert "".join(name for name, labels in nodes.items() if selects({"k": selector}, labels)) == matching
    assert ResourceSpec(labels={"k": selector}).labels == {"k": selector}


def test_capacity_sums_over_nodes_and_not_over_resources() -> None:
    nodes = [NodeKind("a", {"CPU": 3, "GPU": 1}), NodeKind("b", {"CPU": 3}), NodeKind("c", {"CPU": 1, "GPU": 4}, {}, 2)]
    assert capacity({"CPU": 2}, nodes) == 2
    assert capacity({"CPU": 1, "GPU": 1}, nodes) == 3
    assert fits({"CPU": 2}, NodeKind("head", {})) == 0


def config(**groups: tuple[dict[str, int], int]) -> SimpleNamespace:
    made = [SimpleNamespace(name=n, resources=r, max_count=count) for n, (r, count) in groups.items()]
    return SimpleNamespace(node_group_configs=made, max_resources={"CPU": 100})


def test_what_the_autoscaler_told_ray_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = config(big=({"CPU": 8, "GPU": 2**64 - 1}, 4), any=({"CPU": 1}, -1), none=({"CPU": 99}, 0))
    monkeypatch.setattr(state, "get_cluster_config", lambda: told)
    assert ray_nodes._to_come() == (
        [NodeKind("big", {"CPU": 8, "GPU": math.inf}, None, 4), NodeKind("any", {"CPU": 1}, None, math.inf)],
        {"CPU": 100},
    )
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    assert ray_nodes._to_come() == ([], {})


def test_a_ray_that_tells_nothing_is_one_without_an_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(state), "get_cluster_config")
    assert ray_nodes._to_come() == ([], {})


def test_the_reason_for_waiting() -> None:
    nodes = [NodeKind(name, {"CPU": 2, "GPU": 1}) for name in "abc"]
    asked = {"CPU": 1.0, "GPU": 1.0}
    assert ray_nodes.reason(asked, 1, nodes) == "a trial asks for 1 CPU, 1 GPU; 3 nodes up, none free"
    assert ray_nodes.reason({"CPU": 4.0}, 1, nodes[:1]) == "a trial asks for 4 CPU; 1 node up, none large enough"
    assert ray_nodes.reason({"CPU": 1.0}, 3, []) == "a trial asks for 3 times 1 CPU; no node is up"


def test_labels_reach_the_placement_group_and_an_older_ray_says_that_it_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = {"ray.io/accelerator-type": "H100"}
    made = ray_nodes.bundles({"CPU": 1.0}, 2, labels)
    assert made.bundles == [{"CPU": 1.0}] * 2
    assert made._kwargs == {"bundle_label_selector": [labels] * 2}
    assert ray_nodes.bundles({"CPU": 1.0}, 1, {})._kwargs == {}

    def older(bundles: object, strategy: str = "PACK") -> None: ...

    monkeypatch.setattr(ray_nodes, "placement_group", older)
    with pytest.raises(SpecError, match=r"placement groups of Ray .* know no labels"):
        ray_nodes.bundles({"CPU": 1.0}, 1, labels)
    assert placement.amounts({"memory": 3 << 29}) == "1.5 GiB of memory"
