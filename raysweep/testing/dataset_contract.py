"""The exam every dataset sits (the promises of :class:`raysweep.data.base.Dataset`)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from raysweep.data.base import Dataset
from raysweep.records import Probe, ProbeKind, check_record


def check_dataset_contract(kind: type[Dataset], path: Path | None) -> None:
    """Raise ``AssertionError`` unless *kind* keeps its promises on the file *path* (None for a dataset without one)."""
    dataset = kind()
    records = tuple(dataset.load(path))
    assert records, "no records"
    assert dataset.count(path) == len(records), "count disagrees with load"
    wanted = [f"{dataset.name}/{i:06d}" for i in range(len(records))]
    assert [r.id for r in records] == wanted, "ids are not the dataset's name and the index in the file"
    assert tuple(kind().load(path)) == records, "a second reading differs"
    reading = dataset.read(path)
    assert reading.records == records, "read disagrees with load"
    assert not reading.problems
    assert dataset.digest(path) == kind().digest(path), "the digest is not stable"
    assert len(dataset.digest(path)) == 16
    assert kind.version >= 1
    assert kind.about
    for record in records:
        check_record(record)
        _check_probes(record.id, [(p.kind, p.name, p.against) for p in record.probes])
        efficacy = [p for p in record.probes if p.kind is ProbeKind.EFFICACY]
        facts = [(edit.prompt, edit.target) for edit in record.edits]
        assert [(p.prompt, p.target) for p in efficacy] == facts, f"{record.id}: not one efficacy probe for each fact"
        for probe in record.probes:
            _check_alternatives(record.id, probe)
            if probe.kind is ProbeKind.PARAPHRASE:
                assert probe.target in {edit.target for edit in record.edits}, (
                    f"{record.id}: a paraphrase asks for something else"
                )
    texts = list(islice(dataset.texts(path), 200))
    assert texts, "no texts"
    assert all(text.strip() for text in texts)
    assert list(islice(kind().texts(path), 200)) == texts, "the order of texts is not fixed"


def _check_alternatives(record: str, probe: Probe) -> None:
    pairs = (probe.prompt, probe.target), *probe.alternatives
    assert len(set(pairs)) == len(pairs), f"{record}: an alternative of {probe.kind} {probe.name} comes twice"
    assert all(text.strip() for pair in pairs for text in pair), f"{record}: an alternative is empty"
    assert all(probe.known), f"{record}: something to know without a question"
    assert all(text.strip() for pairs in probe.known for pair in pairs for text in pair), f"{record}: nothing to know"
    compared = probe.against == "target"
    assert compared or not (probe.alternatives or probe.known), (
        f"{record}: alternatives of what the unedited model answers"
    )


def _check_probes(record: str, probes: list[tuple[ProbeKind, str, str]]) -> None:
    names = [(kind, name) for kind, name, _ in probes]
    assert len(set(names)) == len(names), f"{record}: two probes of one kind share a name"
    for kind, _, against in probes:
        assert against == ("base" if kind is ProbeKind.LOCALITY else "target"), f"{record}: {kind} against {against}"
