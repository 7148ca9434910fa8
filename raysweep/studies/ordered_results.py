"""Proposals in order from helpers that compute them in any order, and from here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from raysweep.editors.base import Proposal
from raysweep.studies.base import ComputeProposal

log = logging.getLogger(__name__)

# proposals per process that may be on their way or wait for their turn: bounds memory
AHEAD = 4
# steps per helper: one being computed, one waiting, so that it never idles while this process computes
QUEUED = 2

Helper = Callable[[int], "Future[Proposal]"]


def in_order(
    steps: Sequence[int],
    here: ComputeProposal,
    helpers: Sequence[Helper],
    *,
    lost: type[BaseException],
    starting: Sequence[tuple[Future[None], Helper]] = (),
) -> Iterator[Proposal]:
    """Yield the proposals of *steps*, in that order.

    Args:
        steps: rising.
        here: computes one in this process, which helps wherever it would only wait.
        helpers: start to compute one elsewhere.
        lost: what a future raises whose helper died; its steps are computed by the others, in the end by this process.
        starting: helpers that are given nothing before their future is done, so that nothing waits for them.

    Raises:
        Exception: whatever computing a proposal raised, wherever.
    """
    able, todo, warming = list(helpers), deque(steps), list(starting)
    ready: dict[int, Proposal] = {}
    flying: dict[Future[Proposal], tuple[Helper, int]] = {}
    room = AHEAD * (len(able) + len(warming) + 1)
    for step in steps:
        while step not in ready:
            # Helpers that have started meanwhile may be given steps from now on.
            for started, helper in [w for w in warming if w[0].done()]:
                warming.remove((started, helper))
                if _came(started, lost):
                    able.append(helper)
            for future in [f for f in flying if f.done()]:
                helper, done = flying.pop(future)
                try:
                    ready[done] = future.result()
                # Its other step comes back here when its own future is looked at; rising order keeps the next one needed first.
                except lost as error:
                    _mourn(error)
                    able = [h for h in able if h is not helper]
                    todo = deque(sorted([done, *todo]))
            if step in ready:
                break
            for helper in able:
                load = sum(h is helper for h, _ in flying.values())
                for _ in range(min(QUEUED - load, len(todo), room - len(ready) - len(flying))):
                    next_step = todo.popleft()
                    flying[helper(next_step)] = (helper, next_step)
            # This process computes what is needed next itself if nobody has begun it, or anything while there is room.
            if todo and (todo[0] == step or len(ready) + len(flying) < room):
                mine = todo.popleft()
                ready[mine] = here(mine)
            elif flying:
                wait(flying, return_when=FIRST_COMPLETED)
        yield ready.pop(step)


def _came(started: Future[None], lost: type[BaseException]) -> bool:
    """Tell whether a helper has started; an error other than its death is raised."""
    try:
        started.result()
    except lost as error:
        _mourn(error)
        return False
    return True


def _mourn(error: BaseException) -> None:
    log.warning("a process that helped with the edits died (%s); going on without it", error)
