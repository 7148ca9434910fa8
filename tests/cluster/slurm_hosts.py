"""Two hosts on one machine with a real SLURM over them: what the scripts of ``cluster/`` are submitted to.

A host is a network namespace with an address of its own, a process-id namespace (so that `ray stop`, or the loss of one host,
leaves the other alone) and a ``/tmp`` of its own. Both see everything else of this machine: a shared file system is given.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NEEDED = (
    "slurmctld",
    "slurmd",
    "sbatch",
    "scancel",
    "scontrol",
    "squeue",
    "srun",
    "munged",
    "ip",
    "nsenter",
    "unshare",
)
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge iproute2"
SUBNET = "10.213.7"  # in namespaces that nothing leads out of
CONTROLLER = "one"  # the host whose network slurmctld has; it outlives the loss of that host


def why_not() -> str:
    """Return why there can be no such hosts here; empty if there can."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed: {INSTALL}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    if any(Path(place).resolve().is_relative_to("/tmp") for place in (sys.executable, __file__)):
        return "this checkout is below /tmp, of which each host has its own"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else f"no namespaces here: {probe.stderr.decode().strip()}"


class Slurm:
    """A SLURM with two hosts, ``one`` and ``two``, of one processor each; everything it starts ends with :meth:`close`.

    Args:
        folder: an empty folder outside of ``/tmp``, which differs between the hosts.
        environment: what jobs are submitted with, beside this process's own environment.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        mark = secrets.token_hex(2)
        self.hosts = {name: f"rs{mark}{name[0]}{i}" for i, name in enumerate(("one", "two"), start=1)}
        self.config = folder / "slurm.conf"
        self.environment = {**os.environ, **environment, "SLURM_CONF": str(self.config)}
        self._started: list[subprocess.Popen[bytes]] = []
        self._slurmd: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._make_network()
            self._start_munge()
            self._start_slurm()
        except BaseException:
            self.close()
            raise

    def run(self, *argv: str) -> str:
        """Run one of SLURM's commands on host ``one`` and return what it printed."""
        done = subprocess.run(
            [*self._inside("one"), *argv], env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *argv: str, **environment: str) -> str:
        """Submit a job with ``sbatch`` and return its number."""
        before = self.environment
        self.environment = {**before, **environment}
        try:
            return self.run("sbatch", "--parsable", *argv)
        finally:
            self.environment = before

    def field(self, job: str, name: str) -> str:
        """Return a field of ``scontrol show job``."""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def wait(self, job: str, seconds: float = 240) -> tuple[str, int]:
        """Wait until *job* has ended for good; return its state and exit code."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
        until(lambda: self.field(job, "JobState") in ends, seconds, lambda: f"job {job}: {self.log(job)}")
        return self.field(job, "JobState"), int(self.field(job, "ExitCode").partition(":")[0])

    def log(self, job: str) -> str:
        """Return what *job* has printed so far."""
        path = Path(self.field(job, "StdOut"))
        return path.read_text(errors="replace") if path.is_file() else ""

    def lose(self, host: str) -> None:
        """Let *host* vanish with every process on it, as when its power fails."""
        slurmd = self._slurmd.pop(host)
        slurmd.kill()
        slurmd.wait(30)
        if host != CONTROLLER:  # whose daemon would be cut off from the other host
            self._set_link(host, "down")

    def bring_back(self, host: str) -> None:
        """Start *host* again after it was lost, and wait until both hosts are free for jobs."""
        self._set_link(host, "up")
        self._start_host(host)
        self._await_idle(180)

    def close(self) -> None:
        """End every process and remove the namespaces."""
        for process in (*self._slurmd.values(), *self._started):
            process.send_signal(signal.SIGKILL)
        for process in (*self._slurmd.values(), *self._started):
            process.wait(30)
        for name in self.hosts.values():
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _inside(self, host: str) -> list[str]:
        # Not `ip netns exec`: it hides the control groups, which slurmd looks at.
        return ["nsenter", f"--net=/run/netns/{self.hosts[host]}"]

    def _make_network(self) -> None:
        one, two = self.hosts.values()
        for name in (one, two):
            subprocess.run(["ip", "netns", "add", name], check=True)
        veth = ["ip", "link", "add", f"{one}v", "netns", one, "type", "veth", "peer", "name", f"{two}v", "netns", two]
        subprocess.run(veth, check=True)
        for number, name in enumerate((one, two), start=1):
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"{SUBNET}.{number}/24", "dev", f"{name}v"], check=True)
            for link in ("lo", f"{name}v"):
                subprocess.run([*inside, "link", "set", link, "up"], check=True)

    def _start(self, *argv: str, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _start_munge(self) -> None:
        # Not the machine's own: with a key, a socket and files here, nothing of it is touched.
        place = self.folder / "munge"
        place.mkdir(mode=0o755)
        (place / "key").write_bytes(secrets.token_bytes(128))
        (place / "key").chmod(0o400)
        files = [f"--{what}-file={place / what}" for what in ("key", "pid", "log", "seed")]
        self._started.append(
            self._start("munged", "--force", "--foreground", f"--socket={place / 'socket'}", *files, log="munged.log")
        )
        until((place / "socket").exists, 20, lambda: (self.folder / "munged.log").read_text())

    def _start_slurm(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        machine = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={machine} NodeAddr={SUBNET}.{number} Port={16818 + number} CPUs=1 RealMemory=2000"
            for number, name in enumerate(self.hosts, start=1)
        ]
        self.config.write_text("\n".join([*_settings(self.folder, machine), *nodes, ""]))
        self._started.append(
            self._start(*self._inside(CONTROLLER), "slurmctld", "-D", "-f", str(self.config), log="ctld.out")
        )
        for name in self.hosts:
            self._start_host(name)
        self._await_idle(60)

    def _start_host(self, name: str) -> None:
        # Bash is the first process of the host and reaps; it ends with `unshare`, and then the kernel ends all of the host's.
        host = 'mount -t tmpfs tmpfs /tmp; slurmd -D -f "$0" -N "$1" & wait'
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._slurmd[name] = self._start(
            *self._inside(name), *namespaces, "bash", "-c", host, str(self.config), name, log=f"slurmd-{name}.out"
        )

    def _set_link(self, host: str, state: str) -> None:
        subprocess.run(["ip", "-n", self.hosts[host], "link", "set", f"{self.hosts[host]}v", state], check=True)

    def _await_idle(self, seconds: float) -> None:
        # A node is idle once its slurmd has registered and no job is on it.
        until(lambda: self._idle() == {"one", "two"}, seconds, lambda: (self.folder / "ctld.log").read_text()[-3000:])

    def _idle(self) -> set[str]:
        asked = subprocess.run(
            [*self._inside("one"), "sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return set(asked.stdout.split())


def _settings(folder: Path, machine: str) -> Sequence[str]:
    """Return the lines of ``slurm.conf`` that are not about nodes."""
    return (
        "ClusterName=rs",
        f"SlurmctldHost={machine}({SUBNET}.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder / 'munge/socket'}",
        "CryptoType=crypto/munge",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder / 'spool'}/%n",
        "SlurmctldPort=16817",
        f"SlurmctldPidFile={folder / 'ctld.pid'}",
        f"SlurmdPidFile={folder}/d-%n.pid",
        f"SlurmctldLogFile={folder / 'ctld.log'}",
        f"SlurmdLogFile={folder}/d-%n.log",
        "ProctrackType=proctrack/pgid",
        "TaskPlugin=task/none",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=2,sched_interval=2",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "ReturnToService=2",
        "MpiDefault=none",
        "SlurmdTimeout=20",
        "PartitionName=p Nodes=one,two Default=YES MaxTime=INFINITE State=UP",
    )


def until(true: Callable[[], object], seconds: float, told: Callable[[], str]) -> None:
    """Wait until *true*, for at most *seconds*; then fail with what is *told*."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {told()}"
        time.sleep(0.3)
