"""``raysweep belief`` from a shell's point of view, the graph's artifact, and the committed sample."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from raysweep.belief.graph.artifact import belief_identity, graph_identity, graph_request, open_graph, resolve_graph
from raysweep.belief.graph.synthetic import SyntheticSpec, write_wikidata
from raysweep.belief.graph.wikidata_files import ENTITY, FILES
from raysweep.belief.points.jsonl import read_points
from raysweep.belief.spec import BeliefSpec, GraphSpec
from raysweep.belief.testbed import build_parts
from raysweep.cli.main import main
from raysweep.errors import ArtifactError, DataError
from raysweep.models.sources.catalogue import embedded_folder
from raysweep.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data/wikidata5m/sample"
SMALL = ["--set", "graph.relations=8", "--set", "graph.min_cooccurrences=5", "--set", "graph.max_object_tokens=2"]
WIKI = {"source": "wikidata5m", "relations": 8, "min_cooccurrences": 5, "max_object_tokens": 2}


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    return tmp_path


def test_the_sample_is_what_the_generator_makes(tmp_path: Path) -> None:
    write_wikidata(tmp_path, SyntheticSpec(subjects=60))
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes()


def test_graph_prints_statistics_and_writes_matrices(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["belief", "graph", "--wikidata", str(SAMPLE), *SMALL]
    assert main([*argv, "--csv", str(root / "m")]) == 0
    out = capsys.readouterr()
    assert "born in → citizen of, studied at → works as" in out.out
    assert "unknown entity                 1" in out.out
    assert "co-occurrence, percent" in out.out
    assert "reading names" in out.err
    with (root / "m/cooccurrence_counts.csv").open(encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    assert rows[0][1:3] == ["citizen of", "born in"]
    assert rows[1][:3] == ["citizen of", "28", "24"]
    assert (root / "m/cooccurrence_percent.csv").is_file()
    assert main([*argv, "--json"]) == 0
    again = capsys.readouterr()
    told = json.loads(again.out)
    assert (told["facts"], told["subjects"], told["cooccurrence"][0][1]) == (221, 55, 24)
    assert "reading" not in again.err  # the artifact is used
    assert "artifacts/graph" in again.err.replace("\n", "")


def test_the_embedded_world_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["belief", "graph", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["facts"] == 1310
    assert len(told["arrows"]) == 6
    assert len(told["single_relations"]) == 3


def test_corpus_and_points_from_a_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "study.yaml").write_text(
        "generative: {min_true_prob: 0.6, samples: 3}\ncorpus: {num_atomic_facts: 200, true_false: true}\n"
    )
    out = root / "made/corpus.jsonl"
    assert main(["belief", "corpus", "study.yaml", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == told["num_documents"] == told["num_total_sentences"]
    assert told["num_TF_atomic_sentences"] == 3 * told["num_true_atomic_facts"]
    assert set(rows[0]) == {"document", "num_sentences"}
    points = root / "points.jsonl"
    argv = ["belief", "points", "study.yaml", "--out", str(points), "--set", "points={size: 12, novel: 2}"]
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["points"], told["novel"]) == (14, 2)
    assert [p.id for p in read_points(points)] == list(range(14))


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (
            ["graph", "--set", "graph.relation=3"],
            ["unknown key 'relation' in belief, graph", "did you mean: relations"],
        ),
        (
            ["graph", "--set", "graph.relations=x"],
            ["--set graph.relations=x  belief: graph.relations: should be a valid"],
        ),
        (["graph", "--set", "grph.relations=3"], ["unknown key 'grph' in belief", "did you mean: graph"]),
        (["graph", "--set", "relations"], ["an override is written key=value"]),
        (
            ["graph", "--wikidata", "no"],
            ["no lacks wikidata5m_transductive_train.txt", "raysweep data fetch wikidata5m"],
        ),
        (["graph", "--set", "graph.source=wikidata5m"], ["data/wikidata5m lacks"]),
        (["graph", "--wikidata", str(SAMPLE), "--set", "graph.relations=7"], ["relations = 7 is odd"]),
        (["graph", "--wikidata", str(SAMPLE)], ["relations co-occur 1000 times or more; 10 are wanted", "E-GRAPH"]),
        (["graph", "--wikidata", str(SAMPLE), "--set", "graph.tokenizer=t.json"], ["t.json' does not exist"]),
        (["corpus", "--out", "x", "--set", "corpus.negations=true"], ["need true_false: true"]),
        (["corpus", "--out", "x", "--set", "corpus.num_atomic_facts=9999"], ["the graph has 1310 facts", "E-BELIEF"]),
        (["corpus", "--out", "x", "--set", "agent.prior=0"], ["agent.prior: should be greater than 0, got 0"]),
        (["graph", "no.yaml"], ["no.yaml  cannot be read", "E-YAML", "known: belief-100k"]),
        (["graph", "belief-smal"], ["there is no belief setting 'belief-smal'", "did you mean: belief-small"]),
        (["points", "belief-small", "--set", "points.sise=3"], ["--set points.sise=3", "did you mean: size"]),
        (["graph", "bad.yaml"], ["bad.yaml:3:", "graph.min_relations", "no effect on the embedded world"]),
        (["graph", "stated.yaml"], ["stated.yaml:1:9", "graph.digest is taken of the file that is there"]),
        (["graph", "--set", "graph.relations=8"], ["--set graph.relations=8", "no effect on the embedded world"]),
        (["graph", "list.yaml"], ["list.yaml holds no mapping"]),
    ],
)
def test_bad_input(argv: list[str], messages: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "list.yaml").write_text("- 1\n")
    (root / "bad.yaml").write_text("graph:\n  source: world\n  min_relations: 3\n")
    (root / "stated.yaml").write_text("graph: {digest: abc, source: wikidata5m}\n")
    assert main(["belief", *argv]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for message in messages:
        assert message in captured.err
    assert not (root / "x").exists()


SETTINGS = sorted((ROOT / "hparams/belief").glob("*.yaml"))
TINY = ["--set", "corpus.num_atomic_facts=60", "--set", "points.size=8"]


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "path"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("command", ["graph", "corpus", "points"])
def test_every_command_takes_every_shipped_setting(
    command: str,
    setting: Path,
    by_name: bool,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kind: what travels with the package is accepted by name and by path, or the error says what to fetch, and where for."""
    monkeypatch.chdir(root)
    argv = ["belief", command, setting.stem if by_name else f"hparams/belief/{setting.name}", *TINY]
    if "source: wikidata5m" in setting.read_text():
        assert main(argv) == 2
        said = capsys.readouterr().err.replace("\n", " ")
        at = next(i for i, line in enumerate(setting.read_text().splitlines(), 1) if "source: wikidata5m" in line)
        assert f"{setting.name}:{at}:" in said
        assert "raysweep data fetch wikidata5m" in said
        assert ("mistralai/Mistral-7B-v0.1's tokenizer.json" in said) == ("models/mistral-7b" in setting.read_text())
        assert "E-DATA" in said
        assert not list(root.glob("*.jsonl"))
        write_wikidata(root / "files", SyntheticSpec(subjects=120, arrows=5))
        argv += ["--wikidata", "files", "--set", "graph.min_cooccurrences=5", "--set", "graph.tokenizer=words"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    if command == "graph":
        assert "arrows" in out
        return
    told = json.loads(out)
    assert told["file"] == f"{setting.stem}-{command}.jsonl"
    lines = (root / told["file"]).read_text(encoding="utf-8").splitlines()
    assert len(lines) == told["num_documents" if command == "corpus" else "points"] > 0
    if command == "points":
        assert (told["asked"], told["points"], told["passed_over"]) == (8, 8, {})


def test_a_path_counts_from_the_current_folder_then_from_the_workspace(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    for folder, facts in ((root, 40), (elsewhere, 80)):
        (folder / "mine.yaml").write_text(f"source: me\nnotes: none\ncorpus: {{num_atomic_facts: {facts}}}\n")
    counts = []
    for _ in range(2):
        assert main(["belief", "corpus", "mine.yaml", "--out", str(root / "c.jsonl")]) == 0
        counts.append(json.loads(capsys.readouterr().out)["num_true_atomic_facts"])
        (elsewhere / "mine.yaml").unlink(missing_ok=True)
    assert counts[0] >= 80 > counts[1] >= 40
    write_wikidata(elsewhere / "files", SyntheticSpec(subjects=60))
    assert main(["belief", "graph", "--wikidata", "files", *SMALL]) == 0


# ------------------------------------------------------------------------------------------------- the artifact


def test_the_key_covers_every_input_but_no_path(root: Path) -> None:
    workspace = Workspace.here()
    for folder in ("one", "two"):
        write_wikidata(root / folder, SyntheticSpec(subjects=60))

    def key(folder: str = "one", **values: object) -> str:
        spec = GraphSpec.model_validate({**WIKI, "path": folder, **values})
        return str(sorted(graph_request(resolve_graph(spec, workspace)).inputs.items()))

    base = key()
    assert key("two") == base
    changes: list[dict[str, object]] = [
        {"read_n_facts": 200}, {"relations": 6}, {"min_relations": 3}, {"min_cooccurrences": 4}, {"max_object_tokens": 3},
        {"long_objects": "drop"}, {"equal_names": "append_id"}, {"excluded_relations": ()}, {"excluded_entities": ()},
        {"tokenizer": str(embedded_folder())},
    ]  # fmt: skip
    assert len({base, *(key(**change) for change in changes)}) == 1 + len(changes)
    with (root / "two" / ENTITY).open("a") as out:
        out.write("Q7\tnew\n")
    assert key("two") != base


def test_a_graph_is_read_once_and_a_damaged_artifact_is_refused(root: Path) -> None:
    workspace = Workspace.here()
    spec = GraphSpec.model_validate({**WIKI, "path": str(SAMPLE)})
    said: list[str] = []
    first = open_graph(spec, workspace, said.append)
    second = open_graph(spec, workspace, said.append)
    assert first.digest == second.digest
    assert second.filter_counts == first.filter_counts
    assert sum("reading names" in line for line in said) == 1
    (data,) = root.glob("artifacts/graph/*/data.safetensors")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="does not match its recorded hash"):
        open_graph(spec, workspace)


def test_a_tokenizer_file_may_measure_the_names(root: Path) -> None:
    workspace = Workspace.here()
    spec = GraphSpec.model_validate({**WIKI, "path": str(SAMPLE), "tokenizer": str(embedded_folder())})
    made = open_graph(spec, workspace)
    assert made.filter_counts["shortened_objects"] > 10  # invented words fall into many tokens
    with pytest.raises(DataError, match=r"tokenizer .* does not exist"):
        resolve_graph(spec.model_copy(update={"tokenizer": "nowhere"}), workspace)


def test_a_basis_is_a_function_of_its_spec(root: Path) -> None:
    spec = BeliefSpec.model_validate({"corpus": {"num_atomic_facts": 100}, "points": {"size": 3}})
    graph = open_graph(spec.graph, Workspace.here())
    one, two = build_parts(spec, graph), build_parts(spec, graph)
    assert list(one.points()) == list(two.points())
    assert [d.text for d in one.corpus.documents()] == [d.text for d in two.corpus.documents()]
    assert belief_identity(spec)["graph"] == graph_identity(spec.graph)
    assert set(graph_identity(spec.graph)) == {"source", "version", "world"}
    assert belief_identity(spec) != belief_identity(spec.model_copy(update={"seed": 1}))
