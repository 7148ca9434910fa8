"""KnowEdit: wiki_recent, wiki_counterfact, ZsRE and WikiBio with lists of what follows and what stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from raysweep.data.fields import Row, answered, field, flattened, objects, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord, Probe, ProbeKind

_FILES = ("wiki_counterfact/test_cf", "wiki_recent/recent_test", "ZsRE/ZsRE-test-all", "WikiBio/wikibio-test-all")
_FOLLOWS = ("Reasoning", "Subject_Aliasing", "Logical_Generalization")
_STAYS = ("Relation_Specificity", "Forgetfulness")
# WikiBio spells the three fields otherwise than the other files.
_SPELLINGS = (("prompt", "target_new", "subject"), ("text", "labels", "concept"))


class KnowEdit(JsonDataset):
    """Facts with portability and locality probes, each named by its list and its number there.

    An answer is a text, a list, or a list of lists of aliases: the first is the target, all others are alternatives.
    """

    name: ClassVar[str] = "knowedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "KnowEdit's wiki_recent, wiki_counterfact, ZsRE and WikiBio (JSON); data.path = one of its files"
    )
    places: ClassVar[tuple[str, ...]] = tuple(f"KnowEdit/benchmark/{file}.json" for file in _FILES)
    required: ClassVar[tuple[frozenset[str], ...]] = tuple(frozenset(names[:2]) for names in _SPELLINGS)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map a row in either spelling, with ``rephrase_prompt?, portability?, locality?``."""
        keys = next((names for names in _SPELLINGS if names[0] in row), _SPELLINGS[0])
        prompt, target, subject = field(row, keys[0]), field(row, keys[1]), optional(row, keys[2])
        reworded = optional(row, "rephrase_prompt") or optional(row, "rephrase")
        probes = standard_probes(prompt, target, reworded, None)
        for part, kind, names in (
            ("portability", ProbeKind.PORTABILITY, _FOLLOWS),
            ("locality", ProbeKind.LOCALITY, _STAYS),
        ):
            probes += tuple(probe for name in names for probe in _listed(row, part, name, kind))
        return EditRecord(id=uid, subject=subject, prompt=prompt, target=target, probes=probes)


def _listed(row: Row, part: str, name: str, kind: ProbeKind) -> Iterator[Probe]:
    """Yield the probes of one list; an entry without an answer is not asked, as published."""
    for number, entry in enumerate(objects(row, part, name)):
        where = f"{part}.{name}[{number}]"
        prompts = list(flattened(entry.get("prompt"), f"{where}.prompt"))
        answers = list(flattened(entry.get("ground_truth"), f"{where}.ground_truth"))
        probe = answered(kind, prompts[0], answers, f"{name}/{number}") if prompts else None
        if probe is not None:
            yield probe
