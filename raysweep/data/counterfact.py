"""CounterFact, in the flat SimIE/EasyEdit format and in the original ROME/MEMIT format, told apart row by row."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns, Row, field, filled, texts
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord, Probe, ProbeKind

_ORIGINAL = "requested_rewrite"
_LOCALITY = ("locality_prompt", "locality_ground_truth")
_FLAT = Columns(
    prompt="prompt", target="target_new", rephrase="rephrase_prompt", locality=_LOCALITY, true="ground_truth"
)
_FILES = ("counterfact-edit", "counterfact", "multi_counterfact")


class Counterfact(JsonDataset):
    """Completions whose object is replaced.

    A row with ``requested_rewrite`` is of the original format: each of its paraphrases and neighbourhood prompts
    becomes a probe, named by its number. Any other row is of the flat format, with one of each.
    """

    name: ClassVar[str] = "counterfact"
    version: ClassVar[int] = 1
    gives_true: ClassVar[bool] = True
    about: ClassVar[str] = "CounterFact completions (SimIE/EasyEdit JSON, or the original ROME/MEMIT JSON)"
    places: ClassVar[tuple[str, ...]] = tuple(f"counterfact/{file}.json" for file in _FILES)
    required: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"prompt", "target_new"}),
        frozenset({_ORIGINAL}),
    )

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map a row of either format."""
        if _ORIGINAL in row:
            return _original(row, uid)
        return _FLAT.record(row, uid)


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
    return EditRecord(id=uid, subject=subject, prompt=prompt, target=target, probes=tuple(probes), target_true=true)
