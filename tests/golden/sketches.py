"""A few figures of what each component of a trial does, by its name in ``TrialSpec.versions`` (see ``tests/golden/ledger.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysweep import pytree
from raysweep.artifacts import ArtifactRequest, ArtifactStore
from raysweep.belief.graph.artifact import open_graph
from raysweep.belief.graph.graph import to_arrays
from raysweep.belief.spec import GraphSpec
from raysweep.belief.testbed import Testbed
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TextSpec, TrialSpec, WrapSpec
from raysweep.data import DATASETS
from raysweep.data.texts import open_texts
from raysweep.editors import EDITORS
from raysweep.editors.build import build_editor, provide
from raysweep.editors.wrappers import WRAPPERS
from raysweep.evals.scoring import score
from raysweep.hashing import digest
from raysweep.metrics import METRICS, Answer
from raysweep.models.lm import LanguageModel
from raysweep.models.sources import catalogue
from raysweep.rows import EvalRound
from raysweep.studies import STUDIES, baseline
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import embedded_lm, tiny_lm, toy_records
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace, package_share
from tests.contracts.test_datasets import SAMPLES, sample_path
from tests.contracts.test_editors import CONFIGS, as_written, specs

Figures = dict[
    str, list[float] | str
]  # numbers by what they are of, or the hash of something that must be equal to the letter
Sketch = Callable[[Path], Figures]
EDITS = 3
FT = EditorSpec(name="ft", config={"layers": [1], "steps": 3, "lr": 1e-2})
SETTING = """\
generative: {min_true_prob: 0.8, samples: 2}
corpus: {num_atomic_facts: 40, true_false: true, negations: true, disjunctions: true, conjunctions: true}
points: {size: 8}
pretrain:
  model: {hidden: 16, mlp: 32, heads: 2, layers: 2, positions: 128}
  tokens: 2000
  batch: 16
  lr: 1e-2
  extension: 0
  evals: 1
  eval_points: 4
"""
# Further configurations of one editor, beside those of its exam: what else its version answers for.
DAMPED = {
    "moments": {"damping": 0.1}
}  # moments of few texts are near-singular on GPT-2, and their inverse is mostly rounding
ALSO = (
    EditorSpec(name="rome", config={**CONFIGS["rome"], **DAMPED}),
    EditorSpec(name="memit", config={**CONFIGS["memit"], **DAMPED}),
    EditorSpec(name="grace", config={**CONFIGS["grace"], "radius": 50.0, "steps": 2}),
    EditorSpec(name="wise", config={**CONFIGS["wise"], "retrieve": False, "merge": {"algorithm": "ties"}}),
)

DEEP = ALSO[-1:]  # merged memories differ where there are blocks below, and more above: four blocks instead of three


def table() -> dict[str, Sketch]:
    """Return what makes the figures of each component, by name; it is made in the folder given."""
    found: dict[str, Sketch] = {}
    for kind, registry in (("editor", EDITORS), ("wrapper", WRAPPERS)):
        for name in registry.names():
            found[f"{kind}/{name}"] = lambda _, kind=kind, name=name: _edits(kind, name)
    for name in DATASETS.names():
        found[f"dataset/{name}"] = lambda root, name=name: _dataset(name, root)
    for name in STUDIES.names():
        found[f"study/{name}"] = lambda root, name=name: _study(name, root)
    for name in METRICS:
        found[f"metric/{name}"] = lambda _, name=name: _metric(name)
    for kind in _ARTIFACTS:
        found[f"artifact/{kind}"] = lambda root, kind=kind: _ARTIFACTS[kind](root)
    belief = {"belief/graph": _graph, "belief/points": _points, "belief/model": _belief_model}
    return found | belief | {"protocol": _protocol, "texts": _texts}


def of_matrix(value: Tensor) -> list[float]:
    """Return the norm of a tensor and two sums with fixed random weights: other entries, other sums."""
    flat = value.detach().double().reshape(-1)
    weights = torch.randn(2, len(flat), generator=torch.Generator().manual_seed(len(flat)), dtype=torch.float64)
    return [float(flat.norm()), *(weights @ flat).tolist()]


def of_tensors(tensors: Mapping[str, Tensor]) -> Figures:
    return {name: of_matrix(value) for name, value in sorted(tensors.items())}


def of_rounds(rounds: Sequence[EvalRound]) -> Figures:
    """Return every mean of every round, and how many rows there are."""
    found: Figures = {}
    for one in rounds:
        means = [value for _, value in sorted(one.summary.items()) if value == value]
        found[f"step {one.step}"] = [float(len(one.rows)), float(len(one.beliefs)), *means]
        for name in sorted({row.question for row in one.beliefs}):
            own = [row for row in one.beliefs if row.question == name]
            told = [row.expected for row in own if row.expected is not None]
            columns = ([row.probability or 0.0 for row in own], [float(bool(row.correct)) for row in own], told)
            found[f"step {one.step}/{name}"] = [sum(column) / max(len(column), 1) for column in columns]
    return found


def _edits(kind: str, name: str) -> Figures:
    """Edit with every configuration of the exam that this editor, or this wrapper, is in; one of an editor's also on GPT-2."""
    found: Figures = {}
    for spec in (*specs(), *ALSO):
        alone = kind == "editor" and not spec.wrap and spec.name == name
        around = kind == "wrapper" and name in [w.name for w in spec.wrap]
        plain = alone and as_written(spec)["config"] == {
            **CONFIGS[name],
            **(DAMPED if name in ("rome", "memit") else {}),
        }
        families = ["llama"] * (alone or around) + ["gpt2"] * plain + ["embedded"] * (alone and spec in DEEP)
        for family in families:
            of = f"{family}/{spec.label}-{digest(as_written(spec))[:6]}"
            found |= {f"{of}/{key}": value for key, value in _edited(spec, family).items()}
    return found


