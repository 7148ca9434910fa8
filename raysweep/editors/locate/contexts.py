"""Context templates: short texts sampled from the pristine model, put before a prompt to average over contexts.

ROME and MEMIT average a key over ``c`` texts that begin with "The", "Therefore", … and optimise the value in all of them (ROME
eq. 3 and 4; docs/methods/rome.md). A text is drawn token by token from the renormalised top 5 and ends with ``". {}"``.
WISE continues openings instead (docs/methods/wise.md).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import Artifact, ArtifactRequest, Built
from raysweep.editors.specs import ContextSpec
from raysweep.models import tokens
from raysweep.models.forward import blocks
from raysweep.models.lm import LanguageModel
from raysweep.seeds import derive

# The published openings: of ROME's and MEMIT's texts, and of WISE's.
STARTS = ("The", "Therefore", "Because", "I", "You")
OPENINGS = ("I", "You", "Because", "Yes", "Q: ")


def request(lm: LanguageModel, config: ContextSpec) -> ArtifactRequest:
    """Return the request for sampled templates of the pristine model."""
    return ArtifactRequest(
        "contexts",
        {"lengths": config.lengths, "seed": config.seed},
        "raysweep.editors.locate.contexts:build",
        model=lm.identity,
        version=VERSIONS["contexts"],
    )


def request_continuations(lm: LanguageModel, config: ContextSpec) -> ArtifactRequest:
    """Return the request for continued openings (WISE): ``lengths`` counts *new* tokens, and no full stop is added."""
    plain = request(lm, config)
    inputs = {**plain.inputs, "style": "continuations"}
    return replace(plain, inputs=inputs, builder="raysweep.editors.locate.contexts:build_continuations")


def templates(config: ContextSpec, artifact: Artifact | None) -> tuple[str, ...]:
    """Return ``("{}", sampled…)``: the given templates, or those of the artifact."""
    if config.templates is not None:
        return ("{}", *(t for t in config.templates if t != "{}"))
    assert artifact is not None
    return ("{}", *artifact.meta["templates"])


def build(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Sample the templates of each request by ancestral top-5 sampling from the pristine model."""
    # A file of tensors cannot be empty, hence the placeholder; the texts are metadata.
    return [
        ({"none": torch.zeros(1)}, {"templates": _sample(lm, r.inputs["lengths"], r.inputs["seed"])}) for r in requests
    ]


def build_continuations(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Continue the openings of each request, sampled like the other templates (the published ones depend on the model's
    generation config; quirk Q26)."""
    return [
        ({"none": torch.zeros(1)}, {"templates": _continuations(lm, r.inputs["lengths"], r.inputs["seed"])})
        for r in requests
    ]


def _continuations(lm: LanguageModel, lengths: Sequence[tuple[int, int]], seed: int) -> list[str]:
    """Continue the first *count* openings by *length* tokens, for each ``(length, count)`` of *lengths*."""
    texts = []
    for number, (length, count) in enumerate(lengths):
        for start in OPENINGS[: int(count)]:
            # A generator per text: no text depends on how many others are sampled.
            rng = torch.Generator().manual_seed(derive(int(seed), "continuations", number, start, 0))
            ids = _continue(lm, start, len(tokens.encode(lm, start)) + int(length), rng)
            texts.append(_clean(tokens.decode(lm, ids)) + " {}")
    return texts


def _sample(lm: LanguageModel, lengths: Sequence[tuple[int, int]], seed: int) -> list[str]:
    """Sample *count* texts of *length* tokens, shared out over the beginnings, for each ``(length, count)`` of *lengths*."""
    texts = []
    for number, (length, count) in enumerate(lengths):
        each = max(1, count // len(STARTS))
        for start in STARTS[: min(count, len(STARTS))]:
            for sample in range(each):
                # A generator per text: no text depends on how many others are sampled.
                rng = torch.Generator().manual_seed(derive(int(seed), "contexts", number, start, sample))
                texts.append(_clean(tokens.decode(lm, _continue(lm, start, int(length), rng))) + ". {}")
    return texts


def _continue(lm: LanguageModel, start: str, length: int, rng: torch.Generator) -> list[int]:
    """Continue *start* to *length* tokens in all, each drawn from the renormalised top 5."""
    ids = tokens.encode(lm, start)
    special = set(lm.tokenizer.all_special_ids)
    while len(ids) < length:
        with torch.no_grad():
            # The whole text is run for each token: short texts, sampled once per model.
            row, mask = tokens.pad([ids], lm.device)
            top = blocks.logits(lm, blocks.run(lm, ids=row, mask=mask)[0, -1]).topk(5)
        # Softmax over the five largest logits is the distribution renormalised to them. On the CPU, so that devices
        # draw alike.
        # One read for both: fp64 holds chances and ids exactly.
        chances, drawn = torch.stack([top.values.softmax(0).double(), top.indices.double()]).cpu()
        ids.append(int(drawn[int(torch.multinomial(chances.to(top.values.dtype), 1, generator=rng))]))
    return [i for i in ids if i not in special]


def _clean(text: str) -> str:
    """Return *text* on one line, without braces and without the characters that sampling cut in two."""
    # A text that ends within a character of several tokens decodes to a replacement character.
    text = text.replace("\ufffd", "")
    # Braces would be taken for the template's slot.
    flat = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("\n", " ")
    return flat.replace("{", " ").replace("}", " ").strip()
