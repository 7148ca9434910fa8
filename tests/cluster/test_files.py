"""The files of ``cluster/``: they parse, hold what their programs know, and call raysweep and Ray with flags that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from raysweep.config.parts import Part
from tests.cluster.rayjob_schema import RAYJOB, Schema
from tests.cluster.skypilot_schema import TASK
from tests.docs.test_docs import parse

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "cluster"
SCRIPTS = ("slurm_ray.sbatch", "slurm_array.sbatch")
# What the shell would put in; the rest stands for itself.
VALUES = {
    '"$@"': "demo",
    '"$SWEEP"': "demo",
    '"$STORAGE"': "s3://bucket/sweeps",
    '"$address:$port"': "10.0.0.1:6379",
    '"$address"': "10.0.0.1:6379",
    '"$SLURM_ARRAY_TASK_ID/$shards"': "3/8",
}


def read(name: str) -> Any:
    return YAML(typ="safe").load((FILES / name).read_text(encoding="utf-8"))


def shell(name: str) -> str:
    """Return the shell that a file holds, with continued lines joined."""
    text = (FILES / name).read_text(encoding="utf-8")
    if name == "skypilot.yaml":
        text = read(name)["setup"] + read(name)["run"]
    elif name == "kuberay.yaml":
        text = read(name)["spec"]["entrypoint"] + "\n"
    return text.replace("\\\n", " ")


def commands(name: str) -> list[list[str]]:
    """Return the arguments of each call of raysweep in a file, with values in the place of variables."""
    lines = re.findall(r"^ *(raysweep .*)$", shell(name), re.MULTILINE)
    for variable, value in VALUES.items():
        lines = [line.replace(variable, value) for line in lines]
    return [shlex.split(line.rstrip(" &"))[1:] for line in lines]


@pytest.mark.parametrize("name", [*SCRIPTS, "skypilot.yaml", "kuberay.yaml"])
def test_the_command_is_one_that_raysweep_takes(name: str) -> None:
    (argv,) = commands(name)  # one command, whatever happened before
    label, values = parse(argv)[-1]
    assert label == "run"
    assert values["file"] == "demo"
    assert values["fresh"] is False, "a run that is begun again goes on"
    if name == "slurm_array.sbatch":
        assert Part.parse(values["shard"]) == Part(3, 8)
        assert values["address"] is None
    else:
        assert values["address"] in ("auto", "10.0.0.1:6379")
    if name in SCRIPTS:
        assert parse([*argv, "--anyway"])[-1][1]["anyway"] is True, "how a requeued job is run"


@pytest.mark.parametrize("name", ["slurm_ray.sbatch", "skypilot.yaml"])
def test_ray_is_started_with_flags_that_it_has(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = set(re.findall(r"(--[a-z-]+)", " ".join(line for line in shell(name).splitlines() if _starts_ray(line))))
    assert {"--head", "--block", "--address", "--num-gpus", "--temp-dir"} <= used
    assert used - {"--overlap", "--nodes", "--ntasks", "--cpus-per-task", "--nodelist", "--output"} <= known


def _starts_ray(line: str) -> bool:
    return not line.startswith("#") and any(word in line for word in ("ray start", "ray_on ", '"$node_script"'))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_slurm_script_is_well_formed_and_has_its_nets(name: str) -> None:
    subprocess.run(["bash", "-n", str(FILES / name)], check=True)
    text = (FILES / name).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert re.fullmatch(r"B:USR1@\d+", options["signal"]), "to the script alone, for Ray's processes die of it"
    assert {"requeue", "open-mode", "time", "output"} <= options.keys()
    assert options["open-mode"] == "append", "a requeued job would overwrite its log"
    assert text.rstrip().endswith('exit "$code"'), "the job's exit code is the sweep's"
    assert re.search(r"^#SBATCH.*\n(#.*\n|set -u)", text, re.MULTILINE)
    assert not re.search(r"^#SBATCH", text[text.index("set -u") :], re.MULTILINE), (
        "SLURM reads none after the first command"
    )
    if name == "slurm_ray.sbatch":
        assert "no-kill" in options
        assert "RAY_AUTH_MODE=token" in text
        assert "ray stop" not in text, "it ends other jobs' Ray"


@pytest.mark.parametrize("name", ["skypilot.yaml"])
def test_what_stands_in_a_yaml_file_is_a_shell_script(name: str) -> None:
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=read(name)[part], text=True, check=True)


def complaints(schema: Schema, value: object) -> list[str]:
    return [f"{list(e.path)}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def test_the_rayjob_is_what_its_crd_takes() -> None:
    job = read("kuberay.yaml")
    assert complaints(RAYJOB, job) == []
    for path, name in ((["spec"], "entryPoint"), (["spec", "rayClusterSpec", "autoscalerOptions"], "idleTimeout")):
        wrong: Any = read("kuberay.yaml")
        place = wrong
        for key in path:
            place = place[key]
        place[name] = "x"
        assert complaints(RAYJOB, wrong), "a slip of the pen would be noticed"


def test_the_rayjob_keeps_to_what_the_operator_demands() -> None:
    """These rules are in no schema: the operator refuses a job, or Kueue does, or a sweep hangs."""
    job = read("kuberay.yaml")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert spec["submissionMode"] == "SidecarMode"
    assert all(pod["template"]["spec"]["restartPolicy"] == "Never" for pod in (head, *workers)), (
        "SidecarMode, autoscaler v2"
    )
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "older ones know no token"
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().split()
    assert (cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]["version"]) == (True, "v2")
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert spec["shutdownAfterJobFinishes"] is True, "Kueue demands it"
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert any(group["minReplicas"] for group in workers), "a sweep is refused where no node could hold a trial"
    (spot,) = (group for group in workers if group["groupName"] == "spot")
    assert (spot["minReplicas"], bool(spot["template"]["spec"]["tolerations"])) == (0, True)
    for pod in (head, *workers):
        inside = pod["template"]["spec"]
        assert inside["securityContext"]["runAsNonRoot"] is True
        (container,) = inside["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_the_skypilot_task_is_what_skypilot_takes() -> None:
    task = read("skypilot.yaml")
    assert complaints(TASK, task) == []
    assert complaints(TASK, {**task, "resource": {}}), "a slip of the pen would be noticed"
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}, "given at launch, never in the file"
    assert "RAY_AUTH_MODE=token" in task["run"]


class Dockerfile:
    """The instructions of ``cluster/Dockerfile``, stage by stage."""

    def __init__(self) -> None:
        joined = re.sub(r"\\\n\s*", " ", (FILES / "Dockerfile").read_text())
        lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
        self.instructions = [(line.split()[0], line.partition(" ")[2]) for line in lines]
        starts = [i for i, (word, _) in enumerate(self.instructions) if word == "FROM"]
        self.preamble = self.instructions[: starts[0]]
        self.stages = [
            self.instructions[a:b] for a, b in zip(starts, [*starts[1:], len(self.instructions)], strict=True)
        ]

    def all(self, word: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == word]


def test_the_image_is_made_in_two_stages_and_does_not_run_as_root() -> None:
    file = Dockerfile()
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert {word for word, _ in file.instructions} <= known, "ADD fetches, ENTRYPOINT would stand in KubeRay's way"
    assert len(file.stages) == 2
    assert all(re.search(r":\S", image) and ":latest" not in image for image in file.all("FROM"))
    last = [word for word, _ in file.stages[-1]]
    assert ("ARG", "DEVICE=cpu") in file.stages[0]
    assert max(i for i, word in enumerate(last) if word in ("RUN", "COPY")) < last.index("USER"), (
        "nothing runs after it"
    )
    (user,) = file.all("USER")
    assert user.split(":")[0] not in ("0", "root")
    assert f"useradd --uid {user.split(':')[0]} " in " ".join(file.all("RUN"))
    job = read("kuberay.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert str(job["securityContext"]["runAsUser"]) == user.split(":")[0]


def test_the_image_has_what_constraints_pin_and_what_kuberay_asks_for() -> None:
    file = Dockerfile()
    installs = [run for run in file.all("RUN") if "pip install" in run]
    assert len(installs) >= 3
    assert all("--constraint constraints.txt" in run for run in installs)
    assert any(run.endswith(" torch") and "${DEVICE}" in run for run in installs), "before it comes with the rest"
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    system = [run for run in file.all("RUN") if "apt-get install" in run]
    assert all("--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run for run in system)
    assert {"bash", "wget"} <= set(" ".join(system).split()), "KubeRay's probes"
    assert any("ray[default" in run for run in installs), "the job server"


def test_the_image_gets_all_that_the_package_is_built_from_and_nothing_else() -> None:
    copied = {rest.split()[0] for rest in Dockerfile().all("COPY") if "--from" not in rest}
    copied |= {name for rest in Dockerfile().all("COPY") if "--from" not in rest for name in rest.split()[:-1]}
    ignore = (FILES / "Dockerfile.dockerignore").read_text().split("\n")
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    build = (ROOT / "pyproject.toml").read_text()
    forced = re.findall(r'^"([^"]+)" = "raysweep/_share', build, re.MULTILINE)
    needed = [*forced, "raysweep", "README.md", "LICENSE", "pyproject.toml"]
    assert all(any(fnmatch(f"{name}/", f"{given}/*") or name == given for given in copied) for name in needed)
