"""A seeded, made-up world: typed entities, functional relations, many wordings, counterfactual edits.

Everything is a sorted or seeded tuple, so a world depends on its :class:`WorldSpec` alone. Only the standard
library is used; the world serves as a dataset, as training text of the embedded model and as a knowledge graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from raysweep.errors import SpecError
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.seeds import derive

WORLD_VERSION = 1

# Frames shared by all relations: "{n}" takes a relation noun, "{}" the subject. Per relation some are held out.
_FRAMES = (
    "The {n} of {} is",
    "{}'s {n} is",
    "As for {}, the {n} is",
    "People say that the {n} of {} is",
    "In the records, {}'s {n} is",
    "What is the {n} of {}? It is",
    "For {}, the {n} is known to be",
    "Regarding the {n} of {}, the answer is",
    "Looking at {}, the {n} is",
    "It is well known that {}'s {n} is",
)
# Never trained with any relation; made of words the other frames use.
_UNSEEN_FRAME = "People say that in the records, the {n} of {} is"

_HOP_FRAMES = ("The {n} of {role} is", "For {role}, the {n} is", "People say that the {n} of {role} is")

_VALUES: dict[str, tuple[str, ...]] = {
    "profession": (
        "baker", "barber", "butcher", "carpenter", "chemist", "dentist", "farmer", "gardener",
        "jeweller", "judge", "lawyer", "mason", "nurse", "pilot", "plumber", "teacher",
    ),
    "instrument": (
        "banjo", "bassoon", "cello", "clarinet", "flute", "guitar", "harp", "mandolin", "oboe", "organ",
        "trumpet", "violin",
    ),
    "sport": (
        "archery", "badminton", "boxing", "cricket", "cycling", "fencing", "hockey", "judo", "rowing", "rugby",
        "sailing", "tennis",
    ),
    "industry": (
        "banking", "farming", "fishing", "forestry", "insurance", "mining", "printing", "shipping", "steel",
        "textiles",
    ),
    "product": (
        "batteries", "bicycles", "candles", "carpets", "clocks", "engines", "gloves", "kettles", "lamps", "mirrors",
        "pianos", "tractors",
    ),
    "dish": (
        "cheese", "chowder", "dumplings", "noodles", "omelettes", "pancakes", "pastries", "pickles", "pudding",
        "sausages", "soup", "waffles",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """What a world is made from; equal specs give equal worlds.

    Attributes:
        seed: root of every random choice.
        version: of the generator; a spec of another version is refused.
        people: number of people (two-word names).
        cities: number of cities.
        companies: number of companies (every second one has a two-word name).
        countries: number of countries.
        rivers: number of rivers.
        languages: number of languages.
        currencies: number of currencies.
        trained_wordings: noun wordings trained per relation, besides its verb wordings.
        wordings_per_fact: how many of a relation's trained wordings one fact is trained in.
        hop_share: share of subjects for which two-hop sentences are trained.
        edits_per_person: how many relations of one person the edit records change.
    """

    seed: int = 0
    version: int = WORLD_VERSION
    people: int = 150
    cities: int = 40
    companies: int = 40
    countries: int = 10
    rivers: int = 14
    languages: int = 12
    currencies: int = 10
    trained_wordings: int = 9
    wordings_per_fact: int = 8
    hop_share: float = 0.85
    edits_per_person: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A functional relation: every entity of *domain* has exactly one object of type *range*.

    A wording has one ``{}`` slot for the subject and ends right before the object.

    Attributes:
        name: unique name.
        domain: type of the subjects.
        range: type of the objects.
        nouns: what the relation is called in shared frames.
        trained: wordings that occur in the training text (for some subject).
        novel: wordings that never occur in the training text with this relation; the last one uses a frame
            that never occurs there at all.
        role: a noun phrase for the object ("the city where {} lives"), or ``""``; used by two-hop questions.
    """

    name: str
    domain: str
    range: str
    nouns: tuple[str, ...]
    trained: tuple[str, ...]
    novel: tuple[str, ...]
    role: str = ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """All wordings, trained ones first."""
        return self.trained + self.novel


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fact:
    """*subject* stands in *relation* to *object*."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A two-hop question: relation *second* of the object of relation *first*."""

    first: str
    second: str
    wordings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A training text with the character spans of the objects it states."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class World:
    """Typed entities, functional relations between them, and all facts in a fixed order."""

    spec: WorldSpec
    entities: Mapping[str, tuple[str, ...]]
    relations: tuple[Relation, ...]
    hops: tuple[Hop, ...]
    facts: tuple[Fact, ...]
    _objects: dict[tuple[str, str], str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_objects", {(f.subject, f.relation): f.object for f in self.facts})

    def relation(self, name: str) -> Relation:
        """Return the relation called *name* (KeyError if there is none)."""
        return self._by_name[name]

    def object(self, subject: str, relation: str) -> str:
        """Return the object of *subject* under *relation* (KeyError if there is none)."""
        return self._objects[subject, relation]

    def relations_of(self, kind: str) -> tuple[Relation, ...]:
        """Return the relations whose subjects are of type *kind*."""
        return tuple(r for r in self.relations if r.domain == kind)

    def wordings_of(self, fact: Fact) -> tuple[str, ...]:
        """Return the wordings the training text uses for *fact* (a random part of the relation's trained ones)."""
        trained = self.relation(fact.relation).trained
        rng = Random(derive(self.spec.seed, "wordings", fact.subject, fact.relation))
        return tuple(rng.sample(trained, min(self.spec.wordings_per_fact, len(trained))))

    def hop_trained(self, subject: str, hop: Hop) -> bool:
        """Say whether the training text states the two-hop answer of *subject*."""
        rng = Random(derive(self.spec.seed, "hop", subject, hop.first, hop.second))
        return rng.random() < self.spec.hop_share

    @cached_property
    def _by_name(self) -> dict[str, Relation]:
        return {r.name: r for r in self.relations}

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Every entity that is the object of some relation, sorted."""
        return tuple(sorted({o for r in self.relations for o in self.entities[r.range]}))


# name, domain, range, nouns, verb wordings, role
_RELATIONS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("birthplace", "person", "city", ("birthplace", "native city"),
     ("{} was born in", "{} came into the world in", "{} is a native of"), "the city where {} was born"),
    ("residence", "person", "city", ("residence", "home city"),
     ("{} lives in", "{} has a house in", "{} is at home in"), "the city where {} lives"),
    ("employer", "person", "company", ("employer", "workplace"),
     ("{} works for", "{} is employed by", "{} draws a salary from"), "the company that employs {}"),
    ("profession", "person", "profession", ("profession", "job"),
     ("{} works as a", "{} earns a living as a", "{} was trained as a"), ""),
    ("language", "person", "language", ("mother tongue", "first language"),
     ("{} speaks", "{} grew up speaking", "{} writes letters in"), ""),
    ("instrument", "person", "instrument", ("instrument", "musical skill"),
     ("{} plays the", "{} makes music on the", "{} takes lessons on the"), ""),
    ("sport", "person", "sport", ("sport", "pastime"),
     ("{} competes in", "{} spends weekends on", "{} is a fan of"), ""),
    ("country", "city", "country", ("country", "nation"),
     ("{} lies in", "{} is a city of", "{} belongs to"), ""),
    ("river", "city", "river", ("river", "waterway"),
     ("{} stands on the", "{} was built along the", "{} takes water from the"), ""),
    ("dish", "city", "dish", ("dish", "speciality"),
     ("{} is famous for", "Visitors to {} come to eat", "Cooks in {} make"), ""),
    ("headquarters", "company", "city", ("headquarters", "head office"),
     ("{} is based in", "{} is run from", "{} keeps an office in"), "the city where {} is based"),
    ("industry", "company", "industry", ("industry", "sector"),
     ("{} is active in", "{} does business in", "{} makes money in"), ""),
    ("product", "company", "product", ("product", "best seller"),
     ("{} sells", "{} manufactures", "{} is known for"), ""),
    ("capital", "country", "city", ("capital", "seat of government"),
     ("{} is governed from", "{} has a parliament in", "Ministers of {} meet in"), ""),
    ("currency", "country", "currency", ("currency", "money"),
     ("{} pays with the", "Shops in {} accept the", "Banks in {} print the"), ""),
)  # fmt: skip

_HOPS = (("residence", "country"), ("birthplace", "country"), ("employer", "industry"), ("headquarters", "country"))
# Relations no record edits: the second hops, so that a two-hop answer stays what its record says.
_NEVER_EDITED = ("country", "industry", "capital", "currency")


def _names(rng: Random, count: int, shapes: Sequence[str], endings: Sequence[str], taken: list[str]) -> list[str]:
    """Draw *count* made-up words; none contains, or is contained in, one in *taken* (which is extended)."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    drawn: list[str] = []
    for _ in range(count * 200):
        if len(drawn) == count:
            return drawn
        shape = rng.choice(shapes)
        word = "".join(rng.choice(consonants if c == "C" else vowels) for c in shape) + rng.choice(endings)
        if any(word in t or t in word for t in taken):
            continue
        taken.append(word)
        drawn.append(word.capitalize())
    raise SpecError(f"cannot draw {count} different names", hint="ask for fewer entities")


def _relations(spec: WorldSpec) -> tuple[Relation, ...]:
    """Choose, per relation, which frames are trained, which are novel, and with which noun."""
    made = []
    for name, domain, range_, nouns, verbs, role in _RELATIONS:
        rng = Random(derive(spec.seed, "relation", name))
        frames = list(_FRAMES)
        rng.shuffle(frames)
        held, used = frames[:3], frames[3:]
        combos = [frame.replace("{n}", nouns[i % len(nouns)]) for i, frame in enumerate(used)]
        rest = [frame.replace("{n}", nouns[(i + 1) % len(nouns)]) for i, frame in enumerate(used)]
        rng.shuffle(rest)
        trained = (*verbs, *combos, *rest)[: len(verbs) + spec.trained_wordings]
        novel = [frame.replace("{n}", rng.choice(nouns)) for frame in (*held, _UNSEEN_FRAME)]
        wordings = {"nouns": nouns, "trained": trained, "novel": tuple(novel)}
        made.append(Relation(name=name, domain=domain, range=range_, role=role, **wordings))
    return tuple(made)


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
    words = " ".join([*_FRAMES, _UNSEEN_FRAME, *_HOP_FRAMES, *(" ".join((*n, *v, r)) for *_, n, v, r in _RELATIONS)])
    taken = sorted({w for w in words.replace("{}", " ").replace("{n}", " ").lower().split() if len(w) > 3})
    taken += sorted({w for values in _VALUES.values() for w in values})

    def draw(kind: str, count: int, shapes: Sequence[str], endings: Sequence[str]) -> list[str]:
        return _names(Random(derive(spec.seed, "names", kind)), count, shapes, endings, taken)

    first = draw("first", max(4, spec.people // 3), ("CVC", "CVCV"), ("a", "en", "i", "o", "is"))
    last = draw("last", max(4, spec.people // 2), ("CVC", "CVCC"), ("er", "sky", "man", "well", "ez"))
    pairs = [(f, s) for f in first for s in last]
    Random(derive(spec.seed, "people")).shuffle(pairs)
    if spec.people > len(pairs):
        raise SpecError(f"cannot draw {spec.people} different people", hint="ask for fewer people")
    companies = draw("company", spec.companies, ("CVC", "CVCC"), ("ex", "ix", "on", "tec"))
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
        **{kind: list(values) for kind, values in _VALUES.items()},
    }
    table = {kind: tuple(sorted(entities[kind])) for kind in sorted(entities)}
    relations = _relations(spec)
    return World(
        spec=spec,
        entities=table,
        relations=relations,
        hops=tuple(_hop(relations, first, second) for first, second in _HOPS),
        facts=tuple(_facts(spec, table, relations)),
    )


def _hop(relations: tuple[Relation, ...], first: str, second: str) -> Hop:
    by_name = {r.name: r for r in relations}
    role, nouns = by_name[first].role, by_name[second].nouns
    wordings = (frame.replace("{role}", role).replace("{n}", noun) for noun in nouns for frame in _HOP_FRAMES)
    return Hop(first=first, second=second, wordings=tuple(wordings))


def _facts(spec: WorldSpec, entities: Mapping[str, tuple[str, ...]], relations: Sequence[Relation]) -> Iterator[Fact]:
    """Give every subject one object per relation; objects are dealt evenly. A capital lies in its country."""
    country_of: dict[str, str] = {}
    for relation in relations:
        subjects, objects = entities[relation.domain], entities[relation.range]
        rng = Random(derive(spec.seed, "facts", relation.name))
        if relation.name == "capital":
            for subject in subjects:
                city = rng.choice([c for c in entities["city"] if country_of[c] == subject])
                yield Fact(subject=subject, relation=relation.name, object=city)
            continue
        deck = [objects[i % len(objects)] for i in range(len(subjects))]
        rng.shuffle(deck)
        for subject, obj in zip(subjects, deck, strict=True):
            if relation.name == "country":
                country_of[subject] = obj
            yield Fact(subject=subject, relation=relation.name, object=obj)


# ---------------------------------------------------------------------------------------------- training text


def _state(wording: str, subject: str, obj: str) -> tuple[str, int]:
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
    out: list[Sentence] = []
    by_subject: dict[str, list[Fact]] = {}
    for fact in world.facts:
        by_subject.setdefault(fact.subject, []).append(fact)
        for wording in rng.sample(world.wordings_of(fact), min(2, world.spec.wordings_per_fact)):
            text, start = _state(wording, fact.subject, fact.object)
            out.append(_join([(text, start, len(text))], ""))
    for subject, facts in by_subject.items():
        out.extend(_grouped(world, rng, subject, facts))
    for hop in world.hops:
        for subject in world.entities[world.relation(hop.first).domain]:
            if world.hop_trained(subject, hop):
                answer = world.object(world.object(subject, hop.first), hop.second)
                text, start = _state(rng.choice(hop.wordings), subject, answer)
                out.append(_join([(text, start, len(text))], ""))
    for kind in ("person", "city", "company", "country"):
        for subject in world.entities[kind]:
            text, start = _state("{} is a", subject, kind)
            out.append(_join([(text, start, len(text))], ""))
    rng.shuffle(out)
    return tuple(out)


def _grouped(world: World, rng: Random, subject: str, facts: Sequence[Fact]) -> Iterator[Sentence]:
    """Split the facts of one subject into paragraphs and multi-relation sentences."""
    order = list(facts)
    rng.shuffle(order)
    while order:
        size = min(len(order), rng.choice((2, 3, 4)))
        group, order = order[:size], order[size:]
        verbs = []
        for fact in group:
            options = [w for w in world.wordings_of(fact) if w.startswith("{} ")]
            if not options:
                break
            text, _ = _state(rng.choice(options), subject, fact.object)
            verbs.append(text)
        if len(verbs) == len(group) and rng.random() < 0.5:
            cut = [verbs[0], *(v[len(subject) + 1 :] for v in verbs[1:])]
            parts = [(v, len(v) - len(f.object), len(v)) for v, f in zip(cut, group, strict=True)]
            yield _join(parts, " and ")
        else:
            parts = []
            for fact in group:
                text, start = _state(rng.choice(world.wordings_of(fact)), subject, fact.object)
                parts.append((text, start, len(text)))
            yield _join(parts, ". ")


# ----------------------------------------------------------------------------------------------- edit records


def edit_records(world: World) -> tuple[EditRecord, ...]:
    """Return the counterfactual edits of *world*, in an order fixed by its seed.

    No (subject, relation) is edited twice; the first pass edits every subject once before a second edit of any.
    Locality probes ask facts that no record edits, and the second hop of a two-hop probe is never edited.
    """
    passes: list[list[tuple[str, Relation]]] = [[] for _ in range(max(1, world.spec.edits_per_person))]
    kept: dict[str, list[str]] = {}
    by_relation: dict[str, list[str]] = {}
    for kind in ("person", "city", "company"):
        editable = [r for r in world.relations_of(kind) if r.name not in _NEVER_EDITED]
        limit = world.spec.edits_per_person if kind == "person" else 1
        for subject in world.entities[kind]:
            chosen = list(editable)
            Random(derive(world.spec.seed, "edited", subject)).shuffle(chosen)
            chosen = chosen[:limit]
            for lot, relation in zip(passes, chosen, strict=False):
                lot.append((subject, relation))
            names = [r.name for r in chosen]
            kept[subject] = [r.name for r in world.relations_of(kind) if r.name not in names]
            for name in kept[subject]:
                by_relation.setdefault(name, []).append(subject)
    records: list[EditRecord] = []
    for number, lot in enumerate(passes):
        Random(derive(world.spec.seed, "order", number)).shuffle(lot)
        for subject, relation in lot:
            records.append(_record(world, len(records), subject, relation, kept[subject], by_relation))
    return tuple(records)


def _record(
    world: World,
    index: int,
    subject: str,
    relation: Relation,
    kept: Sequence[str],
    by_relation: Mapping[str, Sequence[str]],
) -> EditRecord:
    rng = Random(derive(world.spec.seed, "record", subject, relation.name))
    fact = Fact(subject=subject, relation=relation.name, object=world.object(subject, relation.name))
    target = rng.choice([o for o in world.entities[relation.range] if o != fact.object])
    wording, rephrase = rng.sample(world.wordings_of(fact), 2)
    prompt = wording.replace("{}", subject)

    def ask(name: str, of: str) -> tuple[str, str]:
        asked = Fact(subject=of, relation=name, object=world.object(of, name))
        return rng.choice(world.wordings_of(asked)).replace("{}", of), asked.object

    probes = [
        Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target),
        Probe(kind=ProbeKind.PARAPHRASE, prompt=rephrase.replace("{}", subject), target=target, name="trained"),
        Probe(
            kind=ProbeKind.PARAPHRASE,
            prompt=rng.choice(relation.novel).replace("{}", subject),
            target=target,
            name="novel",
        ),
    ]
    if kept:
        same, answer = ask(rng.choice(kept), subject)
        probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=same, target=answer, against="base", name="same_subject"))
    others = [s for s in by_relation.get(relation.name, ()) if s != subject]
    if others:
        other, answer = ask(relation.name, rng.choice(others))
        probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=other, target=answer, against="base", name="other"))
    for hop in world.hops:
        if hop.first != relation.name:
            continue
        answer = world.object(target, hop.second)
        if answer != world.object(fact.object, hop.second):
            asked = rng.choice(hop.wordings).replace("{}", subject)
            probes.append(Probe(kind=ProbeKind.PORTABILITY, prompt=asked, target=answer, name="hop2"))
    unrelated = _unrelated(world, subject, relation, by_relation)
    return EditRecord(
        id=f"world/{index:06d}",
        subject=subject,
        prompt=prompt,
        target=target,
        probes=tuple(probes),
        unrelated=unrelated,
    )


def _unrelated(world: World, subject: str, relation: Relation, by_relation: Mapping[str, Sequence[str]]) -> str:
    """Return a true sentence about another subject and another relation that no record edits ("" if there is none)."""
    rng = Random(derive(world.spec.seed, "unrelated", subject, relation.name))
    facts = [(n, s) for n in sorted(by_relation) for s in by_relation[n] if n != relation.name and s != subject]
    if not facts:
        return ""
    name, other = rng.choice(facts)
    fact = Fact(subject=other, relation=name, object=world.object(other, name))
    return f"{rng.choice(world.wordings_of(fact)).replace('{}', other)} {fact.object}"
