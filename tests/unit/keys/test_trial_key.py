"""The key of a trial: change one input of a number and it is another; change nothing, or what no number depends on, and it is not.

``docs/decisions/012-what-is-in-a-key.md`` lists every field; a field that is not there fails here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from raysweep.artifacts import ArtifactRequest
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.plan import plan
from raysweep.config.schema import (
    DataSpec,
    EditorSpec,
    FileSpec,
    ModelSpec,
    ProtocolSpec,
    Spec,
    TextSpec,
    TrialSpec,
    WrapSpec,
)
from raysweep.config.sweep import parse_search_space
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.errors import ProblemsError
from raysweep.evals.scoring import Scores
from raysweep.metrics import DEFAULT_METRICS, METRICS, Answer, metric
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.results.tables import flatten
from raysweep.studies.measuring import Question, probe_rows
from raysweep.workspace import Workspace, package_share
from tests.changes import changes, leaves
from tests.contracts.test_editors import CONFIGS, VALUE

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/decisions/012-what-is-in-a-key.md"
# What is not in the key, and why. Everything else must be.
NOT_IN_KEY: Mapping[str, str] = {
    "model.path": "where the files lie; model.digest covers them",
    "data.path": "where the file lies; data.digest covers it",
    "model.devices": "over how many GPUs it is spread; no device is in a key",
    "protocol.keep": "what stays of a finished trial; no number depends on it",
}
BESIDE_A_DIGEST = "path"  # in an editor's or a wrapper's configuration: the same, of texts, files and training folds
STARTS: Mapping[str, Mapping[str, Any]] = {  # configurations of which every leaf has another valid value
    **CONFIGS,
    # captured steps are those of one record
    **{name: {**CONFIGS[name], "value": {**VALUE, "batch": 1}} for name in ("rome", "memit")},
    "alphaedit": {**CONFIGS["alphaedit"], "value": {**VALUE, "batch": 1}, "null_space": {"digest": "n"}},
    "wise": {**CONFIGS["wise"], "ref_padding": True},
    "mend": {**CONFIGS["mend"], "train": {**CONFIGS["mend"]["train"], "data": {"invalid": "skip", "prompt": "chat"}}},
    "simie": {"lam": 1.0},
    "prune": {},
}
# Files have names of the model's modules, which no change here finds: tests/unit/editors/test_foreign_tensors.py.
STUCK = {editor: ["moments.files"] for editor in ("rome", "memit", "alphaedit")}
STUCK["alphaedit"].append("moments.damping")  # must be 0: the projector takes its place


@pytest.fixture
def added_metric() -> Iterator[str]:
    """The name of a metric that somebody adds."""

    @metric(version=7, needs="target", range=(0.0, 100.0))
    def n_answered(answer: Answer) -> float:
        """How many tokens were answered."""
        return float(len(answer.answers))

    yield "n_answered"
    del METRICS["n_answered"]


def trial(**changed: Any) -> TrialSpec:
    base: dict[str, Any] = {
        "study": "lifelong",
        "model": ModelSpec(digest="m", tokenizer_digest="t", matmul="tf32"),
        "data": DataSpec(digest="d", size=12, invalid="skip", left_out=(3,), prompt="chat", template="t"),
        "editor": EditorSpec(name="ft", config={"layers": [1]}, wrap=(WrapSpec(name="simie", config={"lam": 1.0}),)),
        "protocol": ProtocolSpec(rounds=(0, 12), metrics=("token_match", "ppl"), also=("localft", "memit_compat")),
        "seed": 0,
        "versions": {"editor/ft": 1},
        "environment": {"MKL_CBWR": "AVX2"},
    }
    return TrialSpec.model_validate(base | changed)


def test_the_same_is_the_same() -> None:
    assert trial().key == trial().key
    assert TrialSpec.model_validate_json(trial().model_dump_json()).key == trial().key, "stored and read again"
    shuffled = {"b": 1, "a": 2}
    assert trial(versions=shuffled).key == trial(versions=dict(sorted(shuffled.items()))).key, "in another order"


def test_every_field_of_a_trial_is_in_its_key_or_on_the_list() -> None:
    key, seen = trial().key, {}
    # The editor's name says what its configuration is, so it is changed alone below; its configuration has a test of its own.
    for name, changed in changes(TrialSpec, trial(), ["editor.name"]):
        assert (changed.key == key) == (name in NOT_IN_KEY), name
        seen.setdefault(changed.key, []).append(name)
    assert set(NOT_IN_KEY) <= {name for names in seen.values() for name in names}, "a reason for what there is not"
    assert len(seen) == sum(map(len, seen.values())) - len(NOT_IN_KEY) + 1, "two changes, one key"
    assert (
        trial(editor=EditorSpec(name="a", config=UnreadConfig())).key
        != trial(editor=EditorSpec(name="b", config=UnreadConfig())).key
    )


@pytest.mark.parametrize(
    ("place", "name"), [(p, n) for p, t in (("editor", EDITORS), ("wrap", WRAPPERS)) for n in t.names()]
)
def test_every_field_of_a_configuration_is_in_the_key(place: str, name: str) -> None:
    kind = (EDITORS if place == "editor" else WRAPPERS).get(name).config_type

    def key(config: Spec) -> str:
        plain = config.model_dump(mode="json")
        if place == "editor":
            return trial(editor=EditorSpec(name=name, config=plain)).key
        return trial(
            editor=EditorSpec(name="ft", config={"layers": [1]}, wrap=(WrapSpec(name=name, config=plain),))
        ).key

    start = kind.model_validate(STARTS[name])
    for leaf, changed in changes(kind, start, STUCK.get(name, ())):
        paths_only = all(other.rpartition(".")[2] == BESIDE_A_DIGEST for other in differing(start, changed))
        assert (key(changed) == key(start)) == paths_only, f"{name}: {leaf}"


def differing(first: Spec, second: Spec) -> set[str]:
    """Return the leaves that differ: mostly one, but MEND drops its recipe where an archive is given."""
    one, other = (flatten(value.model_dump(mode="json"), "") for value in (first, second))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_only_specifications_with_a_digest_have_a_path_that_is_left_out() -> None:
    """What is left out by its name is left out because a digest covers it."""
    for kind in (ModelSpec, DataSpec, TextSpec, FileSpec):
        assert {"path", "digest"} <= set(kind.model_fields)
    bare = trial(editor=EditorSpec(name="ft", config=UnreadConfig(path="a")))
    assert bare.key != trial(editor=EditorSpec(name="ft", config=UnreadConfig(path="b"))).key


def test_the_page_lists_every_field() -> None:
    """A field that nobody has classified is not on the page."""
    listed = set(re.findall(r"^\| `([a-z_.*]+)`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    parts = {"text": TextSpec, "file": FileSpec}
    wanted = {leaf for leaf in leaves(TrialSpec) if not leaf.startswith("editor.")}
    wanted |= {"editor.name", "editor.config", "editor.wrap"}
    wanted |= {f"{part}.{leaf}" for part, kind in parts.items() for leaf in leaves(kind)}
    wanted |= {f"artifact.{field.name}" for field in fields(ArtifactRequest)}
    assert listed == wanted


def test_the_tests_that_the_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{function}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_of_narrow_models_have_a_version_of_their_own(planned: Callable[..., TrialSpec], dtype: str) -> None:
    trial = planned(model={"name": "embedded", "dtype": dtype})
    assert trial.versions.get("editor/rome/narrow") == (None if dtype == "float32" else 2)


def test_a_metric_added_to_the_table_moves_no_key(planned: Callable[..., TrialSpec], added_metric: str) -> None:
    now = planned()
    assert f"metric/{added_metric}" not in now.versions
    assert "metrics" not in now.identity()["protocol"]
    assert TrialSpec.model_validate(now.model_dump(mode="json")) == now


def test_a_protocol_that_asks_for_a_metric_has_another_key_and_its_rows(
    planned: Callable[..., TrialSpec], added_metric: str
) -> None:
    trial = planned(protocol={"rounds": [0, 3], "metrics": [added_metric, "token_match"]})
    assert trial.protocol.metrics == ("token_match", added_metric)  # in the table's order
    assert {n for n in trial.versions if n.startswith("metric/")} == {"metric/token_match", f"metric/{added_metric}"}
    assert trial.key != planned().key
    probe = Probe(kind=ProbeKind.EFFICACY, prompt="p", target="t")
    record = EditRecord(id="r", prompt="p", subject="p", target="t", probes=(probe,))
    question = Question(0, record, 0, probe)
    score = Scores(labels=(1, 2), answers=(1, 3), logprob=-1.0, text="")
    rows = probe_rows(trial.key, 1, [question], [score], {}, {}, trial.protocol.metrics)
    assert [(row.metric, row.value) for row in rows] == [("token_match", 0.5), (added_metric, 2.0)]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(["token_mtch"], "did you mean: token_match"), (["ppl", "ppl"], "twice"), ([], "at least 1")],
)
def test_metrics_that_cannot_be_computed_are_refused(metrics: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolSpec(metrics=tuple(metrics))


def test_the_default_metrics_are_those_that_past_keys_hold() -> None:
    assert DEFAULT_METRICS == ("token_match", "exact_match", "target_logprob", "ppl", "agreement")
    everything = ProtocolSpec(metrics=tuple(reversed(DEFAULT_METRICS)))
    assert everything == ProtocolSpec()
    assert "metrics" not in everything.model_dump()


def test_a_further_protocol_is_in_the_key_with_its_version_and_once_however_it_is_spelled(
    planned: Callable[..., TrialSpec],
) -> None:
    plain = planned()
    assert "also" not in plain.identity()["protocol"]
    assert not any(name.startswith("protocol/") for name in plain.versions)

    def asked(*also: object) -> TrialSpec:
        return planned(protocol={"rounds": [0, 3], "also": list(also)})

    one = asked("wild-mirage", "localft")
    assert {n: v for n, v in one.versions.items() if n.startswith("protocol/")} == {
        "protocol/localft": 1,
        "protocol/wild-mirage": 1,
    }
    assert one.key == asked("localft", {"id": "wild-mirage", "prompt": "question-only"}).key
    assert len({plain.key, one.key, asked("localft").key, asked({"id": "wild-mirage", "prompt": "qa_inst"}).key}) == 4
    assert TrialSpec.model_validate_json(one.model_dump_json()) == one
    stored = one.model_dump(mode="json")
    stored["protocol"]["also"] = [{"id": "of-another-time", "prompt": "x"}]
    assert TrialSpec.read_back(stored).protocol.also[0].label == "of-another-time:x", (
        "stored results are read all the same"
    )


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["wild-mirag"], "did you mean: wild-mirage"),
        (["teacher_forced"], "that is protocol.asking"),
        ([{"id": "localft", "prompt": "chat"}], "protocol localft has no prompt 'chat'"),
        (["localft", {"id": "localft", "prompt": "question-only"}], "twice: localft/1"),
        (["memit_compat"], "which dataset 'zsre' does not give"),
    ],
)
def test_further_protocols_that_cannot_be_asked_are_refused_while_planning(
    planned: Callable[..., TrialSpec], also: list[object], message: str
) -> None:
    with pytest.raises(ProblemsError) as caught:
        planned(protocol={"rounds": [0, 3], "also": also})
    text = "\n".join(map(str, caught.value.problems))
    assert message in text
    assert "also" in text


def test_what_is_a_turn_of_a_chat_already_is_not_wrapped_again(planned: Callable[..., TrialSpec]) -> None:
    data = {"name": "zsre", "path": "zsre-edit.json", "size": 3, "prompt": "chat"}
    with pytest.raises(ProblemsError) as caught:
        planned(data=data, protocol={"rounds": [0, 3], "also": ["localft", {"id": "wild-mirage", "prompt": "qa_inst"}]})
    (text,) = (str(p) for p in caught.value.problems if "protocol.also" in str(p))
    assert "wild-mirage:qa_inst/1 puts a text around questions" in text


def test_drift_is_in_the_key_where_it_is_measured(planned: Callable[..., TrialSpec]) -> None:
    plain, measured = planned(), planned(protocol={"rounds": [0, 3], "drift": 500})
    assert "drift" not in plain.identity()["protocol"]
    assert "drift" not in plain.versions
    assert measured.versions["drift"] == 1
    assert len({plain.key, measured.key, planned(protocol={"rounds": [0, 3], "drift": 501}).key}) == 3


def test_a_study_that_starts_from_the_pristine_model_refuses_what_it_would_ignore(tmp_path: Path) -> None:
    text = (package_share() / "search_spaces" / "belief_demo.yaml").read_text(encoding="utf-8")
    tree = YAML(typ="safe").load(text)
    tree["base"].setdefault("protocol", {}).update(drift=100, also=["localft"])
    with pytest.raises(ProblemsError) as caught:
        plan(parse_search_space(json.loads(json.dumps(tree)), file="flags"), Workspace(tmp_path))
    found = "\n".join(map(str, caught.value.problems))
    assert "measures no drift (protocol.drift)" in found
    assert "asks no further protocols (protocol.also)" in found
