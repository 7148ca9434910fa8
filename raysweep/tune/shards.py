"""Edit-parallel runs: processes beside a trial's own, in its placement group, compute proposals; the trial absorbs them in order.

What a proposal is does not depend on where it was computed, and proposals are absorbed in the order of the edits; so a
trial's numbers are the same, bit for bit, whatever the number of shards. Importing this imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysweep import environment, pytree, runtime
from raysweep.config.schema import TrialSpec
from raysweep.editors.base import Proposal
from raysweep.studies import STUDIES
from raysweep.studies.base import ComputeProposal
from raysweep.studies.ordered_results import Helper, in_order
from raysweep.tune.deps import LoadedInputs, make_deps, proposal_folder
from raysweep.tune.devices import take_given
from raysweep.workspace import Workspace


class Shard:
    """Computes proposals, of one trial at a time, on a model of its own."""

    def __init__(self, workspace: Workspace, sweep: str) -> None:
        self.workspace, self.sweep = workspace, sweep
        self.loaded = LoadedInputs(workspace, take_given())
        self._trial = ""
        self._ask: ComputeProposal | None = None

    def propose(self, trial: TrialSpec, cache_key: str, step: int) -> Proposal:
        """Return what the batch that reaches *step* adds, on the CPU."""
        with runtime.matmul(trial.model.matmul), runtime.repeatable(runtime.device()):
            proposal: Proposal = pytree.moved(self._proposer(trial, cache_key)(step), "cpu")
            return proposal

    def prepare(self, trial: TrialSpec, cache_key: str) -> None:
        """Load what *trial* needs, before it is asked for proposals."""
        with runtime.matmul(trial.model.matmul), runtime.repeatable(runtime.device()):
            self._proposer(trial, cache_key)

    def _proposer(self, trial: TrialSpec, cache_key: str) -> ComputeProposal:
        # The model and the artifacts are loaded once per trial, not once per proposal.
        if self._ask is None or self._trial != trial.key:
            environment.check(trial.environment)
            cache = proposal_folder(self.workspace, self.sweep, cache_key)
            deps = make_deps(self.workspace, proposal_cache=cache, loaded=self.loaded)
            self._ask, self._trial = STUDIES.get(trial.study)().proposal_function(trial, deps), trial.key
        return self._ask


class Shards:
    """The helpers of one process: started when first needed, kept for its next trials, gone with it.

    The placement group's first bundle is the process itself, each further one a helper.
    """

    def __init__(self, workspace: Workspace, sweep: str, cache_key: str = "") -> None:
        self.workspace, self.sweep, self.cache_key = workspace, sweep, cache_key
        self._actors: list[ActorHandle] = []
        self._begun: dict[str, list[tuple[Future[None], Helper]]] = {}

    def begin(self, trial: TrialSpec) -> None:
        """Let the helpers load what *trial* needs, while this process does the same."""
        self._start()
        self._begun = {
            trial.key: [
                (a.prepare.remote(trial, self.cache_key).future(), self._helper(a, trial)) for a in self._actors
            ]
        }

    def __call__(self, trial: TrialSpec, steps: Sequence[int], here: ComputeProposal) -> Iterator[Proposal]:
        """Yield the proposals of *steps* in that order, computed here and by the helpers."""
        if trial.key not in self._begun:
            self.begin(trial)
        try:
            # A helper that dies (RayActorError) gives its steps back; another, or this process, computes them.
            yield from in_order(steps, here, (), lost=RayActorError, starting=self._begun[trial.key])
        except RayTaskError as error:
            # The trial fails with what the helper raised, not with Ray's wrapping of it.
            raise (error.cause or error) from error

    def close(self) -> None:
        """End the helpers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._begun = [], {}

    def _helper(self, actor: ActorHandle, trial: TrialSpec) -> Helper:
        def start(step: int) -> Future[Proposal]:
            future: Future[Proposal] = actor.propose.remote(trial, self.cache_key, step).future()
            return future

        return start

    def _start(self) -> None:
        group = get_current_placement_group()
        if self._actors or group is None:
            return
        # The first bundle is this process's own.
        for index, bundle in enumerate(group.bundle_specs[1:], start=1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            requested = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "memory": bundle.get("memory", 0),
            }
            made = ray.remote(Shard).options(scheduling_strategy=place, **{k: v for k, v in requested.items() if v})
            self._actors.append(made.remote(self.workspace, self.sweep))
