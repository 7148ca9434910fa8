"""The key of an artifact: each kind twice, with one input changed, in two folders; with what it does not depend on, in one.

A kind without a scene here fails, and so does a field of a configuration that nobody has classified.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from ruamel.yaml import YAML

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest, ArtifactStore
from raysweep.belief import testbed
from raysweep.belief.graph.artifact import graph_request
from raysweep.belief.spec import BeliefSpec, GraphSpec
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TextSpec, TrialSpec, WrapSpec
from raysweep.editors import EDITORS
from raysweep.editors.build import build_editor, provide
from raysweep.editors.wrappers import WRAPPERS
from raysweep.errors import ArtifactError
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind
from raysweep.studies import baseline
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import byte_tokenizer, tiny_lm, toy_records
from raysweep.workspace import Workspace
from tests.changes import changes
from tests.contracts.test_editors import CONFIGS, VALUE
from tests.golden.sketches import SETTING

PACKAGE = Path(__file__).parents[3] / "raysweep"
TEXT = {"text": {"digest": "t", "tokens": 50}}
ALONE = {**VALUE, "batch": 1}  # captured steps are those of one record
OF_THE_EDIT = "what an edit does with the artifact, not what the artifact is"
# Files have names of the model's modules: tests/unit/editors/test_foreign_tensors.py.
FILES = ("moments.files",)
ALPHAEDIT = ("value.*", "contexts.*", "ridge", "pre", "backend")
WHERE = "where the file lies; its digest is in"


@dataclass(frozen=True)
class Scene:
    """An artifact that is computed with a model.

    Attributes:
        spec: an editor that asks for it.
        depends: patterns of the fields of its configuration, or its outer wrapper's, that the artifact depends on.
        apart: patterns of those it does not depend on, and why.
        stuck: fields that have one valid value only.
    """

    spec: EditorSpec
    depends: tuple[str, ...]
    apart: Mapping[str, str] = field(default_factory=dict)
    stuck: tuple[str, ...] = ()


SCENES: Mapping[str, Scene] = {
    "moments": Scene(
        EditorSpec(name="rome", config={**CONFIGS["rome"], "value": ALONE, "moments": TEXT}),
        depends=(
            *("layers", "moments.text.name", "moments.text.tokens", "moments.text.digest"),
            *("moments.width", "moments.skip", "moments.ref_fp32"),
        ),
        apart={
            "moments.text.path": WHERE,
            "moments.damping": "added when they are factored, so that one artifact serves every damping",
            "value.*": OF_THE_EDIT,
            "contexts.*": OF_THE_EDIT,
            "adjust": OF_THE_EDIT,
            "inverse": OF_THE_EDIT,
        },
        stuck=FILES,
    ),
    "projector": Scene(
        EditorSpec(
            name="alphaedit",
            config={**CONFIGS["alphaedit"], "value": ALONE, "moments": TEXT, "null_space": {"digest": "n"}},
        ),
        depends=(
            *("layers", "moments.text.name", "moments.text.tokens", "moments.text.digest", "null_space.path"),
            *("moments.width", "moments.skip", "moments.ref_fp32", "threshold", "projection"),
        ),
        apart={
            "moments.text.path": WHERE,
            "null_space.digest": "of a file; this projector is computed",
            **dict.fromkeys(ALPHAEDIT, OF_THE_EDIT),
        },
        stuck=("moments.damping", *FILES),
    ),
    "projector, read": Scene(
        EditorSpec(
            name="alphaedit",
            config={**CONFIGS["alphaedit"], "value": ALONE, "null_space": {"path": "x", "digest": "n"}},
        ),
        depends=("null_space.digest", "layers"),
        apart={
            "null_space.path": WHERE,
            "moments.*": "not read where the projector is",
            "threshold": "the file's own",
            "projection": "the file's own",
            **dict.fromkeys(ALPHAEDIT, OF_THE_EDIT),
        },
        stuck=("moments.damping", *FILES),
    ),
    "contexts": Scene(
        EditorSpec(name="rome", config={**CONFIGS["rome"], "value": ALONE}),
        depends=("contexts.lengths", "contexts.seed"),
        apart={
            "contexts.templates": "given templates take the artifact's place: none is asked for",
            "layers": OF_THE_EDIT,
            "moments.*": OF_THE_EDIT,
            "value.*": OF_THE_EDIT,
            "adjust": OF_THE_EDIT,
            "inverse": OF_THE_EDIT,
        },
        stuck=FILES,
    ),
    "energy": Scene(
        EditorSpec(
            name="ft",
            config={"layers": [1]},
            wrap=(WrapSpec(name="simie", config={"lam": {"energy": 1.0}, "text": TEXT["text"]}),),
        ),
        depends=("text.name", "text.tokens", "text.digest"),
        apart={
            "text.path": WHERE,
            "lam*": "λ counts in units of the energy, which does not know it",
            "mode": OF_THE_EDIT,
            "backend": OF_THE_EDIT,
            "keys": OF_THE_EDIT,
            "refresh": OF_THE_EDIT,
            "tolerance": OF_THE_EDIT,
        },
    ),
    "hypernetwork": Scene(
        EditorSpec(
            name="mend",
            config={
                **CONFIGS["mend"],
                "train": {"steps": 2, "data": {"digest": "d", "invalid": "skip", "prompt": "chat"}},
                "weights": {"digest": "w"},
            },
        ),
        depends=("*",),
        apart={
            "train.data.path": WHERE,
            "weights.digest": "of an archive; this network is trained",
            "batch": OF_THE_EDIT,
        },
    ),
    "hypernetwork, read": Scene(
        EditorSpec(name="mend", config={"layers": [1, 2], "weights": {"path": "x", "digest": "w"}}),
        depends=("weights.digest", "layers", "modules"),
        apart={
            "weights.path": WHERE,
            "rank": "the archive's own",
            "edit_lr": "the archive's own",
            "shared": OF_THE_EDIT,
            "ref_labels": OF_THE_EDIT,
            "batch": OF_THE_EDIT,
        },
        stuck=("train",),  # dropped where an archive is given
    ),
}
# Kinds without a model's configuration: a test of its own below.
ELSEWHERE = {"answers", "graph", "belief_points", "belief_content", "belief_model", "belief_log"}


def folders(spec: EditorSpec, kind: str, lm: LanguageModel, *, threads: int = 1) -> frozenset[str]:
    """Return the digests of the artifacts of *kind* that *spec* asks for (no artifact: none)."""
    store, found = ArtifactStore(Path("nowhere")), set()
    asked = [replace(request, threads=threads) for request in build_editor(spec).artifact_requests(lm).values()]
    for request in asked:
        asked += request.sources.values()
        if request.kind == kind:
            found.add(store.folder(request).name)
    return frozenset(found)


def varied(scene: Scene) -> Iterator[tuple[str, EditorSpec]]:
    """Yield the scene's editor with one field changed: of its outer wrapper if it has one."""
    if scene.spec.wrap:
        kind, config = WRAPPERS.get(scene.spec.wrap[0].name).config_type, scene.spec.wrap[0].config
    else:
        kind, config = EDITORS.get(scene.spec.name).config_type, scene.spec.config
    for leaf, changed in changes(kind, config, scene.stuck):
        if scene.spec.wrap:
            wrap = (WrapSpec(name=scene.spec.wrap[0].name, config=changed),)
            yield leaf, scene.spec.model_copy(update={"wrap": wrap})
        else:
            yield leaf, scene.spec.model_copy(update={"config": changed})


