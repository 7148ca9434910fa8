"""Specs: what a sweep, an arm and a trial are. Frozen, closed, free of torch, Ray and paths that matter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from raysweep.config.editor_schema import STORED
from raysweep.config.editor_schema import EditorSpec as EditorSpec
from raysweep.config.editor_schema import WrapSpec as WrapSpec
from raysweep.config.shared_specs import FileSpec as FileSpec
from raysweep.config.shared_specs import TextSpec as TextSpec
from raysweep.config.space import Scalar as Scalar
from raysweep.config.values import Block as Block
from raysweep.config.values import Blocks as Blocks
from raysweep.config.values import Count as Count
from raysweep.config.values import GrownSpec as GrownSpec
from raysweep.config.values import Natural as Natural
from raysweep.config.values import NonNegative as NonNegative
from raysweep.config.values import Positive as Positive
from raysweep.config.values import Spec as Spec
from raysweep.config.values import Threads as Threads
from raysweep.errors import NameUnknownError, nearest
from raysweep.hashing import digest
from raysweep.metrics import DEFAULT_METRICS, in_table_order, metric_of
from raysweep.protocols import PROTOCOLS
from raysweep.records import ProbeKind


class ModelSpec(GrownSpec):
    """Which language model, in which precision.

    Attributes:
        name: ``embedded``, a fetched model (``raysweep models``), a hub id, or any label when ``path`` is given.
        path: a local folder or GGUF file; not part of the key (``digest`` is).
        dtype: precision of the weights; what editors optimise, their losses and sums are fp32 and their solves fp64 whatever
            this says. On a GPU ``bfloat16`` is recommended (docs/precision.md).
        matmul: how a GPU multiplies fp32 matrices: ``ieee`` = in fp32; ``tf32`` = rounded to ten bits first, several times faster.
            A CPU multiplies in fp32 either way.
        revision: hub revision; empty = the hub's default.
        trust_remote_code: run code that comes with the weights; off unless asked.
        devices (GPUs): over how many GPUs of one machine the blocks are spread, for a model that is larger than a card; not part of
            the key, as no device is. ``resources.gpu`` must be as many. Not every editor can (docs/performance.md).
        bos: ``tokenizer`` = whatever the tokenizer prepends; ``none``; or the text of a token to prepend; ``auto`` =
            what the catalogue says of a fetched model, else ``tokenizer`` (the plan resolves it).
        hparams: whose ``hparams/<editor>/<model>.yaml`` to use; empty = ``name``.
        digest: fingerprint of everything the model is loaded from, filled in by the plan.
        tokenizer_digest: what its tokenizer does with the BOS policy, filled in by the plan.
    """

    # Trials that were stored before these fields came keep their keys (docs/decisions/012).
    added: ClassVar[frozenset[str]] = frozenset({"matmul", "devices"})

    name: str = "embedded"
    path: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    matmul: Literal["ieee", "tf32"] = "ieee"
    devices: Count = 1
    revision: str = ""
    trust_remote_code: bool = False
    bos: str = "auto"
    hparams: str = ""
    digest: str = ""
    tokenizer_digest: str = ""

    @property
    def provisional(self) -> bool:
        """Whether it was planned as a hub model that is not here: neither commit nor tokenizer are known."""
        return self.digest.startswith("hub:") and not self.tokenizer_digest


class DataSpec(Spec):
    """Which records, in which order.

    Attributes:
        name: a dataset of ``raysweep ls datasets``.
        path: its file; empty = found by name in ``data/``; not part of the key (``digest`` is).
        size (records): how many records; 0 = all that are left after ``skip``.
        skip (records): how many records of the file to leave out first (a fold for choosing λ, say).
        order: ``file`` keeps the file's order; ``seeded`` permutes the chosen records with the trial's seed; ``clustered`` puts
            facts of a kind (the prompt without its subject) together, ``dispersed`` as far apart as can be, both drawn by the seed.
        invalid: what becomes of a chosen row that the editor cannot write (an empty target, a subject that is not there, a text
            longer than the model's positions): ``refuse`` the trial, or ``skip`` the row as if it were not in the file, so that
            ``skip`` and ``size`` count the others. Rows that are not chosen may be anything.
        prompt: ``plain`` = the dataset's prompts as they are; ``chat`` = each as a user's turn in the model's chat template, up to
            where its answer begins (edits and probes alike; docs/models.md).
        digest: hash of the dataset's content, filled in by the plan.
        left_out: the rows skipped on the way, counted from 0, filled in by the plan.
        template: what the chat template makes of a few texts, filled in by the plan.
    """

    name: str = "world"
    path: str = ""
    size: Natural = 0
    skip: Natural = 0
    order: Literal["file", "seeded", "clustered", "dispersed"] = "seeded"
    invalid: Literal["refuse", "skip"] = "refuse"
    digest: str = ""
    left_out: tuple[Natural, ...] = ()
    prompt: Literal["plain", "chat"] = "plain"
    template: str = ""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what only ``invalid: skip`` and ``prompt: chat`` add, so that other trials keep the key they always had."""
        tree: dict[str, object] = handler(self)
        added = {"invalid", "left_out"} if self.invalid == "refuse" else set()
        added |= {"prompt", "template"} if self.prompt == "plain" else set()
        return {key: value for key, value in tree.items() if key not in added}


class AlsoSpec(Spec):
    """A protocol that is asked at the rounds beside the main asking (docs/protocols.md); a text stands for its ``id``.

    Attributes:
        id: its name, such as ``wild-mirage``.
        prompt: by what a question is surrounded; empty = the protocol's default.
    """

    id: str
    prompt: str = ""

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, written: object) -> object:
        """Return what was *written* with its prompt named, so that the default and its name are the same key."""
        tree = {"id": written} if isinstance(written, str) else written
        if not isinstance(tree, Mapping) or tree.get("prompt") or tree.get("id") not in PROTOCOLS:
            return tree
        return {**tree, "prompt": next(iter(PROTOCOLS[tree["id"]].prompts), "")}

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> AlsoSpec:
        if info.context == STORED:
            return self  # results of a protocol that this installation does not have are shown all the same
        if self.id not in PROTOCOLS:
            hint = "that is protocol.asking" if self.id == "teacher_forced" else nearest(self.id, PROTOCOLS)
            raise ValueError(f"unknown protocol '{self.id}'; {hint}")
        prompts = PROTOCOLS[self.id].prompts
        if self.prompt and self.prompt not in prompts:
            raise ValueError(f"protocol {self.id} has no prompt '{self.prompt}'; {nearest(self.prompt, prompts)}")
        return self

    @property
    def label(self) -> str:
        """How numbers of it are marked."""
        known = PROTOCOLS.get(self.id)
        return known.label(self.prompt) if known is not None else f"{self.id}:{self.prompt}"


