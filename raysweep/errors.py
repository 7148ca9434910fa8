"""Every error a user can meet; each docstring is its entry in ``docs/errors.md`` (cause, then cure)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class RaysweepError(Exception):
    """Something raysweep understands went wrong.

    Cause: see the message; it names what was found and what was wanted.
    Cure: follow the hint; ``--debug`` prints the traceback.
    """

    code: ClassVar[str] = "E-RAYSWEEP"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        # Attributes survive pickling, and with it the way back from a process of Ray's; keywords do not.
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


class NameUnknownError(RaysweepError):
    """A name is not in its table.

    Cause: an editor, wrapper, model, dataset, study or metric was misspelt, or its package is not installed.
    Cure: use the suggested name; ``raysweep ls`` prints every table.
    """

    code = "E-NAME"


class PluginError(NameUnknownError):
    """A component of somebody's package cannot be used.

    Cause: its module raises an error when it is imported (a missing package, another version of raysweep), its entry point names
    what is not there, or its name is defined twice.
    Cure: the message names the package and what went wrong; mend, update or uninstall it. Everything else goes on without it.
    """

    code = "E-PLUGIN"


class SpecError(RaysweepError):
    """A search space cannot be used as written.

    Cause: an unknown key, a value of the wrong type or range, or keys that contradict each other.
    Cure: mend the quoted line; ``raysweep validate FILE`` checks without running anything.
    """

    code = "E-SPEC"


class YamlError(SpecError):
    """A file is not well-formed YAML 1.2.

    Cause: indentation, an unclosed bracket or quote, or a repeated key.
    Cure: mend the quoted line and column.
    """

    code = "E-YAML"


class ProtocolError(SpecError):
    """The evaluation rounds do not fit the run.

    Cause: a round beyond the number of records, or not a multiple of the batch size.
    Cure: choose rounds ≤ data.size that are multiples of protocol.batch_size.
    """

    code = "E-PROTOCOL"


class WrapError(SpecError):
    """A wrapper cannot wrap this editor.

    Cause: SimIE corrects weight changes; a memory editor (one that replaces modules) has none, and PRUNE only reports a
    reduced model, so nothing that corrects changes can go around it (PRUNE around SimIE works, unless it persists).
    Cure: remove the wrapper, put PRUNE outermost, or wrap a weight editor (``raysweep ls editors`` tells which).
    """

    code = "E-WRAP"


class RecordError(RaysweepError):
    """A record of a dataset cannot be used.

    Cause: an empty prompt or target, a field that is not text, a question without its answer, or what this editor needs is missing:
    a subject that occurs exactly once in the prompt, unrelated text, room in the model's positions.
    Cure: correct or drop the quoted record (the message names file and index), or leave such records out: ``data.invalid: skip``.
    """

    code = "E-RECORD"


class DataError(RaysweepError):
    """A dataset cannot be read.

    Cause: the file is missing, is not JSON, has other fields, or holds fewer records than asked for.
    Cure: give ``data.path``; ``raysweep data`` lists what was found and where files belong.
    """

    code = "E-DATA"


class ModelError(RaysweepError):
    """A model cannot be loaded or edited.

    Cause: the folder lacks weights or a tokenizer, the architecture has no layout, or the hub is out of reach.
    Cure: give a complete folder, a GGUF file or a hub id; ``raysweep models`` lists what works offline.
    """

    code = "E-MODEL"


class ArtifactError(RaysweepError):
    """A stored artifact cannot be used.

    Cause: a file in the artifact store was truncated or altered, or its text source is missing.
    Cure: delete the named folder; it is rebuilt by running the same command again.
    """

    code = "E-ARTIFACT"


class SnapshotError(RaysweepError):
    """A snapshot does not match its checksum.

    Cause: the file was truncated or altered after it was written.
    Cure: nothing is needed, the trial starts again from its first edit; the damaged file is kept as ``*.corrupt``.
    """

    code = "E-SNAPSHOT"


class StoreError(RaysweepError):
    """Results cannot be read or written.

    Cause: the results folder is missing or not writable, the disk is full, or the folder was removed or moved while a sweep ran.
    Cure: the message names the file or folder; mend it or choose another ``--storage``, and run the same command again.
    """

    code = "E-STORE"


class UnwritableError(StoreError):
    """Results cannot be written.

    Cause: the folder is read-only, belongs to somebody else, or the disk is full.
    Cure: mend it or choose another ``--storage``, and run the same command again.
    """


class DamagedError(StoreError):
    """A trial's files are not as they were written.

    Cause: a file was truncated, altered, replaced, removed, or copied in from another trial; or a state file (``trial.json``,
    ``DONE.json`` …) is not the JSON that raysweep writes.
    Cure: such a trial is left out of every table. ``raysweep run`` makes it again at once where a file is missing or a state file
    is damaged; a finished trial's altered tables it replaces only with ``--repair``.
    """

    code = "E-DAMAGED"


class NewerFormatError(StoreError):
    """A file was written by a newer raysweep.

    Cause: two versions of raysweep work on the same results.
    Cure: upgrade raysweep; this version neither reads nor replaces such a trial (``--fresh`` does delete it).
    """

    code = "E-NEWER"


class StorageLostError(StoreError):
    """The results folder was removed, moved or replaced while a sweep ran.

    Cause: somebody deleted or renamed it, ran the sweep with ``--fresh`` beside this one, or the disk went away.
    Cure: mend the storage and run the same command again; what is missing is made again.
    """

    code = "E-LOST"


class BusyError(StoreError):
    """Somebody else runs this sweep.

    Cause: another ``raysweep run`` works on the same results; the message names its host, process, user and start.
    Cure: wait for it or end it; with ``--anyway`` both run, which costs double work and changes no number.
    """

    code = "E-BUSY"


class RunFailedError(RaysweepError):
    """A sweep ended with trials that did not finish.

    Cause: each failed trial's FAILED.json holds its error and traceback.
    Cure: mend the cause and run the same command again with ``--retry``; finished trials are kept.
    """

    code = "E-RUN"


class OutOfMemoryError(RaysweepError):
    """The accelerator has too little memory for an evaluation or an edit.

    Cause: ``protocol.eval_batch`` rows, or edits made together, do not fit beside the model, even after what was cached has been
    freed.
    Cure: set the smaller number that the hint names. It is never made smaller by itself: rows of one forward pass move each other's
    last bits, so the number is a part of a trial's key.
    """

    code = "E-MEMORY"


class NodeError(RaysweepError):
    """A node lacks what a sweep needs.

    Cause: a node has no raysweep or another version of a package, does not see the results' storage, or misses a model or dataset;
    or a trial was given GPUs which torch does not see there (a torch for the CPU only, an old driver, GPUs that are made up).
    Cure: the message names the node, what it lacks and what mends it; give every node the same image and the same file system.
    ``resources.gpu: 0`` says that the CPU is meant.
    """

    code = "E-NODE"


class MissingExtraError(RaysweepError):
    """A feature needs a package that is not installed.

    Cause: the base installation keeps heavy packages out.
    Cure: run the quoted ``pip install`` line.
    """

    code = "E-EXTRA"


class GraphError(RaysweepError):
    """A knowledge graph cannot be made or used.

    Cause: too few relations occur together, a relation was lost in filtering, or a (subject, relation) has two objects.
    Cure: read more facts, ask for fewer relations, or lower ``min_cooccurrences``; the message names what was found.
    """

    code = "E-GRAPH"


class BeliefError(RaysweepError):
    """A belief is not defined.

    Cause: relations that depend on each other in a circle, a distribution without any mass, an evidence weight outside
    {≥ 1, −1, (0, 1)}, a label that is neither ``true`` nor ``false``, or fewer facts than asked for.
    Cure: correct the quoted value; docs/belief.md says what each quantity may be.
    """

    code = "E-BELIEF"


# Frozen, and so hashable: a plan says each problem once, however many points meet it.
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in one file: what was found, where, what was wanted, the nearest right answer."""

    code: str
    message: str
    file: str = ""
    line: int = 0  # 1-based; 0 = unknown
    column: int = 0  # 1-based; 0 = unknown
    hint: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}:{self.column}"
        head = f"error[{self.code}] {place}  {self.message}" if place else f"error[{self.code}] {self.message}"
        return f"{head}\n    {self.hint}" if self.hint else head


class ProblemsError(SpecError):
    """Several mistakes, reported together.

    Cause: the quoted lines.
    Cure: mend them all; nothing was run.
    """

    code = "E-SPEC"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "error" if count == 1 else "errors"
        lines = [str(p) for p in self.problems] + [f"{count} {noun}; nothing was run."]
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean: a, b?   known: …"`` for a misspelt *name*.

    >>> nearest("memmit", ["rome", "memit"])
    'did you mean: memit?   known: memit, rome'
    """
    # Sorted, so that a message does not depend on the order in which names were entered.
    table = sorted(set(known))
    close = difflib.get_close_matches(name, table, n=3, cutoff=0.6)
    tail = f"known: {', '.join(table)}" if table else "known: (none)"
    return f"did you mean: {', '.join(close)}?   {tail}" if close else tail
