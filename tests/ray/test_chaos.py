"""A few rounds of `make chaos`, which plays twenty: the kinds that no other test plays."""

from __future__ import annotations

import pytest
from chaos import Chaos

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return Chaos(tmp_path_factory.mktemp("chaos"), sleep=0.05)


@pytest.mark.parametrize("kind", ["storage removed", "storage full", "two drivers"])
def test_a_hurt_sweep_ends_as_an_undisturbed_one(chaos: Chaos, kind: str) -> None:
    played = chaos.play(kind, seed=0)
    assert played.wrong == [], str(played)
    assert played.codes[-1] == 0
