"""Where the published splits rest on an assumption about the tokenizer that a text may break (quirk Q3).

A target is taken to begin after as many tokens as its prompt has, a subject to end with the last token of the text up to it.
That is right if the shorter text's ids are the first ids of the longer one's; nothing is changed where they are not, but it is
said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord, Probe, subject_error

log = logging.getLogger(__name__)


def split_elsewhere(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of *pairs* (how a text begins, the text) whose beginning is not encoded as the text begins."""
    if not pairs:
        return []
    parts, wholes = (lm.tokenizer(list(side))["input_ids"] for side in zip(*pairs, strict=True))
    # The shorter text's ids must begin the longer one's; where they do not, a token spans the border.
    return [pair for pair, p, w in zip(pairs, parts, wholes, strict=True) if list(w[: len(p)]) != list(p)]


def report(lm: LanguageModel, records: Sequence[EditRecord], probes: Sequence[Probe]) -> tuple[int, int]:
    """Log how many different questions and subjects are split elsewhere than the published rule says; return both counts.

    Args:
        lm: the model, for its tokenizer.
        records: what is written; the subject is looked for in the bare prompt.
        probes: what is asked.
    """
    answers = _different((p.prompt, tokens.join(p.prompt, p.target)) for p in probes)
    # Records without a subject are refused elsewhere; here they would only confuse the count.
    located = (r for r in records if subject_error(r) is None)
    subjects = _different((r.prompt.partition(r.subject)[0] + r.subject, r.prompt) for r in located)
    counts = []
    for what, pairs in (("answers begin", answers), ("subjects end", subjects)):
        split = split_elsewhere(lm, pairs)
        counts.append(len(split))
        if split:
            log.warning("%d of %d %s inside a token, first: %r in %r", len(split), len(pairs), what, *split[0])
    return counts[0], counts[1]


def _different(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(pairs))