def _edited(spec: EditorSpec, family: str) -> Figures:
    """Write three toy records one by one; look at the change of each weight, at memories, and at what the model then answers."""
    lm = embedded_lm() if family == "embedded" else tiny_lm(family, bos=family == "llama")
    exam = Exam(build=lambda: build_editor(spec), lm=lm, fresh=lambda: lm)
    editor = exam.build()
    ledger, state = exam.run(lm, editor, stop=EDITS)
    found = of_tensors(ledger.total_deltas())
    if editor.patch_kind == "modules":
        memories = pytree.flatten("state", state)[0]
        found |= of_tensors({name: value for name, value in memories.items() if value.is_floating_point()})
    view = editor.report_view(lm, ledger.total_deltas, state)
    if view is not None:
        ledger.apply(view.patch)
    answers = score(lm, [probe for record in exam.records[:EDITS] for probe in record.probes])
    return {**found, "logprob": [s.logprob for s in answers]}


def _dataset(name: str, root: Path) -> Figures:
    """Read every sample: the records and the texts, to the letter."""
    found: Figures = {}
    for sample in SAMPLES[name]:
        path = sample_path(sample)
        if name == "belief":
            path = _setting(root)
        dataset = DATASETS.get(name)()
        dataset.locate(DataSpec(name=name, path=str(path or "")), Workspace(root))
        found[f"{sample}/records"] = digest(tuple(dataset.load(path)))
        found[f"{sample}/texts"] = digest(list(dataset.texts(path)))
    return found


def _study(name: str, root: Path) -> Figures:
    """Run the study with FT: a belief study on a tiny testbed, any other on toy records."""
    kind = STUDIES.get(name)
    if not name.startswith("belief"):
        return of_rounds(list(kind().execute(_trial(study=name), _deps(root), None)))
    workspace = Workspace(root)
    model = ModelSpec(name="tiny", path=str(_setting(root)))
    data = DataSpec(name="belief", path=str(_setting(root)), size=3)
    trial = _trial(study=name, model=catalogue.resolve(model, workspace), data=data, rounds=(0, 2, 3))
    return of_rounds(list(kind().execute(trial, make_deps(workspace), None)))


def _protocol(root: Path) -> Figures:
    """Measure the same edits the ways that a protocol can say."""
    ways: list[dict[str, Any]] = [{"asking": how} for how in ("teacher_forced", "generation", "generation_ref")]
    ways += [{"scope": "all", "rounds": (2, 4)}, {"batch_size": 2}, {"immediate": False, "eval_batch": 3}]
    found: Figures = {}
    for way in ways:
        rounds = Lifelong().execute(_trial(**way), _deps(root), None)
        label = ",".join(f"{k}={v}" for k, v in way.items())
        found |= {f"{label}/{key}": value for key, value in of_rounds(list(rounds)).items()}
    return found


def _metric(name: str) -> Figures:
    cases = (
        Answer((1, 2, 3), (1, 2, 3), (1, 2, 3), -0.5),
        Answer((1, 2, 3), (1, 9, 3), (1, 9, 9), -4.25),
        Answer((7,), (8,), (8,), -11.0),
        Answer((4, 4), (5, 4), (4, 5), -0.001),
    )
    return {"value": [float(METRICS[name].function(case)) for case in cases]}


def _texts(root: Path) -> Figures:
    """Cut texts out of a file of each kind."""
    (root / "a.txt").write_text("One. Two.\n\n  Three\nfour.\n\n\nFive\n", encoding="utf-8")
    (root / "b.jsonl").write_text('{"text": "One"}\n\n"Two\\n\\nstill two"\n', encoding="utf-8")
    names = ("a.txt", "b.jsonl")
    return {n: digest(list(open_texts(TextSpec(name="own", path=n), DataSpec(), Workspace(root)))) for n in names}


def _graph(root: Path) -> Figures:
    """Read the committed sample of Wikidata5m, to the letter."""
    folder = package_share() / "data/wikidata5m/sample"
    spec = GraphSpec(source="wikidata5m", path=str(folder), relations=4, min_cooccurrences=5)
    arrays, meta = to_arrays(open_graph(spec, Workspace(root)))
    return {"arrays": digest({name: array.tolist() for name, array in arrays.items()}), "meta": digest(meta)}


