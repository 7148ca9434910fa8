"""The training text of a world: every fact in several wordings, alone and in paragraphs, with the spans of its objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from raysweep.seeds import derive
from raysweep.world.types import Fact, Sentence, World


def _sentence(wording: str, subject: str, obj: str) -> tuple[str, int]:
    """Return the sentence (without its full stop) and where the object begins."""
    prompt = wording.replace("{}", subject)
    return f"{prompt} {obj}", len(prompt) + 1


def _join(parts: Sequence[tuple[str, int, int]], glue: str, end: str = ".") -> Sentence:
    """Join texts, each with the span of its object, into one :class:`Sentence`."""
    text, spans = "", []
    for i, (part, start, stop) in enumerate(parts):
        text += glue if i else ""
        spans.append((len(text) + start, len(text) + stop))
        text += part
    return Sentence(text=text + end, spans=tuple(spans))


def training_sentences(world: World, epoch: int = 0) -> tuple[Sentence, ...]:
    """Return the training text of one epoch, in a seeded order.

    Per epoch every fact is stated at least twice alone (in wordings of :meth:`World.wordings_of`) and once within a
    paragraph or a multi-relation sentence about its subject; trained two-hop answers and types are stated once.

    Args:
        world: the world to describe.
        epoch: other epochs choose other wordings, orders and groupings.
    """
    rng = Random(derive(world.spec.seed, "text", epoch))
    sentences: list[Sentence] = []
    by_subject: dict[str, list[Fact]] = {}
    for fact in world.facts:
        by_subject.setdefault(fact.subject, []).append(fact)
        for wording in rng.sample(world.wordings_of(fact), min(2, world.spec.wordings_per_fact)):
            text, start = _sentence(wording, fact.subject, fact.object)
            sentences.append(_join([(text, start, len(text))], ""))
    for subject, facts in by_subject.items():
        sentences.extend(_grouped_facts(world, rng, subject, facts))
    for hop in world.hops:
        for subject in world.entities[world.relation(hop.first).domain]:
            if world.hop_trained(subject, hop):
                answer = world.object(world.object(subject, hop.first), hop.second)
                text, start = _sentence(rng.choice(hop.wordings), subject, answer)
                sentences.append(_join([(text, start, len(text))], ""))
    for kind in ("person", "city", "company", "country"):
        for subject in world.entities[kind]:
            text, start = _sentence("{} is a", subject, kind)
            sentences.append(_join([(text, start, len(text))], ""))
    rng.shuffle(sentences)
    return tuple(sentences)


def _grouped_facts(world: World, rng: Random, subject: str, facts: Sequence[Fact]) -> Iterator[Sentence]:
    """Split the facts of one subject into paragraphs and multi-relation sentences."""
    order = list(facts)
    rng.shuffle(order)
    while order:
        # Two to four facts at a time.
        size = min(len(order), rng.choice((2, 3, 4)))
        group, order = order[:size], order[size:]
        verbs = []
        for fact in group:
            options = [w for w in world.wordings_of(fact) if w.startswith("{} ")]
            if not options:
                break
            text, _ = _sentence(rng.choice(options), subject, fact.object)
            verbs.append(text)
        if len(verbs) == len(group) and rng.random() < 0.5:
            # The subject once, then the verbs: "Ada lives in X and plays the Y".
            cut = [verbs[0], *(v[len(subject) + 1 :] for v in verbs[1:])]
            parts = [(v, len(v) - len(f.object), len(v)) for v, f in zip(cut, group, strict=True)]
            yield _join(parts, " and ")
        else:
            parts = []
            for fact in group:
                text, start = _sentence(rng.choice(world.wordings_of(fact)), subject, fact.object)
                parts.append((text, start, len(text)))
            yield _join(parts, ". ")
