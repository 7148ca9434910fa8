"""FEVER as RLEdit and UltraEdit have it (``fever_eval_20k.json``): claims and their verdicts."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns, Row, field, texts
from raysweep.data.files import FlatDataset
from raysweep.records import EditRecord, Probe, ProbeKind


class Fever(FlatDataset):
    """Claims whose verdict is replaced. Each of the rewordings is a probe, named by its number; published code draws one."""

    name: ClassVar[str] = "fever"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "FEVER claims of RLEdit and UltraEdit (JSON); no subjects, so not for rome, memit and alphaedit"
    )
    places: ClassVar[tuple[str, ...]] = ("FEVER/fever_eval_20k.json", "FEVER/fever_eval_100k.json")
    columns: ClassVar[Columns] = Columns(
        prompt="prompt", target="alt", rephrase="", locality=("unrel_prompt", "unrel_ans")
    )

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, alt, equiv_prompt[…]?, unrel_prompt?, unrel_ans?``."""
        reworded = (
            Probe(kind=ProbeKind.PARAPHRASE, prompt=text, target=field(row, "alt"), name=str(number))
            for number, text in enumerate(texts(row, "equiv_prompt"))
            if text.strip()
        )
        return self.columns.record(row, uid, *reworded)
