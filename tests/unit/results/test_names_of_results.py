"""A number stands under the name that the latest plan gives its trial, whatever the trial was called when it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from results_helpers import begin, make_trial, write_trial

from raysweep.config.schema import TrialSpec
from raysweep.reports.compare import compared_rows
from raysweep.reports.notes import outdated
from raysweep.reports.render import Format, render
from raysweep.reports.sweep_table import text
from raysweep.reports.views import SummaryRow, groups, summary_rows, trial_views
from raysweep.results.store import TRIAL, ResultStore
from raysweep.results.tables import Sweep, open_results
from raysweep.workspace import Workspace

Place = tuple[str, TrialSpec] | tuple[str, TrialSpec, dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results" / "s")


def write_plan(store: ResultStore, *places: Place, **more: Any) -> None:
    listed = []
    for arm, trial, *rest in places:
        point = rest[0] if rest else {"seed": trial.seed}
        listed.append({"key": trial.key, "arm": arm, "point": point, "seed": trial.seed, "rounds": [0, 2, 4]})
    store.write_plan({"sweep": "s", "study": "lifelong", "trials": listed, **more}, more.get("text", ""))


def rel(store: ResultStore) -> dict[str, float]:
    found: list[SummaryRow] = summary_rows(trial_views(Sweep(store)), at=4)
    return {line.label: line.cells["rel"].mean for line in found}


def test_arms_that_swap_names_take_their_numbers_along(store: ResultStore) -> None:
    plain, wrapped = make_trial(0), make_trial(0, 1.0)
    write_trial(store, plain, "one")
    write_trial(store, wrapped, "two", shift=0.25)
    write_plan(store, ("one", plain), ("two", wrapped))
    before = rel(store)
    write_plan(store, ("one", wrapped), ("two", plain))
    assert rel(store) == {"one": before["two"], "two": before["one"]}
    assert list(rel(store)) == ["one", "two"]
    rows = Sweep(store).trials().to_pylist()
    assert {r["arm"]: r["trial_key"] for r in rows} == {"one": wrapped.key, "two": plain.key}
    assert store.about(plain.key).model_dump()["begun_as"]["arm"] == "one", "history"


def test_a_trial_stands_under_each_of_its_names(store: ResultStore) -> None:
    seeds = [make_trial(seed) for seed in (0, 1)]
    for trial in seeds:
        write_trial(store, trial, "a")
    write_plan(store, *[(arm, trial) for arm in ("b", "a") for trial in seeds])
    assert list(rel(store)) == ["b", "a"]
    assert rel(store)["a"] == rel(store)["b"]
    sweep = Sweep(store)
    assert (len(sweep.keys), sweep.trials().num_rows) == (2, 4)
    assert sweep.probes().num_rows == Sweep(store).probes().group_by(
        ["trial_key", "step", "record_id", "probe_index", "metric"]
    ).aggregate([]).num_rows, "each value once"  # fmt: skip
    assert "2 of 2 trials done" in text(sweep, how=Format.TABLE)
    assert [line.seeds for line in summary_rows(trial_views(sweep), at=4)] == [(0, 1)] * 2


def test_two_points_of_an_arm_that_come_to_one_trial_are_not_pooled(store: ResultStore) -> None:
    """Two paths with the same content, say: one trial, two lines, each with its seed once."""
    trial = make_trial()
    write_trial(store, trial)
    write_plan(store, ("a", trial, {"seed": 0, "data.path": "x"}), ("a", trial, {"seed": 0, "data.path": "y"}))
    found = summary_rows(trial_views(Sweep(store)), at=4)
    assert [(line.label, line.seeds, line.members) for line in found] == [("a path=x", (0,), 1), ("a path=y", (0,), 1)]


def test_a_swept_key_that_is_swept_no_more_is_gone_from_the_table(store: ResultStore) -> None:
    trial = make_trial(0, 1.0)
    write_trial(store, trial, "old")  # begun with the point {seed, wrap.simie.lam}
    write_plan(store, ("new", trial, {}))
    (row,) = Sweep(store).trials().to_pylist()
    assert (row["arm"], row["point"]) == ("new", "{}")
    assert "point.wrap.simie.lam" not in row


def test_trials_of_no_current_plan_are_marked_and_kept_apart(store: ResultStore) -> None:
    now, then, other = make_trial(0), make_trial(1), make_trial(0, 1.0)
    for trial, shift in ((now, 0.0), (then, 0.0), (other, 0.25)):
        write_trial(store, trial, "a", shift=shift)
    write_plan(store, ("a", now))
    assert list(rel(store)) == ["a"]
    everything = trial_views(Sweep(store, everything=True))
    labels = [label for label, _ in groups(everything)]
    assert labels[0] == "a"
    assert len(set(labels)) == 3
    assert all("(earlier plan)" in label for label in labels[1:])
    rows = Sweep(store, everything=True).trials().to_pylist()
    assert {r["trial_key"]: r["planned"] for r in rows} == {now.key: True, then.key: False, other.key: False}


def test_names_of_an_older_version_are_read(store: ResultStore) -> None:
    """Arm and point once stood at the top level of trial.json, and plan.json had neither seeds nor rounds."""
    trial = make_trial()
    write_trial(store, trial, "old")
    about = store.about(trial.key).model_dump()
    begun = about.pop("begun_as")
    store.folder.write_json(f"{trial.key}/{TRIAL}", {**about, **begun, "group": "0" * 16})
    assert list(rel(store)) == ["old"]
    store.write_plan({"sweep": "s", "trials": [{"key": trial.key, "arm": "new", "point": {"seed": 0}}]}, "")
    assert list(rel(store)) == ["new"]
    (row,) = Sweep(store).trials().to_pylist()
    assert row["group"] != "0" * 16, "taken from the trial's content"


def test_planned_trials_that_have_not_begun_are_listed(store: ResultStore) -> None:
    begun, waiting = make_trial(0), make_trial(0, 1.0)
    write_trial(store, begun, "a")
    write_plan(store, ("later", waiting), ("a", begun))
    shown = text(Sweep(store), how=Format.TABLE)
    assert "later" in shown
    assert "absent" in shown
    assert "1 of 2 trials done" in shown
    assert list(rel(store)) == ["a"]


def test_sweeps_of_one_name_in_two_places_keep_their_labels_apart(tmp_path: Path) -> None:
    for where, shift in (("x", 0.0), ("y", 0.25)):
        store = ResultStore(tmp_path / where / "s")
        write_trial(store, make_trial(), "a", shift=shift)
        write_plan(store, ("a", make_trial()))
    found = compared_rows(
        [str(tmp_path / w / "s") for w in "xy"], Workspace(root=tmp_path), by="arm", phase="retained", at=4
    )
    assert [line.label for line in found] == [f"{tmp_path / w / 's'}: a" for w in "xy"]
    assert found[0].cells["rel"].mean + 0.25 == pytest.approx(found[1].cells["rel"].mean)


def test_a_space_that_changed_after_its_run_is_said(tmp_path: Path, store: ResultStore) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("sweep: s\narms: {one: {editor: x}, two: {editor: y}}\n")
    begin(store, make_trial())
    write_plan(store, ("one", make_trial()), file=str(file), text=file.read_text())
    sweep = open_results("s", Workspace(root=tmp_path))
    assert outdated(sweep) == []
    file.write_text("# a remark\n" + file.read_text())
    assert outdated(sweep) == [], "it says the same"
    file.write_text("sweep: s\narms: {two: {editor: x}, one: {editor: y}}\n")
    (note,) = outdated(sweep)
    assert f"{file} has changed since it was run" in note
    file.write_text("arms: [")
    assert len(outdated(sweep)) == 1
    file.unlink()
    assert outdated(sweep) == []


@pytest.mark.parametrize("length", [5, 60, 200])
def test_a_table_cuts_no_label(length: int) -> None:
    rows = [{"arm": "x" * length + end, "Rel": 0.5} for end in "ab"]
    shown = render(rows, Format.TABLE)
    assert "…" not in shown
    assert all("x" * length + end in shown for end in "ab")
