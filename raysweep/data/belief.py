"""The points of a belief testbed as records: the requested update is the edit, the point's questions are its probes.

The file is a belief spec in YAML (its own folder is the root of relative paths); without one, :data:`DEMO` is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import ValidationError

from raysweep.belief.making import Testbed, make
from raysweep.belief.points import EvalPoint
from raysweep.belief.spec import BeliefSpec, CorpusSpec, GenerativeSpec, PointSpec
from raysweep.config.schema import DataSpec
from raysweep.data.base import Reading
from raysweep.errors import DataError, Problem, ProblemsError, RecordError
from raysweep.hashing import canonical, digest
from raysweep.records import EditRecord, Probe, ProbeKind, check_record

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

DEMO = BeliefSpec(
    generative=GenerativeSpec(min_true_prob=0.8, samples=5),
    corpus=CorpusSpec(
        num_atomic_facts=900,
        true_false=True,
        negations=True,
        disjunctions=True,
        conjunctions=True,
        connective_instances_per_subject=20,
    ),
    points=PointSpec(size=200),
)
"""The embedded world under the embedded configuration's sentences (§12.1)."""


class Belief:
    """Requested updates of a belief testbed; the probes are the testbed's questions, in its order."""

    name: ClassVar[str] = "belief"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "requested updates of a belief-revision testbed; data.path = its spec (YAML), or none"

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path | None:
        """Return the file of the spec, or None for the demo's.

        Raises:
            DataError: there is no such file.
        """
        if not spec.path:
            return None
        path = workspace.resolve(spec.path)
        if not path.is_file():
            raise DataError(f"belief spec '{path}' does not exist", hint="give a YAML file as data.path, or none")
        return path

    def spec(self, path: Path | None) -> BeliefSpec:
        """Return the spec in *path*.

        Raises:
            DataError: it is no belief spec.
        """
        if path is None:
            return DEMO
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            return BeliefSpec.model_validate(YAML(typ="safe", pure=True).load(path) or {})
        except (ValidationError, YAMLError) as error:
            raise DataError(f"{path} is no belief spec: {error}", hint="keys: raysweep/belief/spec.py") from error

    def count(self, path: Path | None) -> int:
        """Return the number of points."""
        return len(self._testbed(path).points)

    def digest(self, path: Path | None) -> str:
        """Return the hash of the spec and of the graph it names."""
        return digest({"spec": canonical(self.spec(path)), "graph": self._testbed(path).corpus.model.graph.digest})

    def read(self, path: Path | None) -> Reading:
        """Examine every record."""
        objects = self._testbed(path).corpus.model.graph.objects
        records = tuple(record_of(i, p, objects) for i, p in enumerate(self._testbed(path).points))
        problems: list[Problem] = []
        for index, record in enumerate(records):
            try:
                check_record(record, where=f"belief:{index}")
            except RecordError as error:
                problems.append(Problem(code=error.code, message=error.message, hint=error.hint))
        return Reading(records, tuple(problems))

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
        """Yield the documents of the corpus."""
        return (document.text for document in self._testbed(path).corpus.documents())

    def testbed(self, path: Path | None) -> Testbed:
        """Return the testbed of the spec in *path*."""
        return self._testbed(path)

    @cached_property
    def _made(self) -> dict[Path | None, Testbed]:
        return {}

    def _testbed(self, path: Path | None) -> Testbed:
        if path not in self._made:
            self._made[path] = make(self.spec(path), path.parent if path else Path())
        return self._made[path]


def record_of(index: int, point: EvalPoint, objects: tuple[str, ...]) -> EditRecord:
    """Return the record of one point.

    Args:
        index: of the record.
        point: with a request.
        objects: names of the graph's objects.

    Raises:
        DataError: the point has no request.
    """
    if point.request is None:
        raise DataError("a belief spec without editing has nothing to edit", hint="points.editing: true")
    subject, relation, _ = point.names
    prompt, target = f"{subject} {relation}", objects[point.request.object]
    asked = (Probe(kind=ProbeKind.BELIEF, prompt=q.prompt, target=q.target, name=n) for n, q in point.questions.items())
    return EditRecord(
        id=f"belief/{index:06d}",
        subject=subject,
        prompt=prompt,
        target=target,
        probes=(Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target), *asked),
    )
