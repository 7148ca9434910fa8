"""FEVER as RLEdit and UltraEdit have it (``fever_eval_20k.json``): claims and their verdicts."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, locality_probe, optional, standard_probes, texts
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord, Probe, ProbeKind


class Fever(JsonDataset):
    """Claims whose verdict is replaced. Each of the rewordings is a probe, named by its number; published code draws one."""

    name: ClassVar[str] = "fever"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "FEVER claims of RLEdit and UltraEdit (JSON); no subjects, so not for rome, memit and alphaedit"
    )
    places: ClassVar[tuple[str, ...]] = ("FEVER/fever_eval_20k.json", "FEVER/fever_eval_100k.json")
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"prompt", "alt"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, alt, equiv_prompt[…]?, unrel_prompt?, unrel_ans?``."""
        prompt, target = field(row, "prompt"), field(row, "alt")
        probes = standard_probes(prompt, target, "", locality_probe(row, "unrel_prompt", "unrel_ans"))
        probes += tuple(
            Probe(kind=ProbeKind.PARAPHRASE, prompt=text, target=target, name=str(number))
            for number, text in enumerate(texts(row, "equiv_prompt"))
            if text.strip()
        )
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
