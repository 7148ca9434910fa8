"""Ray misses its start on a busy machine; that is no fault of raysweep, and not the end."""

import pytest

from raysweep import runtime
from raysweep.errors import RunFailedError
from raysweep.tune import local_ray
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


class Generous(Stubborn):
    """Offers as many GPUs as it is told to, or finds two."""

    def __init__(self) -> None:
        super().__init__(1)
        self.offers: list[object] = []

    def init(self, address: str, **options: object) -> None:
        self.offers.append(options.get("num_gpus", 2))

    def cluster_resources(self) -> dict[str, float]:
        offered = float(str(self.offers[-1]))
        return {"CPU": 2.0, **({"GPU": offered} if offered else {})}


@pytest.mark.parametrize(("seen", "offers"), [(0, [2, 0]), (1, [2, 1]), (2, [2])])
def test_our_own_ray_offers_no_gpu_that_torch_does_not_see(
    seen: int, offers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "visible_gpus", lambda: seen)
    ray = Generous()
    start(ray, "local", {})
    local_ray._withdraw_unseen_gpus(ray, {})
    assert ray.offers == offers
