"""A made-up graph with known dependencies, written as the three Wikidata5m files, dirt included."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from raysweep.belief.graph.wikidata_files import ENTITY, RELATION, TRAIN
from raysweep.config.schema import Count, Spec
from raysweep.errors import SpecError
from raysweep.seeds import derive

# upstream relation (id, names), objects; downstream relation (id, names), objects
ARROWS = (
    ((19, "born in", "native of"), 24, (27, "citizen of", "national of"), 10),
    ((69, "studied at", "student of"), 20, (106, "works as", "earns a living as"), 14),
    ((54, "plays for", "player of"), 20, (551, "lives in", "resident of"), 24),
    ((463, "member of", "belongs to"), 10, (1412, "speaks", "speaker of"), 8),
    ((108, "employed by", "hired by"), 18, (101, "active in", "busy with"), 12),
    ((140, "follower of", "believer in"), 12, (1303, "player on the", "makes music on the"), 14),
)
RARE = ((800, "known for"), (166, "awarded"))
GIVEN_NAME, HUMAN, TAXON = 735, 5, 16521
_RESERVED = frozenset(["is", "true", "false", "not", "and", "or", "if", "then"])
_CONSONANTS, _VOWELS = "bdfgklmnprstvzj", "aeiou"


class SyntheticSpec(Spec):
    """What the files are made from; equal specs give equal bytes.

    Attributes:
        seed: root of every random choice.
        subjects: requested subjects; about one in ten has fewer than two facts and is dropped by the reader.
        arrows: pairs of relations in which the downstream object follows from the upstream one.
        pool_scale: multiplies the number of objects of every relation.
        dirt: whether broken, excluded, rare, repeated and over-long things are mixed in.
    """

    seed: int = 0
    subjects: Count = 300
    arrows: Count = 4
    pool_scale: Count = 1
    dirt: bool = True


def _words(rng: Random, count: int) -> list[str]:
    """Return *count* distinct words of two open syllables and a final consonant."""
    syllables = ["".join(p) for p in itertools.product(_CONSONANTS, _VOWELS)]
    every = [a + b + c for a in syllables for b in syllables for c in _CONSONANTS]
    if count > len(every):
        raise SpecError(f"cannot make {count} different words, only {len(every)}", hint="ask for fewer subjects")
    return [w for w in rng.sample(every, min(len(every), count + len(_RESERVED))) if w not in _RESERVED][:count]


def write_wikidata(folder: Path, spec: SyntheticSpec) -> int:
    """Write the three files into *folder*; return the number of fact lines.

    Raises:
        SpecError: more arrows or names than can be made.
    """
    if spec.arrows > len(ARROWS):
        raise SpecError(f"{spec.arrows} arrows asked for, {len(ARROWS)} are known", hint="ask for fewer")
    folder.mkdir(parents=True, exist_ok=True)
    entities = _Entities(spec)
    arrows = ARROWS[: spec.arrows]
    related = [relation for up, _, down, _ in arrows for relation in (down, up)]
    with (folder / RELATION).open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"P{number}\t{name}\t{other}\n" for number, name, other in related)
        out.writelines(f"P{number}\t{name}\n" for number, name in (*RARE, (GIVEN_NAME, "given name")))
    lines = 0
    with (folder / TRAIN).open("w", encoding="utf-8", newline="\n") as out:
        for line in _facts(spec, entities, arrows):
            out.write(line)
            lines += 1
    with (folder / ENTITY).open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"Q{number}\t{names}\n" for number, names in entities.table())
    return lines


class _Entities:
    """Ids and names of subjects and of every relation's objects."""

    def __init__(self, spec: SyntheticSpec) -> None:
        rng = Random(derive(spec.seed, "names"))
        # As many first as last names, enough combinations for all subjects.
        side = max(30, int((1.5 * spec.subjects) ** 0.5) + 1)
        sizes = [n * spec.pool_scale for up, a, down, b in ARROWS[: spec.arrows] for n in (a, b)]
        words = iter(_words(rng, 2 * side + 12 + sum(sizes) + 20))
        first, last = ([next(words) for _ in range(side)] for _ in range(2))
        second = [next(words) for _ in range(12)]
        picked = rng.sample(range(side * side), spec.subjects)
        self.subjects = {1000 + i: f"{first[p // side]} {last[p % side]}" for i, p in enumerate(picked)}
        self.pools: list[list[int]] = []
        self.objects: dict[int, str] = {}
        number = 10_000_000
        for size in sizes:
            self.pools.append(list(range(number, number + size)))
            for i in self.pools[-1]:
                self.objects[i] = next(words) + (f" {rng.choice(second)}" if rng.random() < 0.4 else "")
            number += size
        self.extra = [next(words) for _ in range(8)]
        if spec.dirt:
            for i, pool in enumerate(self.pools[:2]):  # over-long; in the first pool, two that a cap of 2 words merges
                self.objects[pool[0]] = f"{self.extra[i]} {second[i]} {self.extra[5]}"
            self.objects[self.pools[0][1]] = f"{self.extra[0]} {second[0]} {self.extra[6]}"
            # Two ids of one name.
            twins = list(self.subjects)[1:3]
            self.subjects[twins[1]] = self.subjects[twins[0]]

    def table(self) -> Iterator[tuple[int, str]]:
        """Yield id and names, tab-separated; every third subject has an alias."""
        for i, name in self.subjects.items():
            yield i, f"{name}\t{name.upper()}" if i % 3 == 0 else name
        yield from self.objects.items()
        yield from ((HUMAN, "human"), (TAXON, "taxon"), (77, self.extra[7]))


