"""A node that cannot run a sweep is named with what it lacks, before any trial."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from raysweep import runtime
from raysweep.config.schema import DataSpec, ModelSpec
from raysweep.tune import nodes
from raysweep.tune.nodes import Answer, Node, Requirements
from raysweep.workspace import Workspace

VERSIONS = dict.fromkeys(nodes.PACKAGES, "1.0")


def answer(**changes: object) -> Answer:
    """What a node answers that lacks nothing."""
    whole: Answer = {
        "python": "3.11.7", "packages": dict(VERSIONS), "free": 50 << 30, "gpus": [], "why_unseen": "", "problems": [],
    }  # fmt: skip
    return {**whole, **changes}  # type: ignore[typeddict-item]


@pytest.fixture
def needed(tmp_path: Path) -> Requirements:
    workspace = Workspace(root=tmp_path)
    return Requirements(
        workspace, workspace.results("s"), (ModelSpec(),), (DataSpec(),), ".probe-1", versions=VERSIONS, python="3.11"
    )


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (Node("n1", {"CPU": 2}, answer()), ""),
        (Node("n1", {"CPU": 2}, error="did not answer within 90 s"), "did not answer within 90 s"),
        (Node("n1", {"CPU": 2}, answer(python="3.12.1")), "python 3.12.1, here 3.11"),
        (
            Node("n1", {"CPU": 2}, answer(packages={**VERSIONS, "raysweep": None})),
            "raysweep is not installed: pip install raysweep==1.0",
        ),
        (
            Node("n1", {"CPU": 2}, answer(packages={**VERSIONS, "torch": "2.0"})),
            "torch 2.0, here 1.0: pip install torch==1.0",
        ),
        (Node("n1", {"CPU": 2}, answer(problems=["cannot write /r: read-only"])), "cannot write /r: read-only"),
        (
            Node("n1", {"CPU": 2, "GPU": 2}, answer(gpus=[("H100", 80 << 30)], why_unseen="torch 2.0 (CUDA 12.6)")),
            "offers 2 GPU to Ray, but torch sees 1: torch 2.0 (CUDA 12.6)",
        ),
        (Node("n1", {"CPU": 2, "GPU": 1}, answer(gpus=[("H100", 80 << 30)])), ""),
        (Node("n1", {"CPU": 2}, answer(free=1 << 29)), "0.5 GiB free below"),
    ],
)
def test_each_fault_is_one_sentence_that_names_the_node(node: Node, fault: str, needed: Requirements) -> None:
    lacking = nodes.faults(node, needed)
    assert len(lacking) == bool(fault)
    assert not fault or lacking[0].startswith(f"n1: {fault}")


def test_made_up_gpus_are_no_fault_where_the_cpu_is_meant(needed: Requirements) -> None:
    node = Node("n1", {"CPU": 2, "GPU": 2}, answer())
    assert len(nodes.faults(node, needed)) == 1
    assert nodes.faults(node, replace(needed, accelerated=False)) == []


def test_a_node_that_offers_gpus_says_what_torch_and_driver_it_has(
    needed: Requirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it does not see them can be told there only."""
    monkeypatch.setattr(runtime, "visible_gpus", lambda: 0)
    monkeypatch.setattr(runtime, "why_unseen", lambda: "torch 2.0 (the CPU only)")
    found = nodes.examine(needed, answer(), accelerated=True)
    (fault,) = (one for one in nodes.faults(Node("n1", {"CPU": 2, "GPU": 2}, found), needed) if "GPU" in one)
    assert fault == "n1: offers 2 GPU to Ray, but torch sees 0: torch 2.0 (the CPU only)"


def test_a_node_that_has_everything(needed: Requirements) -> None:
    results = Path(needed.results)
    results.mkdir(parents=True)
    (results / needed.token).touch()
    found = nodes.examine(needed, answer(free=None), accelerated=False)
    assert found["problems"] == []
    assert found["free"] is not None
    assert found["free"] > 0
    assert [path.name for path in results.iterdir()] == [needed.token], "the probe leaves nothing behind"


