"""How a trial asks: the prompts of its records as they are, or as turns of a chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raysweep.errors import ModelError
from raysweep.models.chat import ChatTemplate
from raysweep.records import EditRecord, Probe

if TYPE_CHECKING:
    from raysweep.config.schema import DataSpec
    from raysweep.models.lm import LanguageModel


def prompted(
    lm: LanguageModel, records: Sequence[EditRecord], data: DataSpec, model: str
) -> tuple[LanguageModel, Sequence[EditRecord]]:
    """Return the model and the records of a trial with their prompts as ``data.prompt`` says.

    Targets stay as they are, and come behind the prompt with the space that always joins them; an unrelated text is no prompt.

    Args:
        lm: the model; what comes back knows where a turn's text begins, so that contexts go there.
        records: of the dataset.
        data: the trial's.
        model: its name, for messages.

    Raises:
        ModelError: there is no chat template, or another than was planned with.
    """
    if data.prompt == "plain":
        return lm, records
    # the model's own tokenizer, in hand by now, and not the one that planned
    template = ChatTemplate.of(lm.tokenizer, lm.bos, model)
    if data.template not in ("", template.digest):
        raise ModelError(
            f"the chat template of model '{model}' is another than the plan saw ({template.digest}, planned {data.template})",
            hint="another version of transformers or jinja2? Install the same ones everywhere, or plan again",
        )
    return replace(lm, turn=template.head), [with_prompts(record, template.wrap) for record in records]


def with_prompts(record: EditRecord, wrap: Callable[[str], str]) -> EditRecord:
    """Return *record* with every prompt of it, and of its facts and probes, put through *wrap*."""
    further = tuple(replace(fact, prompt=wrap(fact.prompt)) for fact in record.further)
    return replace(
        record,
        prompt=wrap(record.prompt),
        further=further,
        probes=tuple(_wrapped(probe, wrap) for probe in record.probes),
    )


def _wrapped(probe: Probe, wrap: Callable[[str], str]) -> Probe:
    def both(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        return tuple((wrap(prompt), target) for prompt, target in pairs)

    known = tuple(both(pairs) for pairs in probe.known)
    return replace(probe, prompt=wrap(probe.prompt), alternatives=both(probe.alternatives), known=known)
