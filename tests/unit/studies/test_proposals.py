"""Edits that are computed apart: the same numbers wherever, whenever and in whatever order they were computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep import pytree
from raysweep.results.folder import Folder
from raysweep.results.proposals import ProposalFolder
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.ordered_results import in_order
from raysweep.testing.fixtures import same, tiny_lm
from tests.unit.studies.closed import Closed, closed, install
from tests.unit.studies.test_lifelong import deps, facts
from tests.unit.studies.test_lifelong import trial as by_threes
from tests.unit.studies.test_passes import together


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Closed]:
    return install(monkeypatch)


def executed(trial: Any, effects: Deps) -> list[Any]:
    return facts(list(Lifelong().execute(trial, effects, None)))


def test_every_lambda_of_a_path_gets_what_it_gets_alone(tmp_path: Path, built: list[Closed]) -> None:
    trials = [closed(lam) for lam in (0.1, 1.0, 10.0)]
    alone = {t.key: executed(t, deps(tmp_path, tiny_lm("llama"))) for t in trials}
    found = together(trials, deps(tmp_path, tiny_lm("llama")), {})
    assert all(same(facts(rounds), alone[key]) for key, rounds in found.items())
    assert [len(e.proposed) for e in built[3:]] == [4, 0, 0]
    drifts = [[s.value for s in rounds[-1].stats if s.name.startswith("drift/")] for rounds in found.values()]
    assert drifts[0] > drifts[1] > drifts[2] > [0.0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_shards_change_no_bit(tmp_path: Path, built: list[Closed], batch: int, jitter: float) -> None:
    """The helper has a model and a generator of its own; what it sends has been on the wire."""
    one = closed(jitter=jitter, rounds=(0, 2, 4, 6), batch_size=batch)
    straight = executed(one, deps(tmp_path, tiny_lm("llama")))
    ask = Lifelong().proposal_function(one, deps(tmp_path, tiny_lm("llama")))

    with ThreadPoolExecutor(1) as pool:

        def spread(trial: Any, steps: Sequence[int], here: Any) -> Iterator[Mapping[str, Any]]:
            assert trial == one
            return in_order(steps, here, [lambda step: pool.submit(ask, step)], lost=ZeroDivisionError)

        assert same(executed(one, replace(deps(tmp_path, tiny_lm("llama")), proposal_scheduler=spread)), straight)
    helper, ours = built[-2:]
    assert sorted(helper.proposed + ours.proposed) == sorted(built[0].proposed)
    assert helper.proposed


@pytest.mark.parametrize("editor", ["memit+closed simie", "lora+closed simie", "grace"])
@pytest.mark.parametrize("behind", [None, 1, 2])
def test_groups_are_the_same_wherever_they_are_computed_and_after_a_resume(
    tmp_path: Path, behind: int | None, editor: str
) -> None:
    """Steps 1–3 and 4–6 go together, and 7 alone, for whoever asks and wherever the run begins (``behind``: after that round)."""
    one = by_threes(f"{editor}, by threes", rounds=(0, 2, 4, 7))
    rounds = list(Lifelong().execute(one, deps(tmp_path, tiny_lm("llama")), None))
    asked: list[int] = []
    ask = Lifelong().proposal_function(one, deps(tmp_path, tiny_lm("llama")))

    with ThreadPoolExecutor(1) as pool:

        def spread(trial: Any, steps: Sequence[int], here: Any) -> Iterator[Mapping[str, Any]]:
            asked.extend(steps)
            return in_order(steps, here, [lambda step: pool.submit(ask, step)], lost=ZeroDivisionError)

        effects = replace(deps(tmp_path, tiny_lm("llama")), proposal_scheduler=spread)
        snapshot = None if behind is None else rounds[behind].snapshot
        found = list(Lifelong().execute(one, effects, snapshot))
    assert asked == {None: [3, 6, 7], 1: [3, 6, 7], 2: [6, 7]}[behind]
    assert same(facts(found), facts(rounds[0 if behind is None else behind + 1 :]))


def test_groups_differ_from_single_edits_by_rounding_only(tmp_path: Path) -> None:
    threes = by_threes("memit+closed simie, by threes", rounds=(0, 5))
    single = by_threes("memit+closed simie", rounds=(0, 5))
    last = [list(Lifelong().execute(t, deps(tmp_path, tiny_lm("llama")), None))[-1] for t in (threes, single)]
    drifts = [[s.value for s in r.stats if s.name.startswith("drift/")] for r in last]
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-3)
    assert min(drifts[0]) > 0
    assert [(r.metric, r.answer) for r in last[0].rows] == [(r.metric, r.answer) for r in last[1].rows]


def test_a_group_is_not_kept_for_other_orders(tmp_path: Path) -> None:
    """What a record's proposal is depends, by rounding, on the others of its group."""
    kept = ProposalFolder(Folder(tmp_path / "results"), "kin")
    one = by_threes("memit+closed simie, by threes", rounds=(0, 3))
    list(Lifelong().execute(one, replace(deps(tmp_path, tiny_lm("llama")), proposal_cache=kept), None))
    assert not Folder(tmp_path / "results").exists("_proposals/kin")