def test_what_a_node_lacks_is_noted(needed: Requirements, tmp_path: Path) -> None:
    other_file = tmp_path / "zsre.json"
    other_file.write_text("[]")
    broken = replace(
        needed,
        models=(ModelSpec(name="mine", path=str(tmp_path / "no-such-folder")),),
        data=(DataSpec(name="zsre", path=str(other_file), digest="of-the-plan"),),
    )
    problems = nodes.examine(broken, answer(), accelerated=False)["problems"]
    assert len(problems) == 3
    assert problems[0] == f"{needed.results} is another folder there than here; " + (
        "use --storage with a folder that all nodes share, or s3://…"
    )
    assert "no-such-folder' does not exist" in problems[1]
    assert "the plan saw of-the-plan" in problems[2]


def test_a_root_that_cannot_be_written_is_noted(needed: Requirements, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    problems = nodes.examine(replace(needed, workspace=Workspace(root=file)), answer(), accelerated=False)["problems"]
    assert problems[0].startswith(f"cannot write below {file}: ")


BARE_NODE = """
import importlib.metadata as metadata, pickle, sys
sys.modules["raysweep"] = None  # importing it fails, as where it is not installed
known = metadata.version
def version(name):
    if name == "raysweep":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
print(pickle.load(sys.stdin.buffer)(b"bytes that name our classes", False)["packages"]["raysweep"])
"""


def test_a_node_without_raysweep_can_say_so() -> None:
    sent = cloudpickle.dumps(nodes.probe_function())
    done = subprocess.run([sys.executable, "-c", BARE_NODE], input=sent, capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"None"), done.stderr.decode()


def test_the_table_has_a_line_for_every_node() -> None:
    rows = nodes.table([
        Node("10.0.0.1", {"CPU": 8, "GPU": 1}, answer(gpus=[("H100", 80 << 30)])),
        Node("10.0.0.2", {"CPU": 8}, error="did not answer within 90 s"),
    ])  # fmt: skip
    assert rows == [
        "node      cpu  gpu  GPU memory  free disk  python  raysweep  torch",
        "10.0.0.1  8    1    80 GiB      50 GiB     3.11.7  1.0       1.0",
        "10.0.0.2  8    0                                             did not answer within 90 s",
    ]


@pytest.mark.parametrize("alive_after", [False, True])
def test_a_node_that_is_taken_away_meanwhile_lacks_nothing(
    alive_after: bool, needed: Requirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep runs on those that are left; one that is there and cannot run a task is a fault."""
    import ray

    def node(name: str, alive: bool) -> dict[str, object]:
        return {
            "NodeID": name.encode().hex() * 28,
            "NodeManagerAddress": name,
            "Alive": alive,
            "Resources": {"CPU": 1.0},
        }

    looks = iter([[node("a", True), node("b", True)], [node("a", True), node("b", alive_after)]])
    asked: list[str] = []

    def submit(payload: bytes, accelerated: bool) -> str:
        asked.append(f"task-{len(asked)}")
        return asked[-1]

    def get(task: str) -> Answer:
        if task == "task-1":
            raise RuntimeError("The task is not schedulable: the node doesn't exist any more")
        return answer()

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=submit))
    monkeypatch.setattr(ray, "nodes", lambda: next(looks))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: task)
    monkeypatch.setattr(ray, "wait", lambda tasks, **_: (tasks, []))
    monkeypatch.setattr(ray, "get", get)
    found = nodes.ask(needed)
    assert [one.name for one in found] == (["a", "b"] if alive_after else ["a"])
    faults = [fault for one in found for fault in nodes.faults(one, needed)]
    said = "b: cannot run a task: The task is not schedulable: the node doesn't exist any more"
    assert faults == ([said] if alive_after else [])
