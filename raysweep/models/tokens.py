"""Every rule about ids: BOS, joining spaces, target spans, the subject's last token, padding.

Words: ``enc(s)`` is the normal encoding with special tokens (and the policy's BOS); ``enc-(s)`` is the encoding without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.errors import ModelError
from raysweep.models import chat
from raysweep.models.lm import LanguageModel


def encode(lm: LanguageModel, text: str) -> list[int]:
    """Return ``enc(text)``: special tokens and the model's BOS policy included."""
    # the tokenizer's own template may add a BOS; the policy's comes before it by hand
    ids: list[int] = lm.tokenizer(text)["input_ids"]
    return [*lm.bos, *ids]


def encode_alone(lm: LanguageModel, text: str) -> list[int]:
    """Return ``enc-(text)``: no special tokens."""
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def as_chat(lm: LanguageModel, question: str) -> str:
    """Return *question* as the one message of a user in the tokenizer's own chat template, up to where the answer begins.

    The template writes special tokens out, BOS too, so the text is encoded without more (:func:`encode_alone`). Its clock stands
    still, and a model that thinks first is told not to.

    Raises:
        ModelError: the tokenizer has no such template.
    """
    if not lm.tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, so nothing can be asked as a chat",
            hint="use an instruction-tuned model, or another prompt of the protocol",
        )
    return chat.filled(lm.tokenizer, question)


def decode(lm: LanguageModel, ids: Sequence[int]) -> str:
    """Return the text of *ids*, exactly (no clean-up of spaces)."""
    # cleaning up would drop spaces before punctuation, which are tokens
    text: str = lm.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text


def join(prompt: str, target: str) -> str:
    """Return ``prompt + " " + target``: always exactly one added space (docs/quirks.md, Q5).

    >>> join("a", " b")
    'a  b'
    """
    return f"{prompt} {target}"


def with_space(target: str) -> str:
    """Return *target* with a space before it unless it begins with one (MEMIT, SimIE; quirk Q4).

    >>> with_space("b"), with_space(" b")
    (' b', ' b')
    """
    return target if target.startswith(" ") else f" {target}"


def with_added_space(target: str) -> str:
    """Return *target* with a space before it, even if it begins with one (ROME, FT; quirk Q4).

    >>> with_added_space(" b")
    '  b'
    """
    return target if target == " " else f" {target}"


def in_context(lm: LanguageModel, context: str, prompt: str) -> str:
    """Return *prompt* behind the text of *context*, which has ``{}`` in its place; in a chat, both are one turn."""
    return lm.turn + context.replace("{}", prompt.removeprefix(lm.turn))


@dataclass(frozen=True, slots=True)
class LabelledIds:
    """Ids of ``prompt ⊕ target`` and where its answer begins: labels are ``ids[start:]``."""

    ids: tuple[int, ...]
    start: int

    @property
    def labels(self) -> tuple[int, ...]:
        """The answer's ids."""
        return self.ids[self.start :]


def labelled_ids(lm: LanguageModel, prompt: str, text: str) -> LabelledIds:
    """Return the ids of *text* (which begins with *prompt*) split where MEMIT's published evaluation splits them.

    ``start = #non-pad ids of enc(prompt) + #pad ids of enc(text)``; the assumption that ``enc(prompt)`` is a prefix of
    ``enc(text)`` is the published rule (quirk Q3). The policy's BOS is an ordinary token here, whatever its id.
    """
    pad = lm.tokenizer.pad_token_id
    head = len(lm.bos)
    # pad ids are counted apart, as published: in text they are as good as absent from the prompt's length
    text_ids, prompt_ids = encode(lm, text), encode(lm, prompt)
    prompt_length = head + sum(i != pad for i in prompt_ids[head:])
    return LabelledIds(tuple(text_ids), prompt_length + sum(i == pad for i in text_ids[head:]))


@dataclass(frozen=True, slots=True)
class Target:
    """A target as it is written behind a prompt.

    Attributes:
        text: the target with its joining space.
        alone: ``enc-(text)``.
        demanded: the ids that an editor asks for.
    """

    text: str
    alone: tuple[int, ...]
    demanded: tuple[int, ...]


def target(lm: LanguageModel, prompt: str, text: str, *, strip_dummy_piece: bool = False) -> Target:
    """Return the target *text* (joining space included), which comes behind *prompt*.

    The demanded ids are those of the text by itself, as published. SentencePiece puts a stand-alone space piece before a text
    that begins with a space, which no sentence has (quirk Q6): with *strip_dummy_piece* the demanded ids are those that the
    target has in ``prompt + text``.
    """
    alone = tuple(encode_alone(lm, text))
    return Target(text, alone, in_sentence(lm, prompt, text) if strip_dummy_piece else alone)


def in_sentence(lm: LanguageModel, prompt: str, text: str) -> tuple[int, ...]:
    """Return the ids of *text* as ``prompt + text`` has them; its own where the two share all of its tokens."""
    return labelled_ids(lm, prompt, prompt + text).labels or tuple(encode_alone(lm, text))


def before_last(lm: LanguageModel, prompt: str, target: Target) -> list[int]:
    """Return the ids of *prompt* and *target* but for the last one: what the model sees before it says the last demanded id.

    They are cut from one encoding of the whole text, which is what the evaluation asks about, so a character of several tokens
    stays what it is. Only where prompt and target share a token, and the text does not end with the target's other ids either, do
    the target's own ids come after the prompt's.
    """
    text_ids, prompt_ids, target_ids = encode(lm, prompt + target.text), encode(lm, prompt), list(target.alone)
    # the prompt's ids are the beginning of the text's: cut there
    split = len(text_ids) > len(prompt_ids) and text_ids[: len(prompt_ids)] == prompt_ids
    # or the text ends like the target: then all but its last id is before the last demanded one
    if split or (len(target_ids) > 1 and text_ids[1 - len(target_ids) :] == target_ids[1:]):
        return text_ids[:-1]
    return [*prompt_ids, *target_ids[:-1]]


def subject_last(lm: LanguageModel, template: str, subject: str) -> int:
    """Return the index of the subject's last token in ``template.format(subject)``, as ROME looks it up.

    It is the last index of the stand-alone encoding of everything up to and including the subject.

    Raises:
        ValueError: the template does not have exactly one ``{}``.
    """
    parts = template.split("{}")
    if len(parts) != 2:
        raise ValueError(f"a template needs exactly one '{{}}', got {template!r}")
    # encoded alone, as ROME does, though what follows the subject may merge with its last token
    return len(encode(lm, parts[0] + subject)) - 1


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded ids ``[B, T]`` and their mask ``[B, T]`` (int64, 1 = a real token).

    Pads repeat id 0; the mask, never the id, tells them apart.
    """
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)
