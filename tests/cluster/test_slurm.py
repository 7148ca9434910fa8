"""The scripts of ``cluster/`` under a real SLURM with two hosts: the sweep's exit code, and an undisturbed run's tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_hosts import SUBNET, Slurm, until, why_not

ROOT = Path(__file__).resolve().parents[2]
REASON = why_not()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]
SWEEP = """
sweep: s
study: lifelong
base:
  model: embedded
  data: {name: world, size: 12}
  protocol: {batch_size: 1, rounds: [0, 2, 4, 6, 8, 10, 12]}
arms:
  drift: {editor: {name: drift, seconds: SECONDS}}
space:
  seed: {grid: [0, 1, 2, 3]}
resources: {cpu: 1, gpu: 0}
"""
TRIALS, SECONDS = 4, 1.0


class Bench:
    """A sweep on a shared folder, run once undisturbed; its results by the name of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep = folder / "s.yaml"
        self.sweep.write_text(SWEEP.replace("SECONDS", str(SECONDS)))
        tools = _install(folder)
        environment = {"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": f"{folder / 'plugins'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.slurm = Slurm(folder / "slurm", environment)
        try:
            quick = ["raysweep", "run", str(self.sweep), "--storage", str(folder / "undisturbed")]
            subprocess.run(quick, env=self.slurm.environment, check=True, capture_output=True)
        except BaseException:
            self.slurm.close()
            raise

    def submit(self, script: str, name: str, *options: str, more: tuple[str, ...] = (), **environment: str) -> str:
        """Submit a script of ``cluster/`` for a sweep with results in *name*; return the job's number."""
        wanted = ["--cpus-per-task=1", "--time=20", *options]
        argv = [str(ROOT / "cluster" / script), str(self.sweep), "--storage", str(self.folder / name), *more]
        return self.slurm.submit(*wanted, *argv, **environment)

    def await_round(self, name: str, rounds: int = 1) -> None:
        """Wait until *rounds* rounds of edits of the run *name* are stored."""
        place = self.folder / name
        until(lambda: len(list(place.glob("s/*/snapshot.json"))) >= rounds, 200, lambda: f"no rounds in {place}")

    def await_requeue(self, job: str) -> None:
        """Wait until *job* is back in the queue, and let it begin soon instead of in two minutes."""
        back = ("1", "PENDING")
        until(
            lambda: (self.slurm.field(job, "Restarts"), self.slurm.field(job, "JobState")) == back,
            200, lambda: self.slurm.log(job),
        )  # fmt: skip
        # Not at once: a node takes a launch in the second of the requeue for that of the job it has just been told to end.
        self.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+20")

    def scratch_of(self, job: str) -> set[str]:
        """Return what is left on the nodes of the folder that *job* gave Ray there."""
        return {f"rs-{job}"} & set(self.slurm.run("srun", "--nodes=2", "--ntasks=2", "ls", "/tmp").split())

    def tables(self, name: str) -> dict[str, bytes]:
        """Return what must not depend on how a sweep went."""
        files = (self.folder / name / "s").glob("*/*.parquet")
        return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in files if not p.name.startswith("timing")}

    def hosts(self, name: str) -> set[str]:
        """Return the addresses of the hosts on which trials of the run *name* reported rounds to Ray."""
        logs = (self.folder / name / "s/_ray").rglob("result.json")
        return {json.loads(line)["node_ip"] for log in logs for line in log.read_text().splitlines()}


def _install(folder: Path) -> Path:
    """Install the slow editor as a package, and put the commands that a job needs into one folder; return that."""
    plugins, tools = folder / "plugins", folder / "bin"
    info = plugins / "drift-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: drift\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[raysweep.editors]\ndrift = drift_editor:Drift\n")
    shutil.copy(Path(__file__).with_name("drift_editor.py"), plugins)
    tools.mkdir()
    for name, module in (("python", ""), ("ray", "-m ray.scripts.scripts"), ("raysweep", "-m raysweep")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (tools / name).chmod(0o755)
    return tools


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="raysweep-slurm-", dir="/var/tmp"))
    (folder / "slurm").mkdir()
    try:
        made = Bench(folder)
        try:
            yield made
        finally:
            made.slurm.close()
    finally:
        shutil.rmtree(folder)


def test_one_ray_over_two_nodes(bench: Bench) -> None:
    job = bench.submit("slurm_ray.sbatch", "two")
    assert bench.slurm.wait(job) == ("COMPLETED", 0), bench.slurm.log(job)
    log = bench.slurm.log(job)
    assert "Ray runs on 2 of 2 nodes" in log
    assert "raysweep: exit code 0" in log
    assert bench.hosts("two") == {f"{SUBNET}.1", f"{SUBNET}.2"}
    assert bench.tables("two") == bench.tables("undisturbed")
    assert bench.scratch_of(job) == set()


