"""What tests of a cluster share: the fake study, a folder for Ray's sockets, and joining a cluster of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ray_cluster import LocalCluster
from ray_helpers import install_fakes


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake study, as an installed package."""
    folder = tmp_path_factory.mktemp("plugins")
    install_fakes(folder)
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rs-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of this process, which nodes and drivers inherit; the fake study is found with them."""
    monkeypatch.setenv("PYTHONPATH", str(plugins))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return monkeypatch


@pytest.fixture
def start_cluster(short: Path, environment: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalCluster]]:
    """Starts a cluster whose token this process and its drivers have; it ends with the test."""
    with ExitStack() as stack:

        def start(*cpus: int) -> LocalCluster:
            cluster = LocalCluster(short, cpus=cpus)
            stack.callback(cluster.stop)
            for name, value in cluster.environment.items():
                environment.setenv(name, value)
            # That the nodes may be many is the cluster's affair; a driver's own Ray stays on loopback.
            environment.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
            return cluster

        yield start
