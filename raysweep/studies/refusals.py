"""What a plan asks of records, asked again of the model in hand: its own tokenizer counts, where a plan may not have had one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from raysweep.config.checks import refusal, unfit
from raysweep.config.components import ModelFacts
from raysweep.editors import EDITORS
from raysweep.errors import ModelError
from raysweep.lazy import lazy
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor
    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
else:
    tokens = lazy("raysweep.models.tokens")


def check_records(lm: LanguageModel, editor: AnyEditor, records: Iterable[EditRecord]) -> None:
    """Raise before the first edit what would end a trial in the middle.

    Args:
        lm: the model that is edited.
        editor: with its wrappers.
        records: those that are written.

    Raises:
        ModelError: the editor needs what models of this family do not have.
        RecordError: the editor cannot write a record, or the record is longer than the model's positions; it is named.
    """
    # Wrappers refuse nothing of their own; what a record needs is told by the editor inside.
    editor = editor.innermost()
    kind, lacks = lm.layout.model_type, lm.layout.lacks
    facts = ModelFacts(lm.n_blocks, lm.positions, lambda text: len(tokens.encode(lm, text)), kind=kind, lacks=lacks)
    # Of a hub model that was not here, the plan knew no layout.
    found = unfit(type(editor), facts, EDITORS)
    if found is not None:
        raise ModelError(found[0], hint=found[1])
    why = refusal(type(editor), editor.config, facts)
    for record in records:
        error = why(record)
        if error is not None:
            raise error
