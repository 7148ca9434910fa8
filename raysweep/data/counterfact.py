"""CounterFact, in the flat SimIE/EasyEdit format and in the original ROME/MEMIT format, told apart row by row."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, filled, locality_probe, optional, standard_probes, texts
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord, Probe, ProbeKind

_ORIGINAL = "requested_rewrite"


class Counterfact(JsonDataset):
    """Completions whose object is replaced.

    A row with ``requested_rewrite`` is of the original format: each of its paraphrases and neighbourhood prompts
    becomes a probe, named by its number. Any other row is of the flat format, with one of each.
    """

    name: ClassVar[str] = "counterfact"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "CounterFact completions (SimIE/EasyEdit JSON, or the original ROME/MEMIT JSON)"
    places: ClassVar[tuple[str, ...]] = (
        "counterfact/counterfact-edit.json",
        "counterfact/counterfact.json",
        "counterfact/multi_counterfact.json",
    )
    required: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"prompt", "target_new"}),
        frozenset({_ORIGINAL}),
    )

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map a row of either format."""
        if _ORIGINAL in row:
            return _original(row, uid)
        prompt, target = field(row, "prompt"), field(row, "target_new")
        probes = standard_probes(
            prompt,
            target,
            optional(row, "rephrase_prompt"),
            locality_probe(row, "locality_prompt", "locality_ground_truth"),
        )
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)


def _original(row: Row, uid: str) -> EditRecord:
    template, subject = field(row, _ORIGINAL, "prompt"), field(row, _ORIGINAL, "subject")
    target, true = field(row, _ORIGINAL, "target_new", "str"), field(row, _ORIGINAL, "target_true", "str")
    prompt = filled(template, subject, f"{_ORIGINAL}.prompt")
    probes = [Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target)]
    for number, text in enumerate(texts(row, "paraphrase_prompts")):
        probes.append(Probe(kind=ProbeKind.PARAPHRASE, prompt=text, target=target, name=str(number)))
    # Neighbours are other subjects with the same true object; what counts is that the answer stays what it was.
    for number, text in enumerate(texts(row, "neighborhood_prompts")):
        probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=text, target=true, against="base", name=str(number)))
    return EditRecord(id=uid, subject=subject, prompt=prompt, target=target, probes=tuple(probes))
