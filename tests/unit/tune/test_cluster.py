"""A cluster that does not answer is told in seconds: Ray itself retries for minutes without a word (case 38)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raysweep.errors import RunFailedError, SpecError
from raysweep.tune import cluster


@pytest.fixture
def deaf() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        (" head:6379 ", "head:6379"),
        ("[::1]:6379", "[::1]:6379"),
    ],
)
def test_addresses_are_read_as_ray_does(address: str, place: str) -> None:
    assert str(cluster.parse(address)) == place


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("10.0.0.1", "has no host and port"),
        ("nonsense here", "has no host and port"),
        (":6379", "has no host and port"),
        ("head:x", "has no host and port"),
        ("head:99999", "there is no port 99999"),
        ("head:0", "there is no port 0"),
        ("http://head:8265", "is that of Ray's dashboard"),
        ("ray://head:10001", "is a Ray Client address"),
        ("ray://head", "is a Ray Client address"),
        ("redis://head:6379", "unknown scheme 'redis://'"),
    ],
)
def test_a_malformed_address_is_refused_with_the_right_forms(address: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        cluster.check(address)
    assert said in caught.value.message
    assert caught.value.hint


def test_nothing_listens(closed: str) -> None:
    with pytest.raises(
        RunFailedError, match=f"no Ray cluster can be reached at {closed}: Connection refused"
    ) as caught:
        cluster.check(closed)
    assert f"ray status --address {closed}" in caught.value.hint


def test_something_else_listens(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    with pytest.raises(RunFailedError, match="does not answer as a Ray cluster does"):
        cluster.check(deaf)


def test_what_answers_ray_s_own_health_check_is_a_cluster(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(cluster.subprocess, "run", run)
    cluster.check(deaf)
    assert asked == [[sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", deaf]]


def test_the_longest_wait_is_half_a_minute() -> None:
    assert cluster.CONNECT_SECONDS + cluster.ANSWER_SECONDS <= 30


def test_auto_is_looked_up_where_ray_does(closed: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(RunFailedError, match=closed):
        cluster.check("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(cluster, "CURRENT", tmp_path / "current")
    cluster.check("auto")
    (tmp_path / "current").write_text(f"{closed}\n")
    with pytest.raises(RunFailedError, match=closed):
        cluster.check("auto")


@pytest.mark.parametrize("address", [None, "", "local", " local "])
def test_a_ray_of_our_own_is_not_looked_for(address: str | None) -> None:
    choice = cluster.choose(address, {})
    assert choice == cluster.RayChoice(None)
    cluster.check(choice.address)


SAYS = "says; `--address local` starts its own"


@pytest.mark.parametrize(
    ("stated", "environ", "address", "reason"),
    [
        ("head:1", {}, "head:1", ""),
        ("auto", {}, "auto", ""),
        (None, {"RAY_ADDRESS": " head:6379 "}, "head:6379", f"as RAY_ADDRESS {SAYS}"),
        (None, {"RAY_ADDRESS": "auto"}, "auto", f"as RAY_ADDRESS {SAYS}"),
        (None, {"RAY_ADDRESS": "local"}, None, ""),
        (None, {"RAY_ADDRESS": ""}, None, ""),
        ("local", {"RAY_ADDRESS": "head:6379"}, None, ""),
        ("other:1", {"RAY_ADDRESS": "head:6379"}, "other:1", ""),
        (None, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "auto", f"as this Ray job {SAYS}"),
        (
            None,
            {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": "h:6379"},
            "h:6379",
            f"as RAY_ADDRESS {SAYS}",
        ),
        ("local", {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, None, ""),
    ],
)
def test_what_is_stated_counts_first_then_where_we_are(
    stated: str | None, environ: dict[str, str], address: str | None, reason: str
) -> None:
    assert cluster.choose(stated, environ) == cluster.RayChoice(address, reason)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head"])
def test_an_unusable_ray_address_is_named_as_such(address: str) -> None:
    with pytest.raises(SpecError, match="RAY_ADDRESS") as caught:
        cluster.choose(None, {"RAY_ADDRESS": address})
    assert caught.value.hint
