"""Proposals come in order, whoever computes them, and whoever dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from raysweep.studies.ordered_results import AHEAD, QUEUED, Helper, in_order

STEPS = list(range(1, 41))


class Died(Exception):  # noqa: N818
    """A helper is gone."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as found:
        yield found


def helper(pool: ThreadPoolExecutor, compute: Callable[[int], Any]) -> Helper:
    return lambda step: pool.submit(compute, step)


def proposal(step: int) -> dict[str, Any]:
    return {"step": step}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_order_is_that_of_the_edits_and_each_is_computed_once(count: int, pool: ThreadPoolExecutor) -> None:
    here: list[int] = []
    there: list[int] = []
    found = in_order(
        STEPS,
        lambda step: (here.append(step), proposal(step))[1],
        [helper(pool, lambda step: (there.append(step), proposal(step))[1])] * count,
        lost=Died,
    )
    assert [p["step"] for p in found] == STEPS
    assert sorted(here + there) == STEPS
    assert bool(there) == bool(count)


def test_helpers_run_ahead_only_so_far(pool: ThreadPoolExecutor) -> None:
    asked: list[int] = []
    found = in_order(
        STEPS, lambda step: (asked.append(step), proposal(step))[1],
        [helper(pool, lambda step: (asked.append(step), proposal(step))[1])], lost=Died,
    )  # fmt: skip
    for expected in (1, 2, 3):
        assert next(found)["step"] == expected
        assert max(asked) <= expected + 2 * AHEAD + QUEUED


def test_a_helper_that_dies_leaves_its_steps_to_the_others(pool: ThreadPoolExecutor) -> None:
    gone = threading.Event()

    def mortal(step: int) -> dict[str, Any]:
        if step >= 5 or gone.is_set():
            gone.set()
            raise Died
        return proposal(step)

    found = in_order(STEPS, proposal, [helper(pool, mortal), helper(pool, proposal)], lost=Died)
    assert [p["step"] for p in found] == STEPS
    found = in_order(STEPS, proposal, [helper(pool, mortal)], lost=Died)
    assert [p["step"] for p in found] == STEPS, "in the end this process computes them all"
    assert gone.is_set()


def test_an_error_of_the_editor_is_raised_wherever_it_happened(pool: ThreadPoolExecutor) -> None:
    def bad(step: int) -> Any:
        raise ValueError(f"no proposal for {step}")

    with pytest.raises(ValueError, match="no proposal for"):
        list(in_order(STEPS, proposal, [helper(pool, bad)], lost=Died))
    with pytest.raises(ValueError, match="no proposal for 1"):
        list(in_order(STEPS, bad, [], lost=Died))


def test_a_helper_that_never_answers_does_not_stop_what_comes_before() -> None:
    never: Future[Any] = Future()
    found = in_order(STEPS, proposal, [lambda step: never if step > 1 else _done(step)], lost=Died)
    assert next(found)["step"] == 1


def test_nothing_waits_for_a_helper_that_is_still_starting() -> None:
    late: Future[None] = Future()
    there: list[int] = []
    asked = in_order(
        STEPS, proposal, [], lost=Died, starting=[(late, lambda step: (there.append(step), _done(step))[1])]
    )
    assert [next(asked)["step"] for _ in range(20)] == STEPS[:20]
    assert not there
    late.set_result(None)
    assert [p["step"] for p in asked] == STEPS[20:]
    assert there


def test_a_helper_that_dies_while_it_starts_is_done_without() -> None:
    dead: Future[None] = Future()
    dead.set_exception(Died())
    broken: Future[None] = Future()
    broken.set_exception(ValueError("no such model"))
    assert [p["step"] for p in in_order(STEPS, proposal, [], lost=Died, starting=[(dead, _done)])] == STEPS
    with pytest.raises(ValueError, match="no such model"):
        list(in_order(STEPS, proposal, [], lost=Died, starting=[(broken, _done)]))


def _done(step: int) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(proposal(step))
    return future
