"""The real effects a study gets: models from a pool that hands out pristine weights only, data, artifacts, texts."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.artifacts import ArtifactStore
from raysweep.atomic import write_file
from raysweep.config.schema import ModelSpec
from raysweep.lazy import lazy
from raysweep.results.proposals import ProposalFolder
from raysweep.results.store import HEARTBEAT, ResultStore
from raysweep.studies.base import Deps, Progress, ProposalCache, ProposalScheduler
from raysweep.tune import pristine
from raysweep.tune.devices import demand
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raysweep.models.lm import LanguageModel

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds between two heartbeats
torch = lazy("torch")


OnStep = Callable[[int, int], None]  # steps done, and of how many


def _ignore_steps(done: int, total: int) -> None:
    """Tell nobody."""


class ModelPool:
    """One model per process, kept between trials.

    Promise: :meth:`get` returns a model whose every tensor hashes as it did when it was loaded, with no hooks, in eval
    mode; what cannot be restored is loaded again. Nothing else survives a trial.
    """

    def __init__(self, load: Callable[[ModelSpec, OnStep], LanguageModel], *, limit: int | None = None) -> None:
        self._load, self._limit = load, limit
        self._spec: ModelSpec | None = None
        self._model: LanguageModel | None = None
        self._hashes: dict[str, str] = {}
        self._copies: dict[str, Tensor] = {}
        self._shape: tuple[tuple[str, str], ...] = ()

    def get(self, spec: ModelSpec, on_step: OnStep = _ignore_steps) -> LanguageModel:
        """Return the pristine model of *spec*; a model that has to be trained first says how far it is through *on_step*."""
        if self._model is not None and self._spec == spec and self.restore():
            return self._model
        self.clear()
        model = self._load(spec, on_step)
        tensors = _tensors(model.module)
        self._spec, self._model = spec, model
        self._hashes = {name: _hash(t) for name, t in tensors.items()}
        self._shape = _structure(model.module)
        # A copy in memory makes the next trial's start a matter of milliseconds.
        self._copies = pristine.copies(tensors, self._limit)
        return model

    def restore(self) -> bool:
        """Put the pristine weights back; return whether the model is now as loaded, hash for hash."""
        assert self._model is not None
        # Cheap tests first: a replaced submodule or a hook that was left behind cannot be undone by copying weights.
        module = self._model.module
        if _structure(module) != self._shape or _has_hooks(module):
            return False
        tensors = _tensors(module)
        if tensors.keys() != self._hashes.keys():
            return False
        changed = [name for name, t in tensors.items() if _hash(t) != self._hashes[name]]
        # Large models have no second copy in memory; they are loaded again when something changed.
        if changed and not self._copies:
            return False
        with torch.no_grad():
            for name in changed:
                if tensors[name].shape != self._copies[name].shape or tensors[name].dtype != self._copies[name].dtype:
                    return False
                # From pinned memory the copies overlap; hashing waits for them.
                tensors[name].copy_(self._copies[name], non_blocking=True)
        if any(_hash(tensors[name]) != self._hashes[name] for name in changed):
            log.warning("the weights of %s could not be restored; loading them again", self._spec)
            return False
        module.eval().requires_grad_(False)
        return True

    def clear(self) -> None:
        """Drop the model."""
        self._spec = self._model = None
        self._hashes, self._copies, self._shape = {}, {}, ()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _structure(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return every submodule's name and class, so that a replaced one is noticed."""
    return tuple((name, type(part).__qualname__) for name, part in module.named_modules())


def _has_hooks(module: nn.Module) -> bool:
    # torch has no public way to ask for them.
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, kind, None) for part in module.modules() for kind in kinds)


def _hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class LoadedInputs:
    """What a process loads once for all the trials it serves: one model, and a mapping of each artifact's file.

    Both hand out what they were told to load, checked anew each time, so no number depends on what a process did before.

    Args:
        workspace: where models and artifacts lie.
        gpus: how many GPUs, or which share of one, this process was given, so that it computes there or not at all; None = nobody
            gives any, and it computes on what there is.
    """

    def __init__(self, workspace: Workspace, gpus: float | None = None) -> None:
        def load(spec: ModelSpec, on_step: OnStep) -> LanguageModel:
            from raysweep.models.sources.load import load as load_model

            if gpus is not None:
                demand(gpus)
            return load_model(spec, workspace, on_step)

        self.models = ModelPool(load)
        self.artifacts = ArtifactStore(workspace.artifacts)


class Heartbeat:
    """Writes how far a trial is, at most twice a second, where the display and the watch for hung trials find it.

    A heartbeat that cannot be written is never an error of the trial.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / HEARTBEAT if folder is not None else None
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        """Write *progress* unless the last one was just written."""
        now = time.monotonic()
        if self._path is None or now - self._last < BEAT:
            return
        self._last = now
        # Storage that is away may be back for the next one; a trial that gave up beating would count as hung.
        with suppress(OSError):
            # The trial's folder may have been removed by somebody; it must not come back.
            if self._path.parent.is_dir():
                # Not synced: it is written twice a second, and no result depends on it.
                write_file(self._path, json.dumps(asdict(progress)), sync=False)


def proposal_folder(workspace: Workspace, sweep: str, cache_key: str) -> ProposalCache | None:
    """Return where edit groups of *sweep* with the same *cache_key* keep the proposals they share; None without a key."""
    return ProposalFolder(ResultStore(workspace.results(sweep)).folder, cache_key) if cache_key else None


def make_deps(
    workspace: Workspace,
    progress: Callable[[Progress], None] | None = None,
    *,
    proposal_scheduler: ProposalScheduler | None = None,
    proposal_cache: ProposalCache | None = None,
    loaded: LoadedInputs | None = None,
) -> Deps:
    """Return the effects a study may use, rooted at *workspace*.

    Args:
        workspace: where everything is looked for.
        progress: told how far the trial is.
        proposal_scheduler: computes proposals elsewhere; None = here.
        proposal_cache: keeps proposals for other trials; None = nobody does.
        loaded: what this process has loaded for its trials; None = nothing yet, and nothing is kept for another trial.
    """
    inputs = loaded or LoadedInputs(workspace)
    data, texts = lazy("raysweep.data"), lazy("raysweep.data.texts")

    def on_step(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(0, 0, "training the model", (done, total)))

    deps = Deps(
        load_model=lambda spec: inputs.models.get(spec, on_step),
        open_dataset=lambda spec: data.open_dataset(spec, workspace),
        artifacts=inputs.artifacts,
        texts=lambda text, spec: texts.open_texts(text, spec, workspace),
        open_testbed=lambda spec: lazy("raysweep.data.belief_points").open_testbed(spec, workspace),
        proposal_scheduler=proposal_scheduler,
        proposal_cache=proposal_cache,
    )
    return replace(deps, progress=progress) if progress is not None else deps
