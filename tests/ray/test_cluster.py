"""A sweep on a cluster of two nodes: joined by environment, a node killed, a node drained, a job, and results on S3."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import LocalCluster
from ray_helpers import finish, start, table_bytes

from raysweep.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CONFIGS: dict[str, dict[str, Any]] = {
    "x1": {"sleep": 0.3, "scale": 1.0},
    "x2": {"sleep": 0.3, "scale": 2.0},
    "calm": {"sleep": 0.3},
}
WHOLE = (0, {"done": 6, "failed": [], "unfinished": 0})
PATHS = """
sweep: paths
study: lifelong
base:
  model: embedded
  data: {name: world, size: 24}
  protocol: {batch_size: 1, rounds: [0, 6, 12, 18, 24]}
arms:
  rome: {editor: rome, wrap: {name: simie, mode: init, backend: closed64}}
  memit: {editor: memit, wrap: {name: simie, mode: init, backend: closed64}}
space:
  wrap.simie.lam: {grid: [0.1, 1.0, 10.0]}
resources: {cpu: 1, gpu: 0}
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> dict[str, bytes]:
    """The bytes of a run on this machine alone."""
    root = tmp_path_factory.mktemp("undisturbed")
    code, outcome, lines = finish(start(root, "s", CONFIGS, plugins=plugins))
    assert (code, outcome) == WHOLE, lines
    return table_bytes(root, "s")


