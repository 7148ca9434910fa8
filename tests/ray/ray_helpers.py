"""A plan of fake trials, and the means to run it in a process that can be killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.config.sweep_schema import ArmSpec, ResourceSpec, SweepSpec, WrittenEditor
from raysweep.results.tables import open_results
from raysweep.workspace import Workspace

HERE = Path(__file__).resolve().parent


def install_fakes(folder: Path) -> None:
    """Make the fake study an installed package in *folder*, to be put on PYTHONPATH."""
    (folder / "raysweep_fakes.py").write_text((HERE / "raysweep_fakes.py").read_text())
    info = folder / "raysweep_fakes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raysweep-fakes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[raysweep.studies]\nfake = raysweep_fakes:Fake\n")


def fake_plan(name: str, configs: dict[str, dict[str, Any]], seeds: tuple[int, ...] = (0, 1), **resources: Any) -> Plan:
    """Return a plan of the fake study: one arm per entry of *configs*, crossed with *seeds*.

    Arms whose configuration has a ``scale`` share their edits, if ``resources.share`` is on; the edits of all are apart.
    """
    arms = tuple(ArmSpec(name=arm, editor=WrittenEditor(name="fake")) for arm in configs)
    spec = SweepSpec(name=name, study="fake", arms=arms, resources=ResourceSpec(**{"cpu": 1, "gpu": 0, **resources}))
    trials = []
    for arm, config in configs.items():
        for seed in seeds:
            trial = TrialSpec(
                study="fake", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name="fake", config=UnreadConfig(**config)),
                protocol=ProtocolSpec(rounds=(0, 2, 4, 6)), seed=seed,
            )  # fmt: skip
            share = f"pass-{seed}" if "scale" in config and spec.resources.share else ""
            trials.append(PlannedTrial(arm=arm, point={"seed": seed}, trial=trial, edit_key=share, can_propose=True))
    return Plan(spec, tuple(trials))


DRIVER = """
import json, pathlib, sys
sys.path.insert(0, {here!r})
from ray_helpers import fake_plan
from raysweep.cli.errors import report
from raysweep.errors import RaysweepError
from raysweep.tune.launch import run_sweep
from raysweep.tune.sweep_run import RunOptions
from raysweep.cli.display import Display
from raysweep.workspace import Workspace
asked = json.loads(sys.argv[1])
if asked["session"]:
    from raysweep.tune import sessions
    sessions.SESSION, sessions.WAVES = asked["session"], 0
if asked["unexamined"]:
    from raysweep.tune import nodes
    nodes.check = lambda *_: None
if asked["minute"]:
    from raysweep.tune import hang_watch
    hang_watch.MINUTE = asked["minute"]
plan = fake_plan(asked["name"], asked["configs"], tuple(asked["seeds"]), **asked["resources"])
labels = {{t.key: f"{{t.arm}}/{{t.trial.seed}}" for t in plan.trials}}
display = Display(labels, {{k: 6 for k in labels}}, printer=lambda line: print(line, flush=True))
workspace = Workspace(root=pathlib.Path(asked["root"]), storage=asked["storage"])
try:
    found = run_sweep(plan, workspace, options=RunOptions(**asked["options"]), watcher=display)
except RaysweepError as error:
    print(json.dumps({{"error": str(error)}}))
    sys.exit(report(error, debug=False))
ends = {{"done": len(found.done), "failed": list(found.failed.values()), "unfinished": len(found.unfinished)}}
print(json.dumps(ends))
sys.exit(found.exit_code)
"""


def start(
    root: Path, name: str, configs: dict[str, dict[str, Any]], seeds: tuple[int, ...] = (0, 1), *,
    options: dict[str, Any] | None = None, plugins: Path, session: int = 0, storage: str = "", minute: float = 0,
    unexamined: bool = False, **resources: Any,
) -> subprocess.Popen[str]:  # fmt: skip
    """Start a driver process over a fake plan; 0 = as usual.

    *session* is how many trials one Ray session has, *minute* how many seconds a minute without a sign of life. Where the nodes of
    a cluster are *unexamined*, the GPUs that they made up are not noticed before a trial asks for one.
    """
    asked = {
        "root": str(root),
        "storage": storage,
        "name": name,
        "configs": configs,
        "seeds": seeds,
        "options": options or {},
        "session": session,
        "minute": minute,
        "unexamined": unexamined,
        "resources": resources,
    }
    environment = {**os.environ, "PYTHONPATH": str(plugins), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", DRIVER.format(here=str(HERE)), json.dumps(asked)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, dict[str, Any], list[str]]:
    """Wait for a driver; return its exit code, its last line as JSON, and the lines before."""
    out, err = process.communicate(timeout=timeout)
    lines = out.splitlines()
    try:
        return process.returncode, json.loads(lines[-1]), lines[:-1]
    except (IndexError, ValueError) as error:
        raise AssertionError(f"exit {process.returncode}\n{out}\n{err}") from error


def table_bytes(root: Path, name: str) -> dict[str, bytes]:
    """Return the bytes of every file that must not depend on how a sweep went.

    Somebody may commit while the tests run, so the trials table is compared without the state of the checkout.
    """
    folder = root / "results" / name
    keep = [p for p in folder.glob("*/*.parquet") if not p.name.startswith("timing")]
    left = [p for p in folder.glob("*/snapshot*") if not (p.parent / "FAILED.json").exists()]
    left += list(folder.glob("_passes/*"))
    assert not left, f"a trial that is done keeps no snapshot: {left}"
    assert open_results(name, Workspace(root=root)).probes().num_rows
    sink = io.BytesIO()
    pq.write_table(pq.read_table(folder / "trials.parquet").drop_columns(["git_sha", "git_dirty"]), sink)
    return {"trials.parquet": sink.getvalue(), **{str(p.relative_to(folder)): p.read_bytes() for p in sorted(keep)}}


def listening(pid: int) -> set[str]:
    """Return the local addresses, in hexadecimal, on which *pid* and its descendants listen for TCP."""
    inodes = set()
    for member in {pid, *descendants(pid)}:
        with contextlib.suppress(OSError):
            links = [os.readlink(p) for p in Path(f"/proc/{member}/fd").iterdir()]
            inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [r.split() for name in ("tcp", "tcp6") for r in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def descendants(pid: int) -> set[int]:
    """Return the processes that *pid* started, and those that they did."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    family, before = {pid}, 0
    while len(family) != before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return family - {pid}


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
