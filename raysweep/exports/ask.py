"""What a model writes before its edits and after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.evals.generation import continuations
from raysweep.exports.trials import EditedTrial


@dataclass(frozen=True)
class Answers:
    """A prompt and what comes after it, greedily.

    Attributes:
        prompt: what was asked.
        target: what its record was to make the model say; empty = it is no record's.
        before: the unedited model's continuation.
        after: the edited one's.
    """

    prompt: str
    target: str
    before: str
    after: str


def ask(opened: EditedTrial, prompts: Sequence[str], *, length: int) -> list[Answers]:
    """Return what *opened* writes after each of *prompts*, at most *length* tokens, before its edits and after them."""
    # Where records share a prompt, the last one written is what the model was to say.
    targets = {record.prompt: record.target for record in opened.records}
    before = continuations(opened.lm, prompts, length)
    with opened.attached() as lm:
        after = continuations(lm, prompts, length)
    return [Answers(p, targets.get(p, ""), b, a) for p, b, a in zip(prompts, before, after, strict=True)]
