"""A Ray cluster of several nodes on this machine, each of which can be killed as a machine would be."""

from __future__ import annotations

import contextlib
import json
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
        dashboard: whether the head has one, with a job server.
    """

    def __init__(self, folder: Path, cpus: tuple[int, ...] = (1, 1), *, dashboard: bool = False) -> None:
        self.folder, self.port = folder, _free_port()
        self.dashboard_port = _free_port() if dashboard else 0
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.address = f"127.0.0.1:{self.port}"
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # The `raysweep` of a job is the one beside this Python, as it would be in a node's image.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # Despite its name: nodes on Linux may join one another through loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.environment.pop("RAY_AUTH_TOKEN", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.node_ids: list[str] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            for number, count in enumerate(cpus):
                self.add(count, head=not number)
            stack.pop_all()

    def add(self, cpus: int, *, head: bool = False, resources: str = "{}", gpus: int = 0, labels: str = "") -> None:
        """Start a node and wait until the cluster counts it; it offers *gpus* whether they are there or not."""
        where = (
            ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"] if head else [f"--address={self.address}"]
        )
        where += [f"--num-gpus={gpus}"] if gpus else []
        where += [f"--labels={labels}"] if labels else []
        if head and self.dashboard_port:
            where += ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        elif head:
            where += ["--include-dashboard=false"]  # only a head may be told so
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block", f"--num-cpus={cpus}",
            "--node-ip-address=127.0.0.1", "--disable-usage-stats",
            # Its default is one port for the whole machine, and an agent that finds it taken runs no jobs.
            f"--dashboard-agent-listen-port={_free_port()}", f"--resources={resources}", "--object-store-memory=100000000",
        ]  # fmt: skip
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        self.nodes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        )
        self.wait_for(len(self.nodes))

    def wait_for(self, count: int) -> None:
        """Wait until *count* nodes are alive, and note the id of the new one."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            alive = self.alive()
            if len(alive) == count:
                self.node_ids += [node for node in alive if node not in self.node_ids]
                return
            time.sleep(0.5)
        log = (self.folder / f"node{count - 1}.log").read_text()[-2000:]
        raise AssertionError(f"{len(self.alive())} of {count} nodes: {log}")

    def alive(self) -> list[str]:
        """Return the ids of the nodes that the control service counts."""
        script = (
            "import sys\nfrom ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)\n"
            "print(*(key.hex() for key, node in nodes.items() if node.state == 0))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, self.address],
            capture_output=True, text=True, env=self.environment, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout.split()

    def tell_autoscaler(self, **resources: int) -> None:
        """Tell the control service, as an autoscaler may, that up to 100 nodes with *resources* can be brought."""
        script = (
            "import json, sys\nfrom ray._raylet import GcsClient\nfrom ray.core.generated import autoscaler_pb2\n"
            "told = autoscaler_pb2.ClusterConfig()\n"
            "group = told.node_group_configs.add(name='workers', max_count=100)\n"
            "group.resources.update(json.loads(sys.argv[2]))\n"
            "GcsClient(address=sys.argv[1]).report_cluster_config(told.SerializeToString())"
        )
        subprocess.run(
            [sys.executable, "-c", script, self.address, json.dumps(resources)],
            env=self.environment,
            timeout=60,
            check=True,
        )

    def kill(self, number: int) -> None:
        """End a node as a power cut would: every process of it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.nodes[number].pid, signal.SIGKILL)
        self.nodes[number].wait()

    def kill_raylet(self, number: int) -> None:
        """End the daemon of a node alone; its other processes live on and tell the cluster what it last logged."""
        group = str(self.nodes[number].pid)
        found = subprocess.run(["pgrep", "-s", group, "-x", "raylet"], capture_output=True, text=True, check=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)

    def drain(self, number: int) -> None:
        """Announce that a node is about to be taken away, as an autoscaler or a cloud's notice does, and take it away."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}",
            f"--node-id={self.node_ids[number]}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot", "--deadline-remaining-seconds=5",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        time.sleep(5)
        self.kill(number)

    def stop(self) -> None:
        """End every node."""
        for number in reversed(range(len(self.nodes))):
            self.kill(number)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
