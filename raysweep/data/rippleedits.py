"""RippleEdits: what else an edit changes and what it must not (``recent.json``, ``random.json``, ``popular.json``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from raysweep.data.fields import Row, field, flattened, objects, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.errors import RecordError
from raysweep.records import EditRecord, Probe, ProbeKind

_FILES = ("popular", "recent", "random")
Pairs = tuple[tuple[str, str], ...]
_FOLLOWS = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
_STAYS = (
    "Relation_Specificity",
    "Relation_Specifity",
    "Forgetfulness",
)  # the second spelling is of the repository's README
# A sentence is cut behind one of these.
_CUT = re.compile(r" (?:is followed by|is|are|follows)(?= )")
_VERB = re.compile(r" (?:is followed by|is|are|follows)$")
# Where the subject stands in what comes before, if not behind "RELATION of".
_SHAPES = tuple(
    re.compile(shape)
    for shape in (
        r"^The names? of the .+? which (.+) (?:is associated with|is a member of|plays in|is part of|is the capital of)$",
        r"^The name of the position held by (.+)$",
        r"^The name of the currency in (.+)$",
        r"^The name of the award (.+) won$",
        r"^The number of children (.+) has$",
    )
)


class RippleEdits(JsonDataset):
    """Facts given as a sentence, with six lists of tests.

    The sentence is cut behind " is " (or " are ") into prompt and target. A test is a probe, or with the condition ``AND`` one
    for each of its queries; its other queries, answers and their aliases are alternatives, its condition queries what the
    unedited model must know. Both lists of what must stay are locality, compared with the unedited model's answer.
    """

    name: ClassVar[str] = "rippleedits"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "RippleEdits, what else an edit changes (JSON); data.path = one of its files"
    places: ClassVar[tuple[str, ...]] = tuple(f"RippleEdits/{file}.json" for file in _FILES)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"edit"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``edit{prompt, original_fact?}`` and the six lists."""
        prompt, target = _cut(row)
        probes = standard_probes(prompt, target, "", None)
        for kind, names in ((ProbeKind.PORTABILITY, _FOLLOWS), (ProbeKind.LOCALITY, _STAYS)):
            for name in names:
                for number, test in enumerate(objects(row, name)):
                    probes += tuple(_tested(test, kind, f"{name.replace('Specifity', 'Specificity')}/{number}"))
        return EditRecord(id=uid, subject=_subject(row, prompt), prompt=prompt, target=target, probes=probes)


def _cut(row: Row) -> tuple[str, str]:
    """Return prompt and target of the sentence of the edit.

    Raises:
        RecordError: it has no place to cut it.
    """
    sentence = field(row, "edit", "prompt").strip()
    ends = [match.end() for match in _CUT.finditer(sentence)]
    # The sentence of the fact before it begins alike: what both have in common ends before the target.
    for before in ("original_fact", "previous_fact"):
        earlier = objects(row, "edit", before)
        if earlier:
            common = _alike(sentence, field(earlier[0], "prompt"))
            ends = [end for end in ends if end < common] or ends
    # The last one: " is " stands in names of films and songs too, and those are subjects more often than answers.
    if not ends or not sentence[ends[-1] :].strip(" ."):
        raise RecordError(
            f"'edit.prompt' cannot be cut into prompt and target: {sentence!r}",
            hint="a sentence '… is TARGET.' is needed",
        )
    target = sentence[ends[-1] :].strip()
    return sentence[: ends[-1]], target.removesuffix(".")


def _alike(one: str, other: str) -> int:
    """Return how many characters both texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _subject(row: Row, prompt: str) -> str:
    """Return the part of *prompt* that the fact is about; empty where nobody can tell."""
    head = _VERB.sub("", prompt)
    relation = re.escape(optional(row, "edit", "relation").lower().replace("_", " "))
    # With the relation's own words, since both these and a name may have an "of": "the place of birth of William of Orange".
    shapes = (*_SHAPES, re.compile(rf"\b{relation}s? of (.+)$"), re.compile(r"^The (?:names? of the )?.+? of (.+)$"))
    found = next((match for match in (shape.search(head) for shape in shapes) if match), None)
    if found is not None:
        return found[1]
    return "" if head.startswith("The ") else head


def _tested(test: Row, kind: ProbeKind, name: str) -> Iterator[Probe]:
    """Yield the probes of one test."""
    asked = [pairs for query in objects(test, "test_queries") if (pairs := _pairs(query))]
    known = tuple(pairs for query in objects(test, "condition_queries") if (pairs := _pairs(query)))
    together = test.get("test_condition") != "AND"
    groups = [tuple(pair for pairs in asked for pair in pairs)] if together and asked else asked
    for number, pairs in enumerate(groups):
        (prompt, target), *others = dict.fromkeys(pairs)
        label = name if together or len(groups) == 1 else f"{name}.{number}"
        if kind is ProbeKind.LOCALITY:
            yield Probe(kind=kind, prompt=prompt, target=target, against="base", name=label)
        else:
            alternatives = tuple(others)
            yield Probe(kind=kind, prompt=prompt, target=target, name=label, alternatives=alternatives, known=known)


def _pairs(query: Row) -> Pairs:
    """Return the query with each of its answers and their aliases."""
    prompt = field(query, "prompt")
    answers = [
        text
        for answer in objects(query, "answers")
        for text in flattened([answer.get("value"), answer.get("aliases")], "answers")
    ]
    return tuple((prompt, answer) for answer in dict.fromkeys(answers))
