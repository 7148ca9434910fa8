"""What a run will ask of an editor, a model and records, asked while planning; pure, of values in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from raysweep.config.components import ModelFacts
from raysweep.config.editor_schema import EditorConfig
from raysweep.config.places import KeyPath
from raysweep.config.values import BlockNumber
from raysweep.errors import RecordError
from raysweep.records import EditRecord, length_error
from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor


def blocks_of(config: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Yield every block that *config* names, with the path of the key that names it."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(mark, BlockNumber) for mark in info.metadata):
            if isinstance(value, tuple):
                yield from (((*path, name, i), number) for i, number in enumerate(value))
            else:
                yield (*path, name), value
        elif isinstance(value, BaseModel):
            yield from blocks_of(value, (*path, name))


def missing_blocks(config: BaseModel, facts: ModelFacts) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong with each block that *config* names and the model does not have."""
    for path, number in blocks_of(config):
        if facts.blocks and number >= facts.blocks:
            dotted = ".".join(map(str, path))
            yield (
                path,
                f"{dotted}: there is no block {number}; the model has {facts.blocks}, from 0 to {facts.blocks - 1}",
            )


def unfit(kind: type[AnyEditor], model: ModelFacts, editors: Registry[type[AnyEditor]]) -> tuple[str, str] | None:
    """Return why an editor of class *kind* cannot edit a model, and which can; None if it can, or if that is not known.

    Args:
        kind: the class of the editor, or of a wrapper.
        model: what is known of the model.
        editors: all that there are.
    """
    reason = next((model.lacks[need] for need in kind.needs if need in model.lacks), None)
    if reason is None:
        return None
    # whoever reads the message wants to know what is left
    able = [name for name in editors.names() if not set(editors.get(name).needs) & set(model.lacks)]
    return f"{kind.name} cannot edit a model of type {model.kind}: {reason}", f"what can: {', '.join(able)}"


def refusal(
    editor: type[AnyEditor] | None, config: EditorConfig | None, facts: ModelFacts
) -> Callable[[EditRecord], RecordError | None]:
    """Return what tells why *editor* cannot write a record on a model; what it returns is None where it can.

    Args:
        editor: the editor's class; None = not known, which was noted elsewhere.
        config: its configuration; None likewise.
        facts: of the model.
    """
    check = editor.record_check(config) if editor is not None and config is not None else None
    before = _context_tokens(config) if config is not None else 0

    def why(record: EditRecord) -> RecordError | None:
        errors = (check(edit) for edit in record.edits) if check is not None else ()
        error = next((e for e in errors if e is not None), None)
        if editor is not None and error is not None:
            return RecordError(f"{editor.name} cannot write {error.message}", hint=error.hint)
        return length_error(record, facts.positions, facts.count, before=before)

    return why


def _context_tokens(config: EditorConfig) -> int:
    """Return about how many tokens of context an editor puts before a prompt, at most."""
    sampled = (spec.lengths for spec in config.context_specs() if spec.templates is None)
    return max((length for lengths in sampled for length, _ in lengths), default=0)
