"""What a search space holds, as written: arms, swept keys, how points are drawn, and what a trial gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from raysweep.config import limits
from raysweep.config.places import Source
from raysweep.config.space import Domain, as_tree, parse
from raysweep.config.values import Count, Natural, NonNegative, Positive, Spec
from raysweep.errors import NameUnknownError, nearest


class SearchSpec(Spec):
    """How points are drawn.

    Attributes:
        sampler: ``grid`` (only grids) or ``random`` (drawn domains get ``samples`` draws per arm).
        samples (draws): draws per arm that has a drawn domain.
        seed: of the draws.
        metric: the summary value that ``analyze`` and schedulers rank by; empty = the study's own (the plan resolves it).
        mode: whether more or less of it is better.
    """

    sampler: Literal["grid", "random"] = "grid"
    samples: Count = 1
    seed: int = 0
    metric: str = ""
    mode: Literal["max", "min"] = "max"


# Ray's own rule for the labels of nodes, which is that of Kubernetes.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LabelName = Annotated[str, Field(pattern=rf"^(?:{_LABEL}/)?{_LABEL}$")]
LabelSelector = Annotated[str, Field(pattern=rf"^!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))$")]


def _rarely(minutes: float) -> float:
    if 0 < minutes < limits.HUNG_AFTER:
        # A round, an artifact or a large batch of edits gives no sign of life for minutes: less would end healthy trials.
        raise ValueError(f"is 0 (off) or at least {limits.HUNG_AFTER} minutes: healthy trials are silent for minutes")
    return minutes


class ResourceSpec(Spec):
    """What one trial gets; never part of a key.

    Attributes:
        cpu (CPUs): CPUs per trial.
        gpu (GPUs): ``auto`` = one GPU where there is one; a number = that many; a fraction = a share of one and of its memory; 0 =
            the CPU is meant. A trial computes on what it was given, or is refused, and does not see other GPUs.
        memory (bytes): bytes reserved per trial; 0 = not reserved.
        labels: what a node's labels must be, such as ``{ray.io/accelerator-type: H100}``; a value may be ``!H100``,
            ``in(A100, H100)`` or ``!in(A100, H100)``. Needs a Ray whose placement groups know labels (2.60 does).
        concurrent (trials): trials at once; 0 = as many as fit.
        retries (restarts): restarts of a trial whose process died.
        hung_after (minutes): without a sign of life for so long, counted from a trial's first one, its process is ended and
            restarted like one that died; 0 = never. At least 10, and longer than the longest round, batch of edits or
            artifact, which give no sign while they last. Needs results in a folder, not on an object store.
        share: let trials that differ only in what their editors report of shared edits (λ, say) make an edit group.
        shards (processes): processes that compute the edits of one trial, where its edits may be computed apart
            (SimIE's closed form); each gets ``cpu``, ``gpu`` and ``memory``. The numbers do not depend on it.
    """

    cpu: Positive = 1.0
    gpu: Literal["auto"] | NonNegative = "auto"
    memory: Natural = 0
    labels: Mapping[LabelName, LabelSelector] = {}
    concurrent: Natural = 0
    retries: Natural = 2
    # Off by default: how long a healthy trial is silent depends on its model, rounds and batches.
    hung_after: Annotated[NonNegative, AfterValidator(_rarely)] = 0.0
    share: bool = True
    shards: Annotated[int, Field(ge=1, le=limits.SHARDS)] = 1


def _domain(value: object) -> Domain:
    """Return *value* if it is a domain, else the domain it spells."""
    # A sweep made in Python holds domains, one from a file the mappings that spell them.
    return value if isinstance(value, Domain) else parse(value)


DomainField = Annotated[Domain, PlainValidator(_domain), PlainSerializer(as_tree)]


class WrittenComponent(Spec):
    """An editor or a wrapper as an arm writes it down: defaults are not filled in, and nothing of it is checked.

    Attributes:
        name: of the component.
        config: the keys that are written down.
        file: a hyper-parameter file that takes the place of the model's own, as read; not part of the dump.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    config: Mapping[str, object] = {}
    file: Source | None = Field(default=None, exclude=True, repr=False)


class WrittenEditor(WrittenComponent):
    """An editor as an arm writes it down, and the wrappers around it, innermost first."""

    wrap: tuple[WrittenComponent, ...] = ()


class ArmSpec(Spec):
    """A named family of points: one editor, with its wrappers, as written.

    Attributes:
        name: as in the file (``memit+simie``).
        editor: the editor, with the configuration keys and wrappers this arm writes down; defaults are not filled in.
        base: keys of the sweep's ``base`` that this arm replaces, by section.
        space: domains of this arm alone.
    """

    name: str
    editor: WrittenEditor
    base: Mapping[str, Any] = {}
    space: Mapping[str, DomainField] = {}


class SweepSpec(Spec):
    """One search space, as written: what all trials share, the arms, the swept keys.

    Attributes:
        name: of the sweep and of its results folder.
        study: the kind of trial.
        base: ``model``, ``data`` and ``protocol`` (mappings), ``threads`` and ``seed``, as written.
        arms: in the file's order.
        space: domains by dotted key (``seed``, ``wrap.simie.lam``); an arm to which a key does not apply ignores it.
        search: how points are drawn and ranked.
        resources: what a trial gets.
        source: the text this came from, for messages; not part of the dump.
        unread: sections of ``base`` that are written, but in no form that could be read; not part of the dump.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    study: str = "lifelong"
    base: Mapping[str, Any] = {}
    arms: tuple[ArmSpec, ...]
    space: Mapping[str, DomainField] = {}
    search: SearchSpec = SearchSpec()
    resources: ResourceSpec = ResourceSpec()
    source: Source = Field(default_factory=Source, exclude=True, repr=False)
    unread: frozenset[str] = Field(default=frozenset(), exclude=True, repr=False)

    def arm(self, name: str) -> ArmSpec:
        """Return the arm called *name*.

        Raises:
            NameUnknownError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        raise NameUnknownError(f"unknown arm '{name}' in sweep '{self.name}'", hint=nearest(name, names))