@pytest.mark.parametrize("kind", SCENES)
def test_each_field_of_a_configuration(kind: str) -> None:
    scene, lm = SCENES[kind], tiny_lm("llama", bos=True)
    kind = kind.partition(",")[0]
    before = folders(scene.spec, kind, lm)
    assert before == folders(scene.spec, kind, lm)
    assert before
    for leaf, changed in varied(scene):
        apart = [pattern for pattern in scene.apart if fnmatch(leaf, pattern)]
        depends = [pattern for pattern in scene.depends if fnmatch(leaf, pattern)]
        assert apart or depends, f"does an artifact of kind '{kind}' depend on '{leaf}'? Say so in its scene"
        now = folders(changed, kind, lm)
        if apart:
            assert now in (before, frozenset()), f"{kind}: {leaf}"
        else:
            assert now != before, f"{kind}: {leaf}"


def _model(**changed: Any) -> LanguageModel:
    lm = tiny_lm("llama", bos=True)
    if "dtype" in changed:
        lm.module.to(changed.pop("dtype"))
    if "pad" in changed:
        lm.tokenizer.pad_token = changed.pop("pad")
    return replace(lm, **changed)


def _with_token(token: str) -> Any:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.add_tokens([token])
    return tokenizer


MODELS: Mapping[str, Callable[[], LanguageModel]] = {
    "weights": lambda: _model(digest="other"),
    "precision": lambda: _model(dtype=torch.bfloat16),
    "precision of its products": lambda: _model(matmul="tf32"),
    "tokenizer that adds no BOS": lambda: _model(tokenizer=byte_tokenizer(bos=False)),
    "other tokenizer": lambda: _model(tokenizer=_with_token("ab")),
    "pad token": lambda: _model(pad="<s>"),
    "BOS policy": lambda: _model(bos=(0,)),
    "another BOS": lambda: _model(bos=(1,)),
}


