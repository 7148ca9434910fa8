"""The evaluation points of a belief testbed as records: the requested update is the edit; what follows from it, and what should
stay, are its probes. The file is a setting, ``hparams/belief/<name>.yaml``; without one it is the embedded world's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.config.schema import DataSpec
from raysweep.data.base import Reading
from raysweep.errors import DataError, Problem, ProblemsError, RecordError
from raysweep.lazy import lazy
from raysweep.records import EditRecord, Probe, ProbeKind, check_record
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.belief import testbed
    from raysweep.belief.corpus.corpus import Corpus
    from raysweep.belief.points import types
    from raysweep.belief.points.types import EvalPoint
    from raysweep.belief.testbed import Testbed
else:
    # Every plan imports the datasets, and few of them are about beliefs.
    types = lazy("raysweep.belief.points.types")
    testbed = lazy("raysweep.belief.testbed")

DEFAULT_SETTING = ("hparams", "belief", "belief-small.yaml")


class BeliefPoints:
    """Requested updates of a belief testbed.

    Probes: the update itself (efficacy); the fact reworded (paraphrase); the downstream answer, if the agent changes it
    (portability); the facts of another subject (locality).
    """

    name: ClassVar[str] = "belief"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "requested updates of a belief testbed; data.path = its setting (YAML), or none"

    def __init__(self, workspace: Workspace | None = None) -> None:
        self._workspace = workspace or Workspace.here()
        self._opened: dict[Path | None, Testbed] = {}

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path:
        """Return the file of the setting, in the workspace or in what came with the package.

        Raises:
            DataError: there is no such file.
        """
        self._workspace = workspace
        parts = Path(spec.path).expanduser().parts if spec.path else DEFAULT_SETTING
        file = workspace.find(*parts)
        if file is None or not file.is_file():
            raise DataError(f"belief setting '{Path(*parts)}' does not exist", hint="a YAML file as data.path, or none")
        return file

    def testbed(self, path: Path | None) -> Testbed:
        """Return the testbed of the setting in *path*."""
        # A testbed is expensive to open, and its parts are cached on it.
        if path not in self._opened:
            file = path or self.locate(DataSpec(name=self.name), self._workspace)
            self._opened[path] = testbed.Testbed.open(file, self._workspace)
        return self._opened[path]

    def count(self, path: Path | None) -> int:
        """Return the number of points."""
        return len(self.testbed(path).points)

    def digest(self, path: Path | None) -> str:
        """Return the hash of everything the points depend on."""
        return self.testbed(path).digest

    def read(self, path: Path | None) -> Reading:
        """Examine every record."""
        records = tuple(map(edit_record, self.testbed(path).points))
        problems: list[Problem] = []
        warnings: list[str] = []
        for index, record in enumerate(records):
            try:
                warnings += check_record(record, where=f"belief:{index}")
            except RecordError as error:
                problems.append(Problem(code=error.code, message=error.message, hint=error.hint))
        return Reading(records, tuple(problems), tuple(warnings))

    def load(self, path: Path | None) -> Iterator[EditRecord]:
        """Yield every record.

        Raises:
            ProblemsError: a record breaks a rule (a name occurs within another, say).
        """
        reading = self.read(path)
        if reading.problems:
            raise ProblemsError(reading.problems)
        return iter(reading.records)

    def texts(self, path: Path | None) -> Iterator[str]:
        """Yield the documents that the setting's model is trained on."""
        corpus: Corpus = self.testbed(path).parts.corpus
        return (document.text for document in corpus.documents())


def open_testbed(spec: DataSpec, workspace: Workspace) -> Testbed:
    """Return the testbed whose points are the records of *spec*.

    Raises:
        DataError: they are not the records of a testbed.
    """
    if spec.name != BeliefPoints.name:
        raise DataError(f"dataset '{spec.name}' has no belief testbed", hint="data: {name: belief}")
    data = BeliefPoints(workspace)
    return data.testbed(data.locate(spec, workspace))


def record_id(point: EvalPoint) -> str:
    """Return the id of the point's record."""
    # Padded, so that ids sort in the order of the points.
    return f"{BeliefPoints.name}/{point.id:06d}"


def edit_record(point: EvalPoint) -> EditRecord:
    """Return the record of *point*.

    Raises:
        DataError: the point has no request.
    """
    if point.request is None or point.watched is None or point.flags is None:
        raise DataError("a belief setting without editing has nothing to edit", hint="points.editing: true")
    asked = point.questions
    update = asked["new_fact_case"]
    probes = [Probe(kind=ProbeKind.EFFICACY, prompt=update.prompt, target=update.target)]
    if "paraphrase_case" in asked:
        reworded = asked["paraphrase_case"].prompt
        probes.append(Probe(kind=ProbeKind.PARAPHRASE, prompt=reworded, target=update.target))
    # Where the agent's answer stays, an edit has nothing to carry over.
    if point.flags.downstream_answer_changes:
        follows = asked[f"editing_{types.SAME_OTHER}_{types.MODAL}"]
        probes.append(
            Probe(kind=ProbeKind.PORTABILITY, prompt=follows.prompt, target=follows.target, name="downstream")
        )
    for name in (types.OTHER_SAME, types.OTHER_OTHER):
        watch = point.watched[name]
        # A fact that the agent changes its mind about is no locality.
        if watch.objects[types.MODAL] == watch.objects[types.ORIGINAL]:
            stays = asked[f"editing_{name}_{types.ORIGINAL}"]
            probes.append(
                # Against the unedited model's own answer, as that may never have known the true object.
                Probe(kind=ProbeKind.LOCALITY, prompt=stays.prompt, target=stays.target, name=name, against="base")
            )
    return EditRecord(
        id=record_id(point), subject=point.names[0], prompt=update.prompt, target=update.target, probes=tuple(probes)
    )
