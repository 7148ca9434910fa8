"""Builds a world from its spec: names, relations with their wordings, and facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from raysweep.errors import SpecError
from raysweep.seeds import derive
from raysweep.world.types import WORLD_VERSION, Fact, Hop, Relation, World, WorldSpec
from raysweep.world.vocabulary import FRAMES, HOP_FRAMES, HOPS, RELATIONS, UNSEEN_FRAME, VALUES


def _draw_names(rng: Random, count: int, shapes: Sequence[str], endings: Sequence[str], taken: list[str]) -> list[str]:
    """Draw *count* made-up words; none contains, or is contained in, one in *taken* (which is extended)."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    drawn: list[str] = []
    for _ in range(count * 200):
        if len(drawn) == count:
            return drawn
        shape = rng.choice(shapes)
        word = "".join(rng.choice(consonants if c == "C" else vowels) for c in shape) + rng.choice(endings)
        # A name within another would make a subject ambiguous in its prompt.
        if any(word in t or t in word for t in taken):
            continue
        taken.append(word)
        drawn.append(word.capitalize())
    raise SpecError(f"cannot draw {count} different names", hint="ask for fewer entities")


def _choose_wordings(spec: WorldSpec) -> tuple[Relation, ...]:
    """Choose, per relation, which frames are trained, which are novel, and with which noun."""
    chosen = []
    for name, domain, range_, nouns, verbs, role in RELATIONS:
        rng = Random(derive(spec.seed, "relation", name))
        frames = list(FRAMES)
        rng.shuffle(frames)
        held_out, used = frames[:3], frames[3:]
        # Each frame with one of the relation's two nouns, and then with the other one.
        combinations = [frame.replace("{n}", nouns[i % len(nouns)]) for i, frame in enumerate(used)]
        rest = [frame.replace("{n}", nouns[(i + 1) % len(nouns)]) for i, frame in enumerate(used)]
        rng.shuffle(rest)
        trained = (*verbs, *combinations, *rest)[: len(verbs) + spec.trained_wordings]
        # The held-out frames, and last one that no relation is trained with.
        novel = [frame.replace("{n}", rng.choice(nouns)) for frame in (*held_out, UNSEEN_FRAME)]
        wordings = {"nouns": nouns, "trained": trained, "novel": tuple(novel)}
        chosen.append(Relation(name=name, domain=domain, range=range_, role=role, **wordings))
    return tuple(chosen)


def build_world(spec: WorldSpec | None = None) -> World:
    """Build the world of *spec* (the default world if there is none).

    Raises:
        SpecError: the spec is of another version, or asks for more names than can be made.
    """
    spec = spec or WorldSpec()
    if spec.version != WORLD_VERSION:
        raise SpecError(f"world version {spec.version} is not supported", hint=f"use version={WORLD_VERSION}")
    if spec.countries > spec.cities or min(spec.cities, spec.companies, spec.people) < 2:
        raise SpecError("a world needs ≥ 2 people, cities and companies, and a city per country", hint="raise cities")
    # No name may contain, or be contained in, a word of the sentences or of a closed type.
    words = " ".join([*FRAMES, UNSEEN_FRAME, *HOP_FRAMES, *(" ".join((*n, *v, r)) for *_, n, v, r in RELATIONS)])
    taken = sorted({w for w in words.replace("{}", " ").replace("{n}", " ").lower().split() if len(w) > 3})
    taken += sorted({w for values in VALUES.values() for w in values})

    def draw(kind: str, count: int, shapes: Sequence[str], endings: Sequence[str]) -> list[str]:
        return _draw_names(Random(derive(spec.seed, "names", kind)), count, shapes, endings, taken)

    first = draw("first", max(4, spec.people // 3), ("CVC", "CVCV"), ("a", "en", "i", "o", "is"))
    last = draw("last", max(4, spec.people // 2), ("CVC", "CVCC"), ("er", "sky", "man", "well", "ez"))
    # Few first and last names, many combinations: names share words, as real ones do.
    pairs = [(f, s) for f in first for s in last]
    Random(derive(spec.seed, "people")).shuffle(pairs)
    if spec.people > len(pairs):
        raise SpecError(f"cannot draw {spec.people} different people", hint="ask for fewer people")
    companies = draw("company", spec.companies, ("CVC", "CVCC"), ("ex", "ix", "on", "tec"))
    # Every second company has a second word, so that subjects differ in their number of tokens.
    suffix = Random(derive(spec.seed, "suffix"))
    kinds = ("Works", "Mills", "Group", "Lines")
    companies = [f"{c} {suffix.choice(kinds)}" if i % 2 else c for i, c in enumerate(companies)]
    entities = {
        "person": sorted(f"{f} {s}" for f, s in pairs[: spec.people]),
        "city": draw("city", spec.cities, ("CVC", "CVCC"), ("ford", "burg", "ville", "mouth", "port")),
        "company": companies,
        "country": draw("country", spec.countries, ("CVC", "CVCC"), ("ia", "land", "stan")),
        "river": draw("river", spec.rivers, ("VC", "CV"), ("nne", "ga", "zel", "ver", "rr")),
        "language": draw("language", spec.languages, ("CVC", "CVCC"), ("ish", "ese", "ic")),
        "currency": draw("currency", spec.currencies, ("CVC",), ("ar", "in", "una", "ot")),
        **{kind: list(values) for kind, values in VALUES.items()},
    }
    table = {kind: tuple(sorted(entities[kind])) for kind in sorted(entities)}
    relations = _choose_wordings(spec)
    return World(
        spec=spec,
        entities=table,
        relations=relations,
        hops=tuple(_hop(relations, first, second) for first, second in HOPS),
        facts=tuple(_facts(spec, table, relations)),
    )


def _hop(relations: tuple[Relation, ...], first: str, second: str) -> Hop:
    by_name = {r.name: r for r in relations}
    role, nouns = by_name[first].role, by_name[second].nouns
    wordings = (frame.replace("{role}", role).replace("{n}", noun) for noun in nouns for frame in HOP_FRAMES)
    return Hop(first=first, second=second, wordings=tuple(wordings))


def _facts(spec: WorldSpec, entities: Mapping[str, tuple[str, ...]], relations: Sequence[Relation]) -> Iterator[Fact]:
    """Give every subject one object per relation; objects are dealt evenly. A capital lies in its country."""
    country_of: dict[str, str] = {}
    for relation in relations:
        subjects, objects = entities[relation.domain], entities[relation.range]
        rng = Random(derive(spec.seed, "facts", relation.name))
        if relation.name == "capital":  # a city of that country
            for subject in subjects:
                city = rng.choice([c for c in entities["city"] if country_of[c] == subject])
                yield Fact(subject=subject, relation=relation.name, object=city)
            continue
        # Dealt like cards, so that every object is about as frequent.
        deck = [objects[i % len(objects)] for i in range(len(subjects))]
        rng.shuffle(deck)
        for subject, obj in zip(subjects, deck, strict=True):
            if relation.name == "country":
                country_of[subject] = obj
            yield Fact(subject=subject, relation=relation.name, object=obj)