class ProtocolSpec(GrownSpec):
    """When and what to measure.

    Attributes:
        batch_size (records): records per call of the editor.
        rounds (edits): steps at which every record in scope is measured; 0 = the unedited model.
        probes: kinds of probes to ask.
        scope: ``seen`` = records edited so far; ``all`` = every record of the run.
        immediate: also measure each batch right after it is written (rows whose ``step`` is their own edit step).
        eval_batch (rows): rows per forward pass of the evaluation (part of the key: it moves the last bits).
        asking: ``teacher_forced`` asks for each target token given the ones before it; ``generation`` lets the model write as
            many tokens as the target has, greedily (log-probabilities and perplexities stay teacher-forced);
            ``generation_ref`` compares what it wrote as published (quirk Q7; no log-probabilities).
        metrics: what is computed of each answer (``raysweep ls metrics``); no other metric is in the key.
        measured_by: of an imported trial (``raysweep import``), the program and protocol that its values are of; it cannot be set.
        keep: what stays of a finished trial: its ``results``; or ``edited`` = also the edited tensors, for ``raysweep export`` and
            ``raysweep ask``. It moves no number, so it is in no key.
        also: protocols asked at the rounds beside ``asking`` (docs/protocols.md), such as
            ``[wild-mirage, {id: wild-mirage, prompt: qa_inst}, localft]``; their numbers are marked by protocol and version.
        drift (tokens): of the dataset's own text, on which it is measured at each round how far the model has moved: perplexity,
            divergence from the unedited model, largest singular values and stable ranks of the weights' change (``editor_stats``);
            0 = not measured.
    """

    # A part of every key: raise it where the same fields come to other numbers.
    version: ClassVar[int] = 1
    added: ClassVar[frozenset[str]] = frozenset({"metrics", "measured_by", "keep", "also", "drift"})

    batch_size: Count = 1
    rounds: tuple[Natural, ...] = (0,)
    probes: tuple[ProbeKind, ...] = (
        ProbeKind.EFFICACY,
        ProbeKind.PARAPHRASE,
        ProbeKind.LOCALITY,
        ProbeKind.PORTABILITY,
    )
    scope: Literal["seen", "all"] = "seen"
    immediate: bool = True
    eval_batch: Count = 64
    asking: Literal["teacher_forced", "generation", "generation_ref"] = "teacher_forced"
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_METRICS
    measured_by: str = ""
    keep: Literal["results", "edited"] = "results"
    also: tuple[AlsoSpec, ...] = ()
    drift: Natural = 0

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Return *names* in the order of the table of metrics, so that the same set is the same key."""
        if info.context == STORED:
            return names  # which were in order; results are shown where the package of a metric is not installed, too
        for name in names:
            try:
                metric_of(name)
            except NameUnknownError as error:  # no ValueError, which is what pydantic expects of a validator
                raise ValueError("; ".join(filter(None, (error.message, error.hint)))) from error
        if len(set(names)) < len(names):
            raise ValueError(f"a metric is named twice: {', '.join(names)}")
        return in_table_order(names)

    @field_validator("also")
    @classmethod
    def _each_once(cls, protocols: tuple[AlsoSpec, ...]) -> tuple[AlsoSpec, ...]:
        """Return *protocols* in the order of their labels, so that the same set is the same key."""
        labels = [one.label for one in protocols]
        if len(set(labels)) < len(labels):
            raise ValueError(f"a protocol is named twice: {', '.join(labels)}")
        return tuple(sorted(protocols, key=lambda one: one.label))

    @model_validator(mode="after")
    def _rounds_fit(self) -> ProtocolSpec:
        if list(self.rounds) != sorted(set(self.rounds)):
            raise ValueError(f"rounds must rise without repeats, got {list(self.rounds)}")
        # A batch is one call of the editor: within it there is no model to measure.
        off = [r for r in self.rounds if r % self.batch_size]
        if off:
            raise ValueError(f"rounds must be multiples of batch_size = {self.batch_size}; offending rounds = {off}")
        if not self.rounds:
            raise ValueError("rounds must name at least one step")
        if self.keep == "edited" and self.rounds[-1] == 0:
            raise ValueError("keep: edited needs a round after an edit; the only one is 0, the unedited model")
        return self


class TrialSpec(Spec):
    """A complete, closed trial: no defaults left to resolve. Its hash is its key.

    ``versions`` maps each component named here to its ``version``; a bumped version is another key. ``environment`` holds the
    environment variables that are set and move numbers (:mod:`raysweep.environment`).
    """

    study: str
    model: ModelSpec
    data: DataSpec
    editor: EditorSpec
    protocol: ProtocolSpec
    seed: int
    threads: Threads = 1
    versions: Mapping[str, int] = {}
    environment: Mapping[str, str] = {}

    @classmethod
    def read_back(cls, stored: Mapping[str, object]) -> TrialSpec:
        """Return the trial of which *stored* is the JSON; it is stored as the same JSON again, whatever its components have become.

        Raises:
            ValidationError: it is no trial.
        """
        return cls.model_validate(stored, context=STORED)

    def identity(self) -> dict[str, Any]:
        """Return everything the key covers: all fields but file-system paths, devices and what is kept of the trial."""
        data = self.model_dump(mode="json")
        # Added fields are not in the dump at their default, hence pop with None.
        data["protocol"].pop("keep", None)
        # Where a file lies moves no number; the digest beside its path covers what is in it.
        for part in ("model", "data"):
            del data[part]["path"]
        data["model"].pop("devices", None)
        data["editor"] = without_paths(data["editor"])
        return data

    @cached_property
    def key(self) -> str:
        """16 hex digits of BLAKE2b over :meth:`identity`."""
        return digest(self.identity())


def without_paths(node: Any) -> Any:
    """Return *node* (plain data) without the ``path`` of every text, file and data spec: a mapping with ``path`` and ``digest``."""
    if isinstance(node, Mapping):
        # Without a digest beside it nothing else covers a `path`, so it stays in the key.
        dropped = {"path"} if "digest" in node else set()
        return {key: without_paths(value) for key, value in node.items() if key not in dropped}
    if isinstance(node, list | tuple):
        return [without_paths(value) for value in node]
    return node