def test_a_failing_trial_fails_the_job_with_the_sweep_s_code(bench: Bench) -> None:
    job = bench.submit("slurm_ray.sbatch", "failing", more=("--set", "arms.drift.editor.fails=true"))
    assert bench.slurm.wait(job) == ("FAILED", 3), bench.slurm.log(job)
    assert f"{TRIALS} trials failed" in bench.slurm.log(job)


def test_at_the_time_limit_a_job_stops_and_is_requeued_until_it_is_done(bench: Bench) -> None:
    slow = ("--set", f"arms.drift.editor.seconds={3 * SECONDS}")
    job = bench.submit("slurm_ray.sbatch", "limited", "--signal=B:USR1@120", more=slow)
    bench.await_round("limited")
    # The limit comes nearer than the two minutes of warning, wherever the job stands; SLURM looks every 30 s or so.
    minutes = int(bench.slurm.field(job, "RunTime").split(":")[-2])
    bench.slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
    bench.await_requeue(job)
    bench.slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert bench.slurm.wait(job) == ("COMPLETED", 0), bench.slurm.log(job)
    log = bench.slurm.log(job)
    assert bench.slurm.field(job, "Restarts") == "1"
    assert "stopped by SIGUSR1, for the time limit" in log
    assert "raysweep: exit code 3" in log
    assert log.rstrip().endswith("raysweep: exit code 0")
    _assert_values_equal(bench, "limited")


def test_an_array_without_a_cluster_stops_is_requeued_and_is_one_sweep(bench: Bench) -> None:
    array = bench.submit("slurm_array.sbatch", "array", "--array=1-3")
    bench.await_round("array", 2)
    first = f"{array}_1"
    bench.slurm.run("scancel", "--signal=USR1", "--batch", first)
    bench.await_requeue(first)
    for number in (1, 2, 3):
        task = f"{array}_{number}"
        assert bench.slurm.wait(task) == ("COMPLETED", 0), bench.slurm.log(task)
    assert bench.slurm.field(first, "Restarts") == "1"
    assert "stopped by SIGUSR1" in bench.slurm.log(first)
    assert bench.tables("array") == bench.tables("undisturbed")
    again = ["raysweep", "run", str(bench.sweep), "--storage", str(bench.folder / "array")]
    said = subprocess.run(again, env=bench.slurm.environment, check=True, capture_output=True, text=True).stdout
    assert f"{TRIALS} trials done" in said
    assert "starting Ray" not in said


def test_the_loss_of_a_step_is_not_that_of_the_job(bench: Bench) -> None:
    job = bench.submit("slurm_ray.sbatch", "step")
    until(lambda: len(bench.hosts("step")) == 2, 200, lambda: bench.slurm.log(job))
    steps = bench.slurm.run("squeue", "--steps", "--noheader", "--format=%i %N").splitlines()
    (step,) = (line.split()[0] for line in steps if line.split() == [line.split()[0], "two"])
    bench.slurm.run("scancel", step)
    assert bench.slurm.wait(job) == ("COMPLETED", 0), bench.slurm.log(job)
    assert bench.tables("step") == bench.tables("undisturbed")


def test_the_loss_of_a_host_is_not_that_of_the_job(bench: Bench) -> None:
    job = bench.submit("slurm_ray.sbatch", "host")
    until(lambda: len(bench.hosts("host")) == 2, 200, lambda: bench.slurm.log(job))
    bench.slurm.lose("two")
    try:
        assert bench.slurm.wait(job) == ("COMPLETED", 0), bench.slurm.log(job)
    finally:
        bench.slurm.bring_back("two")
    assert bench.tables("host") == bench.tables("undisturbed")


def test_a_job_whose_script_s_host_is_lost_is_requeued_and_goes_on(bench: Bench) -> None:
    job = bench.submit("slurm_ray.sbatch", "head")
    bench.await_round("head", 2)
    assert bench.slurm.field(job, "BatchHost") == "one"
    bench.slurm.lose("one")
    try:
        bench.await_requeue(job)
    finally:
        bench.slurm.bring_back("one")
    assert bench.slurm.wait(job) == ("COMPLETED", 0), bench.slurm.log(job)
    assert bench.slurm.field(job, "Restarts") == "1"
    assert bench.tables("head") == bench.tables("undisturbed")


def _assert_values_equal(bench: Bench, name: str) -> None:
    """Compare with the undisturbed run a run whose trials have other keys: file by file, trial by trial in order of the seeds."""
    import pyarrow.parquet as pq

    def values(run: str) -> list[object]:
        rows = pq.read_table(next((bench.folder / run / "s").glob("trials.parquet"))).to_pylist()
        keys = [row["trial_key"] for row in sorted(rows, key=lambda row: row["seed"])]
        return [
            (p.name, pq.read_table(p).drop_columns(["trial_key"]).to_pylist())
            for key in keys
            for p in sorted((bench.folder / run / "s" / key).glob("probes-*.parquet"))
        ]

    assert values(name) == values("undisturbed")
