"""Counterfactual edits of a world, each with the probes that say whether it holds, generalises and stays local."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.seeds import derive
from raysweep.world.types import Fact, Relation, World
from raysweep.world.vocabulary import NEVER_EDITED


def edit_records(world: World) -> tuple[EditRecord, ...]:
    """Return the counterfactual edits of *world*, in an order fixed by its seed.

    No (subject, relation) is edited twice; the first pass edits every subject once before a second edit of any.
    Locality probes ask facts that no record edits, and the second hop of a two-hop probe is never edited.
    """
    # One list per pass over the subjects: everybody is edited once before anybody a second time.
    passes: list[list[tuple[str, Relation]]] = [[] for _ in range(max(1, world.spec.edits_per_person))]
    unedited: dict[str, list[str]] = {}  # per subject, the relations that no record edits
    by_relation: dict[str, list[str]] = {}  # per relation, the subjects of whom it is not edited
    for kind in ("person", "city", "company"):
        editable = [r for r in world.relations_of(kind) if r.name not in NEVER_EDITED]
        limit = world.spec.edits_per_person if kind == "person" else 1
        for subject in world.entities[kind]:
            chosen = list(editable)
            Random(derive(world.spec.seed, "edited", subject)).shuffle(chosen)
            chosen = chosen[:limit]
            # The nth relation of a subject goes into the nth pass.
            for lot, relation in zip(passes, chosen, strict=False):
                lot.append((subject, relation))
            names = [r.name for r in chosen]
            unedited[subject] = [r.name for r in world.relations_of(kind) if r.name not in names]
            for name in unedited[subject]:
                by_relation.setdefault(name, []).append(subject)
    records: list[EditRecord] = []
    for number, lot in enumerate(passes):
        Random(derive(world.spec.seed, "order", number)).shuffle(lot)
        for subject, relation in lot:
            records.append(_record(world, len(records), subject, relation, unedited[subject], by_relation))
    return tuple(records)


def _record(
    world: World,
    index: int,
    subject: str,
    relation: Relation,
    unedited: Sequence[str],
    by_relation: Mapping[str, Sequence[str]],
) -> EditRecord:
    """Return the record of an edit of (subject, relation) to another object, with its probes.

    Args:
        world: the world.
        index: number of the record.
        subject: whose fact is edited.
        relation: of the fact.
        unedited: relations of the subject that no record edits.
        by_relation: per relation the subjects of whom no record edits it.
    """
    rng = Random(derive(world.spec.seed, "record", subject, relation.name))
    fact = Fact(subject=subject, relation=relation.name, object=world.object(subject, relation.name))
    target = rng.choice([o for o in world.entities[relation.range] if o != fact.object])
    wording, rephrase = rng.sample(world.wordings_of(fact), 2)
    prompt = wording.replace("{}", subject)

    def question(name: str, of: str) -> tuple[str, str]:
        true_fact = Fact(subject=of, relation=name, object=world.object(of, name))
        return rng.choice(world.wordings_of(true_fact)).replace("{}", of), true_fact.object

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
    if unedited:
        same, answer = question(rng.choice(unedited), subject)
        probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=same, target=answer, against="base", name="same_subject"))
    others = [s for s in by_relation.get(relation.name, ()) if s != subject]
    if others:
        other, answer = question(relation.name, rng.choice(others))
        probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=other, target=answer, against="base", name="other"))
    probes += _two_hop_probes(world, rng, fact, target)
    unrelated = _unrelated(world, subject, relation, by_relation)
    return EditRecord(
        id=f"world/{index:06d}",
        subject=subject,
        prompt=prompt,
        target=target,
        probes=tuple(probes),
        unrelated=unrelated,
    )


def _two_hop_probes(world: World, rng: Random, fact: Fact, target: str) -> Iterator[Probe]:
    """Yield a two-hop question for each relation of *fact*'s object whose answer changes with the object, to that of *target*."""
    for hop in world.hops:
        if hop.first != fact.relation:
            continue
        answer = world.object(target, hop.second)
        # Only where the edit changes the answer does the probe tell anything.
        if answer != world.object(fact.object, hop.second):
            prompt = rng.choice(hop.wordings).replace("{}", fact.subject)
            yield Probe(kind=ProbeKind.PORTABILITY, prompt=prompt, target=answer, name="hop2")


def _unrelated(world: World, subject: str, relation: Relation, by_relation: Mapping[str, Sequence[str]]) -> str:
    """Return a true sentence about another subject and another relation that no record edits ("" if there is none)."""
    rng = Random(derive(world.spec.seed, "unrelated", subject, relation.name))
    facts = [(n, s) for n in sorted(by_relation) for s in by_relation[n] if n != relation.name and s != subject]
    if not facts:
        return ""
    name, other = rng.choice(facts)
    fact = Fact(subject=other, relation=name, object=world.object(other, name))
    return f"{rng.choice(world.wordings_of(fact)).replace('{}', other)} {fact.object}"