def _points(root: Path) -> Figures:
    """Make the points of a tiny setting: what they ask to the letter, and what the agent expects."""
    points = Testbed.open(_setting(root), Workspace(root)).points
    asked = [[(n, q.prompt, q.target) for n, q in sorted(p.questions.items())] for p in points]
    expected = [[p.targets.generative_prob, p.targets.posterior_prob_o_given_s_r] for p in points]
    return {"questions": digest(asked), "expected": [v for row in expected for v in row if v is not None]}


def _belief_model(root: Path) -> Figures:
    """Train the model of a tiny setting."""
    lm = Testbed.open(_setting(root), Workspace(root)).model()
    return of_tensors(dict(lm.module.named_parameters()))


def _setting(root: Path) -> Path:
    file = root / "tiny.yaml"
    if not file.is_file():
        file.write_text(SETTING, encoding="utf-8")
    return file


def _trial(
    study: str = "lifelong", model: ModelSpec | None = None, data: DataSpec | None = None, **protocol: Any
) -> TrialSpec:
    return TrialSpec(
        study=study,
        model=model or ModelSpec(name="tiny"),
        data=data or DataSpec(name="toy", order="seeded"),
        editor=FT,
        protocol=ProtocolSpec(**({"rounds": (0, 2, 4)} | protocol)),
        seed=1,
    )


def _toy_texts(*_: object) -> Iterator[str]:
    return (f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes)


def _deps(root: Path, lm: LanguageModel | None = None) -> Deps:
    model = lm or tiny_lm("llama", bos=True)
    records = toy_records(6)
    return Deps(
        load_model=lambda _: model, open_dataset=lambda _: records, artifacts=ArtifactStore(root), texts=_toy_texts
    )


# ---------------------------------------------------------------------------------------------------- artifacts


def _made(spec: EditorSpec, root: Path, kind: str, lm: LanguageModel) -> Figures:
    """Build what *spec* asks for; return figures of the artifacts of *kind*."""
    needs: Mapping[str, ArtifactRequest] = build_editor(spec).artifact_requests(lm)
    made = provide(lm, needs, ArtifactStore(root), _toy_texts, records=lambda _: toy_records(12), threads=1)
    found: Figures = {}
    for name, artifact in made.items():
        if needs[name].kind != kind:
            continue
        found |= {f"{name}/{key}": value for key, value in of_tensors(artifact.tensors).items()}
        numbers = [float(artifact.meta[key]) for key in ("energy", "tokens", "kept_rank") if key in artifact.meta]
        found |= {f"{name}/meta": numbers} if numbers else {}
        found |= {f"{name}/templates": digest(artifact.meta["templates"])} if "templates" in artifact.meta else {}
    return found


def _moments(root: Path) -> Figures:
    spec = EditorSpec(name="memit", config={"layers": [1, 2], "contexts": {"templates": []}})
    return _made(spec, root, "moments", embedded_lm())


def _energy(root: Path) -> Figures:
    wrap = (WrapSpec(name="simie", config={"lam": {"energy": 1.0}}),)
    return _made(EditorSpec(name="ft", config={"layers": [1, 2]}, wrap=wrap), root, "energy", embedded_lm())


def _projector(root: Path) -> Figures:
    config = {"layers": [1], "contexts": {"templates": []}, "threshold": 1e-3}
    return _made(EditorSpec(name="alphaedit", config=config), root, "projector", embedded_lm())


def _contexts(root: Path) -> Figures:
    lengths = {"contexts": {"lengths": [[5, 3], [8, 2]], "seed": 3}}
    sampled = _made(EditorSpec(name="rome", config={"layers": [1], **lengths}), root, "contexts", embedded_lm())
    wise = EditorSpec(name="wise", config={**CONFIGS["wise"], **lengths})
    return sampled | {f"continued/{k}": v for k, v in _made(wise, root, "contexts", embedded_lm()).items()}


def _hypernetwork(root: Path) -> Figures:
    spec = EditorSpec(name="mend", config=CONFIGS["mend"])
    return _made(spec, root, "hypernetwork", tiny_lm("llama", bos=True))


def _answers(root: Path) -> Figures:
    lm = embedded_lm()
    probes = [probe for record in Exam.world_records() for probe in record.probes]
    found = baseline.answers(
        lm, probes, lambda some: score(lm, some), ArtifactStore(root), asking="teacher_forced", batch=64, threads=1
    )
    return {"answers": digest([s.answers for s in found]), "logprob": [s.logprob for s in found]}


_ARTIFACTS: Mapping[str, Sketch] = {
    "answers": _answers,
    "contexts": _contexts,
    "energy": _energy,
    "hypernetwork": _hypernetwork,
    "moments": _moments,
    "projector": _projector,
}
