"""Protocols beside the main asking: how a model is asked, where its answer ends, and what is computed of it (docs/protocols.md).

A protocol is data here, with a version that is a part of the key of every trial that uses it; raise it when its numbers change.
How its answers are got is in :mod:`raysweep.evals.free` and :mod:`raysweep.evals.likelihood`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raysweep.errors import SpecError, nearest
from raysweep.records import Probe, ProbeKind

Stop = Literal["eos", "string", "length", "non_finite"]
"""Why an answer ended: an end-of-text token, a stop string, as many tokens as are allowed, logits that are no numbers."""

PROMPTS: Mapping[str, str] = {
    "question-only": "{q}",
    "qa_inst": "Please answer the question:\n\nQ: {q}\nA:",
    "chat": "",  # the tokenizer's own template; of the tokenizer, so raysweep/models/tokens.py applies it
}
"""By what a question is surrounded; ``{q}`` is the probe's prompt."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A number computed of each answer of a protocol.

    Attributes:
        name: in the column ``metric``, before ``@``.
        about: one sentence.
        locality: the name of the number that stands for it where a probe is compared with the unedited model.
        shown: whether it is a share of records, which ``raysweep show --protocol`` can show.
    """

    name: str
    about: str
    locality: str
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way of asking.

    Attributes:
        id: its name in a search space.
        version: of its numbers.
        about: one sentence.
        prompts: names of :data:`PROMPTS` that it can be asked with, the default first; empty: the probe's prompt as it is.
        max_tokens: how many tokens the model may write; 0 = it writes none.
        kinds: kinds of probes that it asks.
        scorers: what is computed of an answer, the number that is shown by default first.
        needs_true: the records must name the answer that was true before the edit.
    """

    id: str
    version: int
    about: str
    prompts: tuple[str, ...]
    max_tokens: int
    kinds: frozenset[ProbeKind]
    scorers: tuple[Scorer, ...]
    needs_true: bool = False

    def label(self, prompt: str) -> str:
        """Return how numbers of it are marked: ``wild-mirage:qa_inst/1``, or ``localft/1`` where there is one prompt only."""
        return f"{self.id}:{prompt}/{self.version}" if len(self.prompts) > 1 else f"{self.id}/{self.version}"


SAME = "same_answer"
"""Of locality, where a model writes: 1 if it wrote the unedited model's tokens, else 0."""
NORMALISED = Scorer("normalised_match", "1 if the answer is the target, both normalised as for SQuAD, else 0", SAME)
WHOLE = Scorer("whole_match", "the same, where the target's own inner full stops end no answer", SAME)
JUDGED = Scorer("judged", "1 if a judge said that the answer states the target, else 0 (raysweep judge)", SAME)
SUCCESS, ACCURACY, MARGIN = "prob_success", "token_accuracy", "prob_margin"
# Portability stays teacher-forced, as published.
_ASKED = frozenset({ProbeKind.EFFICACY, ProbeKind.PARAPHRASE, ProbeKind.LOCALITY})

PROTOCOLS: Mapping[str, Protocol] = {
    p.id: p
    for p in (
        Protocol(
            "wild-mirage", 1, "at most 50 tokens, greedily, up to a full stop or a newline (Yang et al., ACL 2025)",
            ("question-only", "qa_inst", "chat"), 50, _ASKED, (NORMALISED, WHOLE, JUDGED),
        ),
        Protocol(
            "localft", 1, "at most 32 tokens, greedily, up to a full stop or a newline; normalised exact match",
            ("question-only",), 32, _ASKED, (NORMALISED, WHOLE, JUDGED),
        ),
        Protocol(
            "memit_compat", 1, "whether the new answer is likelier than the true one (Meng et al., 2023)", (), 0, _ASKED,
            (
                Scorer(SUCCESS, "1 if the answer that should be likelier is: the new one, of neighbours the true one", SUCCESS),
                Scorer(ACCURACY, "share of that answer's tokens that are the arg-max under teacher forcing", ACCURACY),
                Scorer(MARGIN, "by how much it is likelier, geometric means over its tokens, -1..1", MARGIN, shown=False),
            ),
            needs_true=True,
        ),
    )
}  # fmt: skip


def metric_name(scorer: str, label: str) -> str:
    """Return what stands in the column ``metric``: ``normalised_match@wild-mirage:qa_inst/1``; the main asking's have no ``@``."""
    return f"{scorer}@{label}"


def inner_full_stops(target: str) -> int:
    """Return how many full stops stand inside *target*: a published stop rule cuts such an answer short.

    >>> [inner_full_stops(t) for t in ("Paris", "Apple Inc.", "Robert C. Newton", "16.5", "U.S.")]
    [0, 0, 1, 1, 1]
    """
    # A full stop at the very end cuts nothing off: it is removed from answers anyway.
    return target.strip().removesuffix(".").count(".")