@pytest.mark.parametrize("kind", [*SCENES, "answers"])
def test_each_input_of_the_model(kind: str, tmp_path: Path) -> None:
    def of(lm: LanguageModel, threads: int = 1) -> frozenset[str]:
        if kind == "answers":
            return frozenset([_answers(tmp_path, lm=lm, threads=threads)])
        return folders(SCENES[kind].spec, kind.partition(",")[0], lm, threads=threads)

    found = {"nothing": of(_model()), "threads": of(_model(), 2), **{name: of(make()) for name, make in MODELS.items()}}
    assert of(_model()) == found["nothing"]
    assert len(set().union(*found.values())) == sum(map(len, found.values())), "two models, one folder"


def _answers(root: Path, **changed: Any) -> str:
    """Return the folder that the pristine answers to one question come to lie in."""
    asked = {
        "lm": _model(),
        "prompt": "a",
        "target": "b",
        "asking": "teacher_forced",
        "batch": 8,
        "threads": 1,
    } | changed
    probe = Probe(kind=ProbeKind.EFFICACY, prompt=asked["prompt"], target=asked["target"])
    store, seen = ArtifactStore(root), []

    def ask(probes: Any) -> Any:
        raise LookupError

    real = store.get_or_build
    store.get_or_build = lambda request, build: seen.append(store.folder(request).name) or real(request, build)  # type: ignore[method-assign]
    with pytest.raises(LookupError):
        baseline.answers(
            asked["lm"], [probe], ask, store, asking=asked["asking"], batch=asked["batch"], threads=asked["threads"]
        )
    return str(seen[0])


def test_each_input_of_answers(tmp_path: Path) -> None:
    changed = [
        {},
        {"prompt": "c"},
        {"target": "c"},
        {"asking": "generation"},
        {"batch": 4},
        {"prompt": "ab", "target": ""},
    ]
    assert len({_answers(tmp_path, **one) for one in changed}) == len(changed)
    assert _answers(tmp_path) == _answers(tmp_path)


# --------------------------------------------------------------------------------------- belief testbeds

