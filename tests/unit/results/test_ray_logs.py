"""Ray's logs are read as JSON alone: a pickle that a stranger planted beside them is never opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from raysweep.errors import StoreError
from raysweep.results.ray_logs import logged_rounds, sessions
from raysweep.results.store import ResultStore


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def log(root: Path, session: str, key: str, rows: list[dict[str, object]], tail: str = "") -> Path:
    folder = root / "_ray" / session / key
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"trial": key}))
    (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def test_the_latest_session_counts_and_other_trials_are_left_out(tmp_path: Path) -> None:
    log(tmp_path, "20260101-000000-aaaa", "k1", [{"step": 0, "x": 1.0}, {"step": 1, "x": 2.0}])
    log(tmp_path, "20260102-000000-bbbb", "k1", [{"step": 1, "x": 3.0}])
    log(tmp_path, "20260102-000000-bbbb", "k2", [{"step": 1, "x": 4.0}])
    store = ResultStore(tmp_path)
    assert len(sessions(store)) == 2
    assert logged_rounds(store, {"k1"}) == {"k1": {0: {"step": 0, "x": 1.0}, 1: {"step": 1, "x": 3.0}}}


def test_a_planted_pickle_is_not_opened(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    folder = log(tmp_path, "s", "k1", [{"step": 0}])
    bomb = pickle.dumps(Bomb(mark))
    (folder / "params.pkl").write_bytes(bomb)
    (folder.parent / "tuner.pkl").write_bytes(bomb)
    state = {"trial_data": [[json.dumps({"_type": "CLOUDPICKLE_FALLBACK", "value": bomb.hex()}), "{}"]]}
    (folder.parent / "experiment_state-2026.json").write_text(json.dumps(state))
    assert logged_rounds(ResultStore(tmp_path), {"k1"}) == {"k1": {0: {"step": 0}}}
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb is none, so this test would see nothing"


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    log(tmp_path, "s", "torn", [{"step": 0}], tail='{"step": 1, "x"')
    assert logged_rounds(ResultStore(tmp_path), {"torn"}) == {"torn": {0: {"step": 0}}}
    log(tmp_path, "s", "bad", [{"step": 0}, {"no": "step"}, {"step": 2}])
    with pytest.raises(StoreError, match=r"result\.json:2 is no logged round"):
        logged_rounds(ResultStore(tmp_path), {"bad"})


def test_without_a_session_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no Ray session"):
        logged_rounds(ResultStore(tmp_path), {"k"})
