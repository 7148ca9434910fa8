"""`validate` and `run` ask this machine for what a sweep will take, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.cli import preflight
from raysweep.cli.preflight import Machine, check, this_machine
from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.errors import ProblemsError
from raysweep.workspace import Workspace


def planned(root: Path, **resources: Any) -> Plan:
    tree = {
        "sweep": "s",
        "base": {"model": "embedded", "data": {"name": "world", "size": 4}},
        "arms": {"rome": {"editor": "rome"}, "init": {"editor": "rome", "wrap": {"name": "simie", "mode": "init"}}},
        "resources": resources,
    }
    tree["arms"]["init"]["wrap"]["backend"] = "closed64"
    return plan(parse_search_space(tree, file="s.yaml"), Workspace(root))


def refused(found: Plan, root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(preflight, "this_machine", lambda results: machine)
    try:
        check(found, Workspace(root), Components.installed())
    except ProblemsError as error:
        return [p.message for p in error.problems]
    return []


ROOMY = Machine(cpus=8, memory=64 << 30, gpus=0, free=1 << 40)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({}, []),
        ({"cpu": 8, "memory": 1 << 30}, []),
        ({"cpu": 9}, ["resources.cpu = 9, but this machine has 8"]),
        ({"gpu": 0.5}, ["resources.gpu = 0.5, but this machine has 0"]),
        ({"memory": 1 << 40}, ["resources.memory = 1.09951e+12, but this machine has 6.87195e+10"]),
        ({"cpu": 3, "shards": 3}, ["resources.cpu = 3 for each of 3 shards, but this machine has 8"]),
    ],
)
def test_resources(resources: dict[str, Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(planned(tmp_path, **resources), tmp_path, ROOMY, monkeypatch) == said


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (Machine(8, 1 << 20, 0, 1 << 40), "of memory, this machine has 1.05 MB"),
        (Machine(8, 64 << 30, 0, 1 << 20), "of disk below"),
        (Machine(8, 1 << 20, 1, 1 << 40), ""),
        (Machine(None, None, None, None), ""),
    ],
    ids=["memory", "disk", "an accelerator holds it", "nothing is known"],
)
def test_memory_and_disk(machine: Machine, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(planned(tmp_path), tmp_path, machine, monkeypatch)
    assert (len(found), all(said in one for one in found)) == (2 if said else 0, True), found


def test_a_driver_without_memory_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the trials run, the process that runs them is here."""
    monkeypatch.setattr(preflight, "this_machine", lambda results: Machine(8, 256 << 20, 0, 1 << 40))
    found = planned(tmp_path)
    check(found, Workspace(tmp_path), Components.installed(), address="head:6379")
    assert "runs 2 trials takes about 527 MB of memory itself, this machine has 268 MB" in caplog.text
    caplog.clear()
    monkeypatch.setattr(preflight, "this_machine", lambda results: ROOMY)
    check(found, Workspace(tmp_path), Components.installed(), address="head:6379")
    assert not caplog.text


def test_a_cluster_is_not_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "this_machine", lambda results: Machine(1, 1, 0, 1))
    found = planned(tmp_path, cpu=64)
    check(found, Workspace(tmp_path), Components.installed(), address="head:6379")
    with pytest.raises(ProblemsError):
        check(found, Workspace(tmp_path), Components.installed(), address=None)


def test_storage_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(tmp_path)
    (tmp_path / "results").write_text("no folder")
    assert any("is no folder" in one for one in refused(found, tmp_path, ROOMY, monkeypatch))
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)
    (tmp_path / "results").unlink()
    assert any("cannot be written" in one for one in refused(found, tmp_path, ROOMY, monkeypatch))


def test_a_machine_knows_itself(tmp_path: Path) -> None:
    here = this_machine(str(tmp_path / "not" / "yet"))
    assert here.cpus
    assert here.free
    assert here.memory
    assert this_machine("s3://bucket/x").free is None


@pytest.mark.parametrize("command", ["validate", "run"])
def test_both_commands_ask(command: str, run, fakes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "sweep: x\nbase: {model: tiny, data: hundred}\narms: {a: {editor: plain}}\nresources: {cpu: 99999}\n"
    )
    code, _, err = run(command, "x.yaml")
    assert code == 2
    assert "x.yaml:4:18  resources.cpu = 99999, but this machine has" in err
    assert not (tmp_path / "results").exists()


def test_validate_for_a_cluster(run, fakes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "sweep: x\nbase: {model: tiny, data: hundred}\narms: {a: {editor: plain}}\nresources: {cpu: 99999}\n"
    )
    assert run("validate", "x.yaml", "--address", "head:6379")[0] == 0


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_hung_trials_cannot_be_found_on_an_object_store(address: str | None, tmp_path: Path) -> None:
    found = planned(tmp_path, hung_after=30)
    check(found, Workspace(tmp_path), Components.installed(), address=address)
    with pytest.raises(
        ProblemsError, match=r"resources\.hung_after: s3://b/p is no folder, so trials give no sign of life"
    ):
        check(found, Workspace(tmp_path, storage="s3://b/p"), Components.installed(), address=address)


def test_labels_and_the_watch_for_hung_trials_are_read_as_written_and_are_in_no_key(tmp_path: Path) -> None:
    labels = {"ray.io/accelerator-type": "in(A100, H100)"}
    found, plain = planned(tmp_path, labels=labels, hung_after=12.5), planned(tmp_path)
    assert (found.sweep.resources.labels, found.sweep.resources.hung_after) == (labels, 12.5)
    assert [t.key for t in found.trials] == [t.key for t in plain.trials]
    with pytest.raises(ProblemsError, match="healthy trials are silent for minutes"):
        planned(tmp_path, hung_after=5)
    with pytest.raises(ProblemsError, match="labels"):
        planned(tmp_path, labels={"card": "H100 or A100"})