# What the model, its log and the digest of its documents depend on: tests/unit/belief/test_every_field.py, against the documents.
POINTS = ("seed", "graph.source", "generative.*", "corpus.*", "agent.*", "points.*", "parity.*")
OTHERWISE = {
    "graph.*": "how long an answer may be",
    "pretrain.*": "a model's training; the points are made without one",
}
# Of Wikidata5m only, and what is filled in: a setting of the embedded world that changes them is refused.
REFUSED = tuple(f"graph.{name}" for name in GraphSpec.model_fields if name not in ("source", "max_object_tokens"))


def belief(**changed: Any) -> BeliefSpec:
    tree = YAML(typ="safe", pure=True).load(SETTING)
    tree["corpus"] |= {"negations": False, "disjunctions": False, "conjunctions": False}
    return BeliefSpec.model_validate(tree | changed)


def points_folder(spec: BeliefSpec) -> str:
    opened = testbed.Testbed(spec, Workspace(Path("nowhere")))
    return ArtifactStore(Path("nowhere")).folder(opened.points_request).name


def test_each_field_of_a_belief_setting() -> None:
    before = points_folder(belief())
    assert before == points_folder(belief())
    for leaf, changed in changes(BeliefSpec, belief(), REFUSED):
        if changed.pretrain is None:
            continue
        if any(fnmatch(leaf, pattern) for pattern in POINTS):
            assert points_folder(changed) != before, leaf
        else:
            assert any(fnmatch(leaf, pattern) for pattern in OTHERWISE), f"do the points depend on '{leaf}'?"
            assert points_folder(changed) == before, leaf


def test_each_field_of_a_graph() -> None:
    """Of Wikidata5m: what is read, and how."""
    apart = {
        "path": WHERE,
        "tokenizer": WHERE,
        "odd_relations": "refuses, or makes no difference",
    }
    spec = belief().graph.model_copy(update={"source": "wikidata5m", "relations": 4, "digest": "d", "tokenizer": "a"})
    folder = ArtifactStore(Path("nowhere")).folder
    before = folder(graph_request(spec)).name
    for leaf, changed in changes(type(spec), spec):
        assert (folder(graph_request(changed)).name == before) == (leaf in apart), leaf


# ------------------------------------------------------------------------------------------- requests

# Fields of a request that are not in its key, and why.
NOT_IN_KEY: Mapping[str, str] = {
    "builder": "the name of the function that computes it; its numbers are under `version`",
    "data": "how to open the records; `inputs` has their digest",
    "where": "where files lie; `inputs` has their digests",
    "text": "how to open the text; `inputs` has its digest",
}


def test_each_field_of_a_request() -> None:
    source = ArtifactRequest("moments", {"layer": 1}, "m:f", model="m")
    request = ArtifactRequest("projector", {"threshold": 1.0}, "m:f", model="m", sources={"moments": source}, threads=1)
    others: Mapping[str, Any] = {
        "kind": "moments",
        "inputs": {"threshold": 2.0},
        "builder": "m:g",
        "model": "n",
        "sources": {"moments": replace(source, inputs={"layer": 2})},
        "data": DataSpec(name="zsre"),
        "where": {"path": "x"},
        "text": TextSpec(name="brown"),
        "version": 2,
        "threads": 2,
    }
    assert set(others) == {f.name for f in fields(ArtifactRequest)}, "a field that nobody has classified"
    folder = ArtifactStore(Path("nowhere")).folder
    found = {name: folder(replace(request, **{name: value})) for name, value in others.items()}
    same = {name for name, where in found.items() if where == folder(request)}
    assert same == set(NOT_IN_KEY)
    assert len(set(found.values())) == len(others) - len(NOT_IN_KEY) + 1
    deeper = [replace(source, version=2), replace(source, model="n"), replace(source, threads=2)]
    assert len({folder(replace(request, sources={"moments": one})) for one in (source, *deeper)}) == 4