def is_ended(text: str, inner: int = 0) -> bool:
    """Tell whether what was written so far holds a stop string: a newline, or more than *inner* full stops.

    >>> is_ended("Paris"), is_ended("Paris."), is_ended("C. Newton", inner=1), is_ended("16.5\\n", inner=1)
    (False, True, False, True)
    """
    return "\n" in text or text.count(".") > inner


def cleaned(raw: str, eos: str) -> str:
    """Return the answer in *raw*, which was decoded with special tokens, as published.

    One trailing full stop is removed, then one newline, then one end-of-text token, in this order: a token ``.\\n`` keeps its full
    stop. Spaces around the answer mean nothing to any scorer and go as well.

    >>> cleaned(" Paris.", "</s>"), cleaned(" Paris.\\n", "</s>"), cleaned(" Paris</s>", "</s>")
    ('Paris', 'Paris.', 'Paris')
    """
    # one of each and in this order, as published, though a loop would seem to be meant
    text = raw.removesuffix(".").removesuffix("\n")
    # removesuffix("") would be harmless, but a model without such a token has None for it
    return (text.removesuffix(eos) if eos else text).strip()


_ARTICLES = re.compile(r"\b(a|an|the)\b")
# ASCII alone, as in SQuAD's own script.
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return *text* as SQuAD's exact match compares it: lower case, no ASCII punctuation, no articles, single spaces.

    >>> normalised(" The  U.S. dollar!")
    'us dollar'
    """
    # SQuAD's order: punctuation goes first, so the `a` of `a-b` is no article any more.
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_match(answer: str, target: str) -> bool:
    """Tell whether *answer* and *target* are equal once normalised; where nothing is left of the target, as they are."""
    wanted = normalised(target)
    # a target such as "the" or "!" would otherwise be matched by an empty answer
    return normalised(answer) == wanted if wanted else answer.strip().lower() == target.strip().lower()


@dataclass(frozen=True, slots=True)
class Selection:
    """One number of one protocol, as ``--protocol`` names it: ``wild-mirage``, ``wild-mirage:qa_inst``, ``localft+whole_match``.

    Attributes:
        protocol: it.
        prompt: the name of its prompt.
        scorer: the number.
        judge: whose verdicts, of ``+judged=MODEL``; empty = those of the one judge there is.
    """

    protocol: Protocol
    prompt: str
    scorer: Scorer
    judge: str = ""

    @property
    def label(self) -> str:
        """The protocol's label."""
        return self.protocol.label(self.prompt)

    @property
    def text(self) -> str:
        """The protocol's label, and the number."""
        return f"{self.label} {self.scorer.name}{f' by {self.judge}' if self.judge else ''}"

    def metric(self, kind: str) -> str:
        """Return what the column ``metric`` has of it, in rows about probes of *kind*."""
        scorer = self.scorer.locality if kind == ProbeKind.LOCALITY else self.scorer.name
        return metric_name(scorer, self.label)

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Return what *text* names.

        Raises:
            SpecError: there is no such protocol, prompt or number.
        """
        rest, _, number = text.partition("+")
        scorer, _, judge = number.partition("=")
        name, _, prompt = rest.partition(":")
        if name not in PROTOCOLS:
            raise SpecError(f"unknown protocol '{name}'", hint=nearest(name, [*PROTOCOLS, "teacher_forced"]))
        protocol = PROTOCOLS[name]
        if prompt and prompt not in protocol.prompts:
            raise SpecError(f"protocol {name} has no prompt '{prompt}'", hint=nearest(prompt, protocol.prompts))
        scorers = {s.name: s for s in protocol.scorers if s.shown}
        if scorer and scorer not in scorers:
            raise SpecError(f"protocol {name} shows no '{scorer}'", hint=nearest(scorer, scorers))
        # memit_compat asks as the probe does, and has no prompts to choose from
        default = protocol.prompts[0] if protocol.prompts else ""
        if judge and scorer != JUDGED.name:
            raise SpecError(f"'{number}': only {JUDGED.name} has a judge", hint=f"+{JUDGED.name}={judge}")
        return cls(protocol, prompt or default, scorers[scorer] if scorer else protocol.scorers[0], judge)


def question(prompt: str, probe: Probe) -> str:
    """Return the text around *probe* that the prompt called *prompt* makes; not of ``chat``, whose template a tokenizer has."""
    # `replace` and not `format`, which would fail at other braces in a template.
    return PROMPTS[prompt].replace("{q}", probe.prompt)