def test_a_resumed_trial_asks_only_for_what_is_missing(tmp_path: Path, built: list[Closed]) -> None:
    one = closed()
    rounds = list(Lifelong().execute(one, deps(tmp_path, tiny_lm("llama")), None))
    asked: list[int] = []

    def spread(trial: Any, steps: Sequence[int], here: Any) -> Iterator[Mapping[str, Any]]:
        asked.extend(steps)
        return map(here, steps)

    effects = replace(deps(tmp_path, tiny_lm("llama")), proposal_scheduler=spread)
    resumed = list(Lifelong().execute(one, effects, rounds[1].snapshot))
    assert asked == [3, 4]
    assert same(facts(resumed), facts(rounds[2:]))


def test_seeds_share_the_proposals_of_their_records(tmp_path: Path, built: list[Closed]) -> None:
    kept = ProposalFolder(Folder(tmp_path / "results"), "kin")
    trials = [closed(seed=seed, order="seeded", rounds=(0, 4, 8)) for seed in (0, 1)]
    alone = [executed(t, deps(tmp_path, tiny_lm("llama"))) for t in trials]
    orders = [tuple(e.proposed) for e in built]
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])
    found = [executed(t, replace(deps(tmp_path, tiny_lm("llama")), proposal_cache=kept)) for t in trials]
    assert same(found, alone)
    assert [len(e.proposed) for e in built[2:]] == [8, 0]
    assert len(Folder(tmp_path / "results").files("_proposals/kin")) == 8
    kept.forget()
    assert not Folder(tmp_path / "results").exists("_proposals/kin")


def test_what_took_from_its_generator_is_not_kept(tmp_path: Path, built: list[Closed]) -> None:
    kept = ProposalFolder(Folder(tmp_path / "results"), "kin")
    one = closed(jitter=0.5)
    straight = executed(one, deps(tmp_path, tiny_lm("llama")))
    assert same(executed(one, replace(deps(tmp_path, tiny_lm("llama")), proposal_cache=kept)), straight)
    assert not Folder(tmp_path / "results").exists("_proposals/kin")


def test_a_kept_proposal_comes_back_bit_for_bit_and_a_damaged_one_not_at_all(tmp_path: Path) -> None:
    import torch

    folder = Folder(tmp_path)
    kept = ProposalFolder(folder, "kin")
    assert kept.get("r/1") is None
    given = {"sums": {"a.b": torch.tensor([[0.1, -0.0]], dtype=torch.float64)}, "n": [1, None, "é"]}
    kept.put("r/1", given)
    back = kept.get("r/1")
    assert back is not None
    assert same(pytree.flatten("p", back), pytree.flatten("p", given))
    (name,) = folder.files("_proposals/kin")
    data = folder.read(name)
    for harm in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b""):
        folder.write(name, harm)
        assert kept.get("r/1") is None
