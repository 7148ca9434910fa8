"""Prompts as turns of a chat: what a tokenizer's chat template makes of a user's text, up to where the model's answer begins.

A template may look at the clock (Llama 3.2, gpt-oss write the day's date). A number may not depend on the day, so the clock stands
still at the date that Llama 3.1's own template names where nobody gives one. Models that think first are told not to, since what
comes behind the turn is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from string import ascii_letters
from typing import TYPE_CHECKING

from raysweep.errors import ModelError
from raysweep.hashing import digest
from raysweep.lazy import lazy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raysweep.config.schema import ModelSpec
    from raysweep.workspace import Workspace

TODAY = datetime(2024, 7, 26)
_DIRECTIVES = "aAbBdHIjmMpSyY"  # of dates and times, as strftime has them
_MARK = "Xq7Zk"  # a text that no template has
_BATTERY = ("Who designed Lyra Bridge?", " a ", "a\nb", "東京", "", "{a}")  # what templates treat in ways of their own
_HINT = "data.prompt: plain; or an instruct model, whose tokenizer brings a template (tokenizer_config.json, chat_template.jinja)"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        tokenizer: whose it is.
        head: what stands before the user's text.
        bos: what the template begins with and an encoded text gets anyway; it is left out.
        digest: 16 hex digits over what the template makes of a few texts.
    """

    tokenizer: PreTrainedTokenizerBase
    head: str
    bos: str
    digest: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, bos: Sequence[int], model: str) -> ChatTemplate:
        """Return the template of *tokenizer*.

        Args:
            tokenizer: with the BOS policy applied.
            bos: ids that the policy puts before every text by hand.
            model: its name, for messages.

        Raises:
            ModelError: there is no template, it cannot be filled in, or it hides the user's text.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"data.prompt: chat, but the tokenizer of model '{model}' has no chat template", hint=_HINT
            )
        try:
            whole = filled(tokenizer, _MARK)
            texts = [filled(tokenizer, text) for text in _BATTERY]
        except Exception as error:  # a template is a program of the model's author
            raise ModelError(f"the chat template of model '{model}' fails: {error}", hint=_HINT) from error
        if whole.count(_MARK) != 1:
            raise ModelError(
                f"the chat template of model '{model}' holds the user's text {whole.count(_MARK)} times", hint=_HINT
            )
        # left out once for all: every text begins alike
        first = _doubled(tokenizer, bos, whole)
        head = whole.partition(_MARK)[0].removeprefix(first)
        # what it makes of texts is the key, not its source: rewritten with the same turns it is the same
        return cls(tokenizer, head, first, digest([whole, *texts]))

    def wrap(self, text: str) -> str:
        """Return *text* as the user's turn, with the beginning of the model's.

        Raises:
            ModelError: of this text the template makes a turn that begins otherwise, so nobody knows where contexts go.
        """
        turn = filled(self.tokenizer, text).removeprefix(self.bos)
        if not turn.startswith(self.head):
            raise ModelError(
                f"the chat template begins otherwise for {text!r}: {turn[:80]!r}, not {self.head!r}", hint=_HINT
            )
        return turn


def _clock() -> str:
    """Return a macro that takes the place of the clock in a template: a template is given data, and no functions."""
    # %-d and the like: a number without its leading zero, as templates written for glibc ask for it
    replaced = "".join(f"|replace('%-{c}','{int(TODAY.strftime('%' + c))}')" for c in "dmHIMSj")
    replaced += "".join(f"|replace('%{c}','{TODAY.strftime('%' + c)}')" for c in ascii_letters if c in _DIRECTIVES)
    # a directive that nothing has replaced would stand in every prompt, so it is an error
    unknown = "{%- if '%' in day -%}{{ raise_exception('unknown date format ' ~ format) }}{%- endif -%}"
    return (
        "{%- macro strftime_now(format) -%}{%- set day = format"
        + replaced
        + " -%}"
        + unknown
        + "{{ day }}{%- endmacro -%}"
    )


def filled(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return what the chat template of *tokenizer* makes of a user's *text*, BOS included, up to where the answer begins."""
    turn: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        # a macro of the template's own hides transformers' strftime_now, which reads the clock
        chat_template=_clock() + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=True,
        # else the answer would begin with thoughts, not with the target (Qwen 3)
        enable_thinking=False,
        # Llama 3's templates take the date from here and ask the clock only where it is not given
        date_string=TODAY.strftime("%d %b %Y"),
    )
    return turn


def _doubled(tokenizer: PreTrainedTokenizerBase, bos: Sequence[int], text: str) -> str:
    """Return the BOS token at the beginning of *text* if encoding puts one there as well; else nothing."""
    first = str(tokenizer.bos_token or "")
    # Seen in the ids: what a tokenizer adds, its configuration does not always say.
    ids = [*bos, *tokenizer(text)["input_ids"]]
    return first if first and text.startswith(first) and ids[:2] == [tokenizer.bos_token_id] * 2 else ""


def planned_digest(spec: ModelSpec, workspace: Workspace) -> str:
    """Return the digest of the template of a model that is not loaded; empty where its tokenizer is not here.

    Raises:
        ModelError: see :meth:`ChatTemplate.of`.
    """
    # of a hub model that is not here, nothing is fetched to plan
    identity = lazy("raysweep.models.sources.catalogue").identify(spec, workspace)
    if identity.tokenizer is None:
        return ""
    tokenizer, bos = lazy("raysweep.models.sources.tokenizers").open_tokenizer(identity.where, spec, workspace)
    return ChatTemplate.of(tokenizer, bos, spec.name).digest
