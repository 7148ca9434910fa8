"""Which trial gets which GPU, on clusters whose GPUs are made up: Ray gives them out, and the fake study never asks torch for them.

A trial that does ask is refused. That nodes with made-up GPUs are refused before any trial: ``test_placement.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_cluster import LocalCluster
from ray_helpers import finish, start

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs: none need be made up"),
]


@pytest.fixture
def placed(tmp_path: Path, plugins: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a sweep on a cluster; returns what each of its processes could see of GPUs, and where it was."""

    def run(
        cluster: LocalCluster, name: str, seeds: tuple[int, ...], *, together: int, **resources: Any
    ) -> list[dict[str, Any]]:
        root, log = tmp_path / name, tmp_path / name / "log"
        root.mkdir()
        # The study waits until so many processes edit, so that none of them does the work of all.
        (root / "shards").write_text(str(together))
        configs = {"calm": {"sleep": 0.2, "cards": str(root / "cards"), "log": str(log)}}
        process = start(
            root,
            "s",
            configs,
            seeds,
            plugins=plugins,
            options={"address": cluster.address},
            unexamined=True,
            **resources,
        )
        code, outcome, lines = finish(process)
        assert (code, outcome["done"]) == (0, len(seeds)), (outcome, lines)
        return [json.loads(line) for line in (root / "cards").read_text().splitlines()]

    return run


def cards_of_processes(found: list[dict[str, Any]]) -> list[str]:
    """Return what each process saw, in order; one that serves several trials keeps its card."""
    seen: dict[int, set[str]] = {}
    for one in found:
        seen.setdefault(one["pid"], set()).add(one["visible"])
    assert all(len(cards) == 1 for cards in seen.values()), found
    return sorted(card for cards in seen.values() for card in cards)


def test_each_trial_has_its_card_and_what_has_none_sees_none(
    start_cluster: Callable[..., LocalCluster], placed: Callable[..., list[dict[str, Any]]]
) -> None:
    cluster = start_cluster(2)  # a head without GPUs
    cluster.add(4, gpus=2)

    found = placed(cluster, "whole", (0, 1, 2, 3), together=2, gpu="auto")
    assert {one["seed"] for one in found} == {0, 1, 2, 3}
    assert set(cards_of_processes(found)) == {"0", "1"}, "two at once, each with a card of its own"
    assert {one["node"] for one in found} == {cluster.node_ids[1]}, "none on the head"

    halves = cards_of_processes(placed(cluster, "halves", (0, 1, 2, 3), together=4, gpu=0.5))
    assert halves == ["0", "0", "1", "1"], "two trials on each card"

    helped = placed(cluster, "helped", (0,), together=2, gpu=1, shards=2)
    assert cards_of_processes(helped) == ["0", "1"], "a trial and its helper have a card each"

    both = placed(cluster, "both", (0,), together=1, gpu=2)
    assert [sorted(one["visible"].split(",")) for one in both] == [["0", "1"]]

    assert set(cards_of_processes(placed(cluster, "none", (0, 1), together=2, gpu=0))) == {""}


def test_a_trial_whose_card_torch_does_not_see_ends_before_its_first_edit(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path, plugins: Path
) -> None:
    """Where no examination found the node out: it joined later, say."""
    cluster = start_cluster(1)
    cluster.add(1, gpus=1)
    log = tmp_path / "log"
    configs = {"asks": {"load": True, "log": str(log)}}
    options = {"address": cluster.address}

    def run(root: str, **resources: Any) -> tuple[int, dict[str, Any], list[str]]:
        return finish(
            start(tmp_path / root, "s", configs, (0,), plugins=plugins, options=options, unexamined=True, **resources)
        )

    code, outcome, _ = run("given", gpu=1)
    (failure,) = outcome["failed"]
    assert code != 0
    assert "NodeError: " in failure
    assert "1 GPU was given to this trial, but torch sees 0" in failure
    assert torch.__version__ in failure
    assert "resources.gpu: 0 says that the CPU is meant" in failure
    assert not log.exists(), "no edit was made"
    code, outcome, lines = run("cpu", gpu=0)
    assert (code, outcome["done"]) == (0, 1), (outcome, lines)
