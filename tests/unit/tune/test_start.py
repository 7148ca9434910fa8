"""Ray misses its start on a busy machine; that is no fault of raysweep, and not the end."""

import pytest

from raysweep.errors import RunFailedError
from raysweep.tune.local_ray import start


class Stubborn:
    """Starts at the *wanted*-th attempt."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.asked = wanted, 0

    def init(self, address: str, **options: object) -> None:
        self.asked += 1
        if self.asked < self.wanted:
            raise Exception("The current node timed out during startup.\nmore")

    def shutdown(self) -> None: ...


def test_a_local_start_is_tried_three_times() -> None:
    ray = Stubborn(3)
    start(ray, "local", {})
    assert ray.asked == 3


def test_then_the_error_says_what_to_do() -> None:
    with pytest.raises(RunFailedError, match="Ray did not start: The current node timed out") as caught:
        start(Stubborn(9), "local", {})
    assert "run the same command again" in str(caught.value.hint)


def test_a_cluster_is_asked_once() -> None:
    ray = Stubborn(9)
    with pytest.raises(RunFailedError) as caught:
        start(ray, "10.0.0.1:6379", {})
    assert ray.asked == 1
    assert "10.0.0.1:6379" in str(caught.value.hint)