def test_a_request_must_name_its_model() -> None:
    with pytest.raises(TypeError, match="model"):
        ArtifactRequest("moments", {}, "m:f")  # type: ignore[call-arg]


@pytest.mark.parametrize("named", ["", "another"])
def test_an_artifact_of_another_model_is_not_made(named: str, tmp_path: Path) -> None:
    request = ArtifactRequest("moments", {}, "m:f", model=named)
    with pytest.raises(ArtifactError, match="was asked for") as caught:
        provide(tiny_lm("llama"), {"x": request}, ArtifactStore(tmp_path), lambda _: iter(()), threads=1)
    assert "model=lm.identity" in caught.value.hint


def test_what_nobody_can_tell_from_another_is_not_kept(tmp_path: Path) -> None:
    """A model or a text without a digest could be any."""
    spec = EditorSpec(name="memit", config={"layers": [1], "contexts": {"templates": []}})
    known = EditorSpec(name="memit", config={**spec.config.model_dump(), "moments": TEXT})
    for lm, editor, kept in (
        (replace(tiny_lm("llama"), digest=""), known, 0),
        (tiny_lm("llama"), spec, 0),
        (tiny_lm("llama"), known, 1),
    ):
        texts = (f"{r.prompt} {r.target}" for r in toy_records(9))
        provide(
            lm, build_editor(editor).artifact_requests(lm), ArtifactStore(tmp_path), lambda _, t=texts: t, threads=1
        )
        assert sum(1 for _ in tmp_path.glob("moments/*/COMPLETE")) == kept


def test_every_kind_of_artifact_is_examined() -> None:
    """Every request in the package is of a kind that has a scene; every kind that editors and studies share has a version."""
    kinds = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArtifactRequest"):
                given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "kind")]
                kinds.add(ast.unparse(given[0]))
    found = {"hypernetwork" if kind == "ARTIFACT" else ast.literal_eval(kind) for kind in kinds}
    scenes = {scene.partition(",")[0] for scene in SCENES}
    assert found == scenes | ELSEWHERE
    assert set(VERSIONS) == scenes | {"answers"}
    declared = {k for t in (EDITORS, WRAPPERS) for n in t.names() for k in t.get(n).artifact_kinds}
    assert declared == scenes


# ------------------------------------------------------------------------------------------ the case itself


def test_an_unedited_model_agrees_with_itself_under_each_policy(tmp_path: Path) -> None:
    """The same sweep with ``bos: tokenizer``, then ``bos: none``, in one root: Loc of ``null`` is 1 under both."""
    records = toy_records(4)
    for bos in (True, False):
        lm = replace(tiny_lm("llama", bos=bos), bos=() if bos else (5,))
        deps = Deps(
            load_model=lambda _, lm=lm: lm,
            open_dataset=lambda _: records,
            artifacts=ArtifactStore(tmp_path),
            texts=lambda *_: iter(()),
        )
        trial = TrialSpec(
            study="lifelong",
            model=ModelSpec(bos="tokenizer" if bos else "none"),
            data=DataSpec(name="toy", order="file"),
            editor=EditorSpec(name="null"),
            protocol=ProtocolSpec(rounds=(0, 4)),
            seed=0,
        )
        for found in Lifelong().execute(trial, deps, None):
            agreement = [row.value for row in found.rows if row.metric == "agreement"]
            assert set(agreement) == {1.0}
    assert len(list(tmp_path.glob("answers/*/COMPLETE"))) == 2


def test_changes_are_made_one_at_a_time() -> None:
    """The walk itself: every leaf once, and nothing but it."""

    class Inner(BaseModel):
        c: int = 1

    class Outer(BaseModel):
        a: float = 1.0
        b: Inner = Inner()

    found = dict(changes(Outer, Outer()))
    assert set(found) == {"a", "b.c"}
    assert found["a"].b == Inner()
    assert found["b.c"].a == 1.0
    assert copy.deepcopy(Outer()) == Outer()