@pytest.fixture
def cluster(start_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """A head without processors and two nodes with one each, so that trials run on the nodes alone."""
    return start_cluster(0, 1, 1)


def await_line(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the lines of *process* up to the first that holds *text*."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if text in line:
            return lines
    raise AssertionError(f"no line with {text!r}: {lines}")


@pytest.mark.parametrize("fault", ["killed", "drained", "raylet killed"])
def test_a_node_that_goes_in_the_middle_changes_no_byte(
    fault: str, cluster: LocalCluster, tmp_path: Path, plugins: Path, undisturbed: dict[str, bytes]
) -> None:
    process = start(tmp_path, "s", CONFIGS, plugins=plugins, options={"address": cluster.address})
    before = await_line(process, "2/6 edits")
    assert sum("0.1.0" in line for line in before) == 2, "both nodes are examined, the head without processors is not"
    lose = {"killed": cluster.kill, "drained": cluster.drain, "raylet killed": cluster.kill_raylet}
    lose[fault](2)
    out, err = process.communicate(timeout=150)
    *lines, ends = out.splitlines()
    assert (process.returncode, json.loads(ends)) == WHOLE, out + err
    assert table_bytes(tmp_path, "s") == undisturbed
    # Ray would tell of the dead node in dozens of lines of its own.
    assert not err
    ours = re.compile(r"\[\d/6\] (x1|x2|calm)/\d: |(x1|x2|calm)/\d: its process died; (going on|given up)|trials \d/6 ")
    assert [line for line in lines if not ours.match(line)] == []


def test_shards_on_several_nodes_go_on_without_one_of_them(
    cluster: LocalCluster, tmp_path: Path, plugins: Path, undisturbed: dict[str, bytes]
) -> None:
    """A trial's edits are computed on two nodes; a third takes the place of the one that is lost."""
    cluster.add(1)
    process = start(tmp_path, "s", CONFIGS, plugins=plugins, options={"address": cluster.address}, shards=2)
    await_line(process, "2/6 edits")
    cluster.kill(2)
    code, outcome, lines = finish(process, timeout=240)
    assert (code, outcome) == WHOLE, lines
    assert table_bytes(tmp_path, "s") == undisturbed


def test_paths_of_lambda_by_real_editors_go_on_without_a_node(cluster: LocalCluster, tmp_path: Path) -> None:
    """Two passes, three values of lambda each, on two nodes; one of these is lost, and its pass goes on on the other."""
    (tmp_path / "paths.yaml").write_text(PATHS)

    def command(storage: str, *options: str) -> list[str]:
        where = ["--root", str(tmp_path), "run", str(tmp_path / "paths.yaml"), "--storage", str(tmp_path / storage)]
        return [sys.executable, "-m", "raysweep", *where, *options]

    def tables(storage: str) -> dict[str, bytes]:
        files = (tmp_path / storage / "paths").glob("*/*.parquet")
        return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in files if not p.name.startswith("timing")}

    alone = subprocess.run(command("alone", "--address", "local"), capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    sweep = subprocess.Popen(
        command("cluster", "--address", cluster.address), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=cluster.environment,
    )  # fmt: skip
    snapshots = (tmp_path / "cluster/paths").glob
    while len(list(snapshots("*/snapshot.json"))) < 2 and sweep.poll() is None:
        time.sleep(0.05)
    cluster.kill(2)
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, out
    assert "its process died; going on" in out
    assert tables("cluster") == tables("alone")
    assert len({name.partition("/")[0] for name in tables("cluster")}) == 6


def test_ray_address_is_joined_and_said_first(cluster: LocalCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raysweep", "--root", str(tmp_path), "run", "smoke"]
    few = ["--set", "data.size=2", "--set", "protocol.rounds=[0, 2]"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([*command, *few], capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first == f"cluster: joining Ray at {cluster.address}, as RAY_ADDRESS says; `--address local` starts its own"
    assert "raysweep  torch" in done.stdout
    other = subprocess.run(
        [*command, *few, "--address", "local", "--set", "seed=1"],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert "joining" not in other.stdout


def test_results_on_s3_are_the_same_bytes(
    cluster: LocalCluster, tmp_path: Path, plugins: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server", reason="moto (extra [dev]) is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    query = f"?endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
    try:
        from pyarrow import fs

        bucket, _ = fs.FileSystem.from_uri(f"s3://results{query}&allow_bucket_creation=true")
        bucket.create_dir("results")
        # No credentials stand in a node's environment: the URI's query names the server, these name the user.
        storage = f"s3://test:test@results/tables{query}"
        process = start(tmp_path, "s", CONFIGS, plugins=plugins, options={"address": cluster.address}, storage=storage)
        await_line(process, "2/6 edits")
        cluster.kill(2)
        code, outcome, lines = finish(process)
        assert (code, outcome) == WHOLE, lines
        assert Workspace(root=tmp_path, storage=storage).results("s") == f"s3://test:test@results/tables/s{query}"
        copied = tmp_path / "results" / "s"
        for info in bucket.get_file_info(fs.FileSelector("results/tables/s", recursive=True)):
            if info.type == fs.FileType.File and "/_ray/" not in info.path:
                target = copied / info.path.removeprefix("results/tables/s/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bucket.open_input_stream(info.path).read())
        assert table_bytes(tmp_path, "s") == undisturbed
    finally:
        server.stop()


@pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed: no jobs")
def test_a_job_runs_the_sweep_and_ends_with_its_exit_code(short: Path, tmp_path: Path) -> None:
    cluster = LocalCluster(short, cpus=(2,), dashboard=True)
    root = tmp_path / "shared"
    command = [
        sys.executable, "-m", "raysweep", "submit", "smoke", "--address", cluster.dashboard, "--there", str(root),
        "--set", "data.size=2", "--set", "protocol.rounds=[0, 2]",
    ]  # fmt: skip
    environment = cluster.environment
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "cluster: joining Ray at " in done.stdout
        assert "4 of 4 trials done" in done.stdout
        bad = subprocess.run(
            [*command, "--set", "model.path=/nowhere"], capture_output=True, text=True, env=environment,
            timeout=240, check=False,
        )  # fmt: skip
        assert bad.returncode == 2, bad.stdout + bad.stderr
        assert "/nowhere' does not exist" in bad.stdout
    finally:
        cluster.stop()


def test_the_control_service_that_dies_is_told_within_seconds(
    cluster: LocalCluster, tmp_path: Path, plugins: Path, undisturbed: dict[str, bytes]
) -> None:
    process = start(tmp_path, "s", CONFIGS, plugins=plugins, options={"address": cluster.address})
    await_line(process, "2/6 edits")
    cluster.kill(0)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 25
    assert process.returncode == 3, out + err
    assert "the cluster is gone" in out + err
    assert "run the same command again" in out + err
    code, outcome, lines = finish(start(tmp_path, "s", CONFIGS, plugins=plugins, options={"address": "local"}))
    assert (code, outcome) == WHOLE, lines
    assert table_bytes(tmp_path, "s") == undisturbed
