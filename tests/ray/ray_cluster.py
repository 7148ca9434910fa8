"""A Ray cluster of several nodes on this machine, each of which can be killed as a machine would be."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 90.0


class LocalCluster:
    """A head and workers, each a ``ray start --block`` in a process group of its own.

    Args:
        folder: short path for Ray's files (a socket's path may have 107 characters).
        cpus: processors of each node, the head first.
    """

    def __init__(self, folder: Path, cpus: tuple[int, ...] = (1, 1)) -> None:
        self.folder, self.port = folder, _free_port()
        self.address = f"127.0.0.1:{self.port}"
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Despite its name: nodes on Linux may join one another through loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.environment.pop("RAY_AUTH_TOKEN", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            for number, count in enumerate(cpus):
                self.add(count, head=not number)
            stack.pop_all()

    def add(self, cpus: int, *, head: bool = False, resources: str = "{}") -> None:
        """Start a node and wait until the cluster counts it."""
        where = (
            ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"] if head else [f"--address={self.address}"]
        )
        where += ["--include-dashboard=false"] if head else []  # only a head may be told so
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block", f"--num-cpus={cpus}",
            "--node-ip-address=127.0.0.1", "--disable-usage-stats",
            f"--resources={resources}", "--object-store-memory=100000000",
        ]  # fmt: skip
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        self.nodes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        )
        self.wait_for(len(self.nodes))

    def wait_for(self, count: int) -> None:
        """Wait until *count* nodes are alive."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.alive() == count:
                return
            time.sleep(0.5)
        raise AssertionError(f"{self.alive()} of {count} nodes: {(self.folder / 'node0.log').read_text()[-2000:]}")

    def alive(self) -> int:
        """Return how many nodes the control service counts."""
        script = (
            "import sys\nfrom ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)\n"
            "print(sum(n.state == 0 for n in nodes.values()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, self.address],
            capture_output=True, text=True, env=self.environment, timeout=60, check=False,
        )  # fmt: skip
        return int(done.stdout) if done.returncode == 0 else 0

    def kill(self, number: int) -> None:
        """End a node as a power cut would: every process of it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.nodes[number].pid, signal.SIGKILL)
        self.nodes[number].wait()

    def stop(self) -> None:
        """End every node."""
        for number in reversed(range(len(self.nodes))):
            self.kill(number)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
