"""HalluEditBench: what a model gets wrong about Wikidata, a folder of CSV files per model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.config.schema import DataSpec
from raysweep.data.csvrows import literal_texts, read_csv
from raysweep.data.fields import Row, field, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.errors import DataError, RecordError
from raysweep.records import EditRecord, Probe, ProbeKind

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

NO_ANSWER = "."  # one token for every tokenizer met here
_MODELS = ("llama_2_7b_chat_hf", "meta_llama_3_8b_instruct", "mistral_7b_instruct_v0.3")
_HOPS = range(2, 7)


class HalluEditBench(JsonDataset):
    """Questions that one model answers wrongly, with up to six hops, yes and no, and the relation reversed.

    The question about locality has no answer, so what is compared is the first token of the model's own answer, before and after
    the edit. The columns about multiple choice are not asked.
    """

    name: ClassVar[str] = "hallueditbench"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "HalluEditBench, what one model gets wrong (CSV); data.path = the model's folder, or one file"
    )
    places: ClassVar[tuple[str, ...]] = tuple(f"HalluEditBench/{model}" for model in _MODELS)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"question", "object"}),)
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    folder_of: ClassVar[str] = ".csv"

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path:
        """Return ``spec.path``, else the one folder of a model that is there.

        Raises:
            DataError: there is none, or there are several: each holds what another model gets wrong.
        """
        # guessing would edit one model with what another one gets wrong
        here = [place for place in self.places if workspace.find("data", *place.split("/")) is not None]
        if not spec.path and len(here) > 1:
            raise DataError(
                f"dataset '{self.name}' is here for several models: {', '.join(here)}",
                hint=f"name the folder of the model that is edited: data.path: data/{here[0]}",
            )
        return super().locate(spec, workspace)

    def rows(self, file: Path) -> Sequence[object]:
        """Return the rows of one CSV file."""
        return read_csv(file)

    def remarks(self, row: Row) -> Iterator[str]:
        """Say whether the object is not among the choices."""
        # a list as Python writes it, not JSON; a damaged one is worth a remark, not the record
        choices = optional(row, "multiple_choices")
        try:
            known = literal_texts(choices, "multiple_choices") if choices.strip() else []
        except RecordError as error:
            yield error.message
            return
        # the set's own spelling differs between its columns, so case is not compared
        if known and field(row, "object").casefold() not in {choice.casefold() for choice in known}:
            yield f"the object {row['object']!r} is not among the choices {known}"

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``question, object, subject?, paraphrased_question?, locality_question?`` and the questions of what follows."""
        prompt, target, subject = field(row, "question"), field(row, "object"), optional(row, "subject")
        apart = optional(row, "locality_question")
        locality = Probe(kind=ProbeKind.LOCALITY, prompt=apart, target=NO_ANSWER, against="base")
        probes = standard_probes(
            prompt, target, optional(row, "paraphrased_question"), locality if apart.strip() else None
        )
        # columns are empty where a chain of so many hops could not be built
        follows = [(f"{n}hop", optional(row, f"question_{n}hop"), optional(row, f"answer_{n}hop")) for n in _HOPS]
        follows += [
            ("yes", optional(row, "yes_question"), "Yes"),
            ("no", optional(row, "no_question"), "No"),
            ("reversed", optional(row, "reversed_relation_question"), subject),
        ]
        probes += tuple(
            Probe(kind=ProbeKind.PORTABILITY, prompt=question, target=answer, name=name)
            for name, question, answer in follows
            if question.strip() and answer.strip()
        )
        return EditRecord(id=uid, subject=subject, prompt=prompt, target=target, probes=probes)