def _facts(spec: SyntheticSpec, entities: _Entities, arrows: Sequence[object]) -> Iterator[str]:
    """Yield the fact lines; of each arrow the downstream relation appears first, so that it becomes the child."""
    maps = []
    for i in range(len(arrows)):
        rng = Random(derive(spec.seed, "map", i))
        # Each upstream object has one downstream object that follows from it.
        maps.append({up: rng.choice(entities.pools[2 * i + 1]) for up in entities.pools[2 * i]})
    rng = Random(derive(spec.seed, "facts"))
    for count, subject in enumerate(entities.subjects):
        every = range(len(arrows))
        # The first subject has all relations, so that every one appears, in this order.
        chosen = list(every) if count == 0 else sorted(rng.sample(every, rng.randint(1, min(3, len(arrows)))))
        for i in chosen:
            (up, *_), _, (down, *_), _ = ARROWS[i]
            pool = entities.pools[2 * i + 1]
            upstream = rng.choice(entities.pools[2 * i])
            downstream = maps[i][upstream] if rng.random() < 0.8 else rng.choice(pool)
            # 70 % of the subjects have both facts, 15 % the downstream one alone, 15 % the upstream one.
            kind = 0.0 if count == 0 else rng.random()
            if kind < 0.85:
                yield f"Q{subject}\tP{down}\tQ{downstream}\n"
                if spec.dirt and rng.random() < 0.05:
                    yield f"Q{subject}\tP{down}\tQ{rng.choice(pool)}\n"
            if kind < 0.7 or kind >= 0.85:
                yield f"Q{subject}\tP{up}\tQ{upstream}\n"
        if spec.dirt:
            yield from _dirt(rng, subject, entities)


def _dirt(rng: Random, subject: int, entities: _Entities) -> Iterator[str]:
    """Yield lines that some filter must drop."""
    if rng.random() < 0.02:
        yield f"Q{subject}\tP{ARROWS[0][0][0]}\tQ99999999\n"
    if rng.random() < 0.02:
        yield f"Q{subject}\tP9999\tQ77\n"
    if rng.random() < 0.3:
        yield f"Q{subject}\tP{GIVEN_NAME}\tQ77\n"
    if rng.random() < 0.3:
        yield f"Q{subject}\tP{RARE[0][0]}\tQ{HUMAN}\n"
    for number, _ in RARE:
        if rng.random() < 0.03:
            yield f"Q{subject}\tP{number}\tQ77\n"
