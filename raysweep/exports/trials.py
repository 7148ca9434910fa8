"""Find a finished trial by what people type, and have its model as it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from raysweep import pytree
from raysweep.config.names import TrialName
from raysweep.config.schema import EditorSpec, TrialSpec
from raysweep.data import open_dataset
from raysweep.data.sampling import arranged
from raysweep.editors.build import build_editor
from raysweep.errors import NameUnknownError, StoreError, nearest
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.records import EditRecord
from raysweep.reports.standing import trial_labels
from raysweep.results.edited import read_edited
from raysweep.results.state import State
from raysweep.results.tables import Sweep
from raysweep.rows import EditedModel
from raysweep.seeds import derive
from raysweep.studies.kept import STATE, WEIGHTS
from raysweep.studies.prompts import prompted
from raysweep.workspace import Workspace

_LISTED = 8  # trials that an error names


def find_trial(sweep: Sweep, text: str) -> TrialName:
    """Return the trial of *sweep* that *text* means: the beginning of its key, or its arm with as many values as tell it apart.

    Values are as ``raysweep show --by trial`` prints them, ``memit+simie lam=10 seed=0``, with spaces or commas between.

    Raises:
        NameUnknownError: none is meant, or several are.
    """
    # reversed, so that of several names of one trial the plan's first one stays
    by_key = {name.key: name for name in reversed(sweep.places)}
    # every key begins with an empty text
    found = [key for key in by_key if text and key.startswith(text)] or [
        key for key in by_key if any(_means(text, name) for name in sweep.places if name.key == key)
    ]
    if len(found) == 1:
        return by_key[found[0]]
    labels = trial_labels(sweep.places)
    if found:
        shown = ", ".join(f"{labels[key]} ({key})" for key in sorted(found, key=lambda k: labels[k])[:_LISTED])
        raise NameUnknownError(f"'{text}' means {len(found)} trials of '{sweep.name}'", hint=f"one of: {shown}")
    raise NameUnknownError(f"no trial '{text}' in '{sweep.name}'", hint=nearest(text, [*labels.values(), *by_key]))


def _means(text: str, name: TrialName) -> bool:
    arm, *values = text.replace(",", " ").split() or [""]
    known = {**name.point, "seed": name.seed}
    return arm == name.arm and all(
        any(_says(value, key, number) for key, number in known.items()) for value in values if "=" in value
    )


def _says(text: str, key: str, value: object) -> bool:
    """Tell whether ``key=value`` in *text* is that of the dotted *key*, which may be cut to its last parts."""
    written, _, what = text.partition("=")
    if key != written and not key.endswith(f".{written}"):
        return False
    # tables print numbers by :g, files as Python does; people copy from both
    return what in (str(value), f"{value:g}" if isinstance(value, int | float) else "")


@dataclass(frozen=True)
class EditedTrial:
    """A finished trial that kept its edited model.

    Attributes:
        name: its arm, point and key.
        trial: its specification.
        edited: what it kept.
        lm: the pristine model.
        workspace: where data lie.
    """

    name: TrialName
    trial: TrialSpec
    edited: EditedModel
    lm: LanguageModel
    workspace: Workspace

    @classmethod
    def open(cls, sweep: Sweep, text: str, workspace: Workspace) -> EditedTrial:
        """Return the trial of *sweep* that *text* means, with its pristine model loaded.

        Raises:
            NameUnknownError: no trial is meant, or several are.
            StoreError: it is not finished, or kept no edited model.
            ModelError: the model is not there, or is not the one that was edited.
        """
        name = find_trial(sweep, text)
        record, state = sweep.records[name.key], sweep.state(name.key)
        if state is not State.DONE:
            reason = f": {record.status.reason}" if record.status.reason else ""
            raise StoreError(
                f"trial {name.key} is {state.value}{reason}", hint="only a finished trial has a model to give"
            )
        _, trial = record.about()
        edited = read_edited(sweep.store.folder, name.key)
        if edited is None:
            raise StoreError(
                f"trial {name.key} kept no edited model, so it must be run again: its key and numbers will be the same",
                hint="`raysweep run … --set protocol.keep=edited --fresh`",
            )
        # the number of threads decides in which order sums are made, and so their last bits
        torch.set_num_threads(trial.threads)
        lm = load(trial.model, workspace)
        for weight in lm.module.parameters():
            # As in the process that reads an export: where a matrix begins moves the last bits of its product with one vector.
            weight.data = weight.data.clone()
        return cls(name, trial, edited, lm, workspace)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The edited parameters by name, as stored in the model, in its precision."""
        return {n.removeprefix(WEIGHTS): t for n, t in self.edited.tensors.items() if n.startswith(WEIGHTS)}

    @property
    def has_memory(self) -> bool:
        """Whether the edits live in modules that replace others, not in weights."""
        return bool(self.edited.meta["patch"] == "modules")

    @cached_property
    def records(self) -> Sequence[EditRecord]:
        """The records that were written, in the order in which they were."""
        records = tuple(open_dataset(self.trial.data, self.workspace))
        # as the study put them in order, by the same seed and label
        records = tuple(arranged(records, self.trial.data.order, derive(self.trial.seed, "order")))
        spec, written = self.trial, records[: self.trial.protocol.rounds[-1]]
        return prompted(self.lm, written, spec.data, spec.model.name)[1]

    @contextmanager
    def attached(self) -> Iterator[LanguageModel]:
        """Let the model be as edited inside the block; it is pristine again afterwards."""
        with attached(self.lm, self.trial.editor, self.edited.tensors, self.edited.meta) as lm:
            yield lm


@contextmanager
def attached(
    lm: LanguageModel, editor: EditorSpec, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, object]
) -> Iterator[LanguageModel]:
    """Let the pristine *lm* be what *tensors* and *meta* of an edited model say inside the block."""
    ledger = Ledger(lm)
    try:
        # inside `try`: what breaks off half-way is taken back too
        ledger.load({n.removeprefix(WEIGHTS): t.to(lm.device) for n, t in tensors.items() if n.startswith(WEIGHTS)})
        if meta["patch"] == "modules":
            state = pytree.unflatten(STATE, tensors, meta["state"], lm.device)
            ledger.apply(build_editor(editor).module_patch(lm, state))
        yield lm
    finally:
        ledger.restore()
