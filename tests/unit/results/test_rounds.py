"""Two numbers stand side by side only if they are of the same round, and of records and seeds that are told."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_helpers import begin, make_round, make_trial, write_trial

from raysweep.cli.analyze import for_program, ranked, taken, unlogged, unranked
from raysweep.cli.main import main
from raysweep.config.schema import DataSpec, TrialSpec
from raysweep.errors import SpecError
from raysweep.reports.compare import compared_rows, reference, unpaired
from raysweep.reports.compare import rows as compare_rows
from raysweep.reports.notes import missing_rounds
from raysweep.reports.plot import draw
from raysweep.reports.rounds import last_common
from raysweep.reports.views import groups, shared_values, summary_rows, trial_views
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, trial_columns
from raysweep.summarize import summary
from raysweep.workspace import Workspace

ROUNDS = (0, 2, 4)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


def store_of(workspace: Workspace, name: str = "s") -> ResultStore:
    return ResultStore(workspace.results(name))


def write_until(store: ResultStore, trial: TrialSpec, arm: str, last: int, end: str = "") -> TrialSpec:
    """Write the rounds of *trial* up to *last*; *end* says how it ended, empty = it did not."""
    begin(store, trial, arm)
    for step in (r for r in trial.protocol.rounds if r <= last):
        store.write_round(trial.key, make_round(trial, step))
    if end == "failed":
        store.fail(trial.key, step=last, error="ValueError", message="boom")
    if end == "done":
        store.finish(trial.key, step=last)
    return trial


def arms(store: ResultStore, **states: str) -> dict[str, TrialSpec]:
    """Write an arm per name: ``done``, or ``failed 0``, ``interrupted 2`` (the last round measured), or ``absent``."""
    trials = {arm: make_trial(0, float(i + 1)) for i, arm in enumerate(states)}
    for arm, state in states.items():
        word, _, last = state.partition(" ")
        if word != "absent":
            write_until(store, trials[arm], arm, int(last or 4), word)
    listed = [{"key": t.key, "arm": a, "point": {}, "seed": 0, "rounds": ROUNDS} for a, t in trials.items()]
    store.write_plan({"sweep": "s", "study": "lifelong", "trials": listed}, "")
    return trials


@pytest.mark.parametrize(
    ("states", "common", "measured"),
    [
        ({"a": "done", "b": "done"}, 4, ["a", "b"]),
        ({"a": "done", "b": "failed 0", "c": "done"}, 4, ["a", "c"]),  # case 4
        ({"a": "failed 0", "b": "done"}, 4, ["b"]),
        ({"a": "done", "b": "interrupted 2"}, 4, ["a"]),
        ({"a": "interrupted 4", "b": "interrupted 2", "c": "absent"}, 2, ["a", "b"]),
        ({"a": "interrupted 2", "b": "failed 0"}, 2, ["a"]),
        ({"a": "interrupted 0", "b": "failed 0"}, 0, ["a", "b"]),
        ({"a": "failed 2", "b": "failed 2"}, 2, ["a", "b"]),
    ],
)
def test_the_last_round_is_one_for_all(
    workspace: Workspace, states: dict[str, str], common: int, measured: list[str]
) -> None:
    arms(store_of(workspace), **states)
    trials = trial_views(Sweep(store_of(workspace)))
    assert last_common(members for _, members in groups(trials)) == common
    assert {(line.label, line.step) for line in summary_rows(trials, at=-1)} == {(arm, common) for arm in measured}
    found = compared_rows(["s"], workspace, by="arm", phase=None, at=-1)
    assert [line.label for line in found] == list(states), "all are named"
    assert {line.step for line in found} == {common}
    for line, row in zip(found, compare_rows(found), strict=True):
        there = line.label in measured
        assert (row["Rel"] is not None) == there
        assert (row["ΔRel"] != "–") == (there and line is not reference(found))
        word, _, last = states[line.label].partition(" ")
        assert row["status"] == (word if word in ("done", "absent") else f"{word} at {last}")
    told = "\n".join(missing_rounds(found))
    assert all((f"left out: {arm} has no round {common}" in told) != (arm in measured) for arm in states)


def test_explicit_rounds_and_those_there_are_not(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    arms(store_of(workspace), a="done", b="failed 2", c="failed 0")
    found = compared_rows(["s"], workspace, by="arm", phase=None, at=2)
    assert [row["ΔRel"] != "–" for row in compare_rows(found)] == [False, True, False]
    for command in (["show", "s", "--at", "99"], ["compare", "s", "--at", "99"], ["show", "s", "--at", "-3"]):
        assert main(["--root", str(workspace.root), *command]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "rounds measured so far: 0, 2, 4 (a); 0, 2 (b); 0 (c)" in err


def test_show_names_the_rounds_and_states(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    arms(store_of(workspace), a="done", b="failed 0")
    assert main(["--root", str(workspace.root), "show", "s", "--at", "-1"]) == 0
    out, _ = capsys.readouterr()
    assert "note: left out: b has no round 4 (failed at 0)" in out
    assert main(["--root", str(workspace.root), "compare", "s", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert "left out: b has no round 4" in err, "a program's table has no notes in it"
    assert "note" not in out
    assert [row["status"] for row in csv.DictReader(io.StringIO(out))] == ["done", "failed at 0"]


def test_an_arm_with_some_of_its_seeds_says_so(workspace: Workspace) -> None:
    store = store_of(workspace)
    listed = []
    for seed in (0, 1, 2):
        write_trial(store, make_trial(seed), "a")
        write_until(store, make_trial(seed, 1.0), "b", *((4, "done") if seed < 2 else (2, "failed")))
        listed += [
            {"key": t.key, "arm": arm, "point": {"seed": seed}, "seed": seed, "rounds": ROUNDS}
            for arm, t in (("a", make_trial(seed)), ("b", make_trial(seed, 1.0)))
        ]
    store.write_plan({"sweep": "s", "study": "lifelong", "trials": listed}, "")
    first, other = compared_rows(["s"], workspace, by="arm", phase=None, at=-1)
    assert (first.seeds, other.seeds, other.members) == ((0, 1, 2), (0, 1), 3)
    row = compare_rows([first, other])[1]
    assert (row["seeds"], row["status"]) == ("2 of 3", "2 done, 1 failed at 2")
    assert missing_rounds([first, other]) == ["b has 2 of 3 seeds at round 4 (2 done, 1 failed at 2)"]
    assert unpaired([first, other]) == ["b and a have 3 records and 2 seeds in common; Δ is over those"]
    assert shared_values(first, other, "rel").shape == (3, 2)
    plain = compare_rows([first, other], plain=True)[1]
    assert (plain["seeds"], plain["seeds_planned"]) == (2, 3)


def test_rounds_without_one_in_common_are_refused_with_the_rounds_there_are(workspace: Workspace) -> None:
    store = store_of(workspace)
    listed: list[dict[str, Any]] = []
    for arm, rounds in (("a", (0, 2)), ("b", (0, 4))):
        trial = make_trial(0, rounds=rounds)
        write_trial(store, trial, arm)
        listed.append({"key": trial.key, "arm": arm, "point": {}, "seed": 0, "rounds": rounds})
    store.write_plan({"sweep": "s", "study": "lifelong", "trials": listed}, "")  # else the order is that of the keys
    with pytest.raises(SpecError, match="no round in common but 0") as caught:
        compared_rows(["s"], workspace, by="arm", phase=None, at=-1)
    assert "0, 2 (a); 0, 4 (b)" in caught.value.hint


def test_sweeps_of_other_lengths_are_compared_at_a_round_of_both(workspace: Workspace) -> None:
    write_trial(store_of(workspace, "short"), make_trial(0, rounds=(0, 2)), "a")
    write_trial(store_of(workspace, "long"), make_trial(0, 1.0), "b")
    found = compared_rows(["short", "long"], workspace, by="arm", phase=None, at=-1)
    assert [(line.label, line.step) for line in found] == [("short: a", 2), ("long: b", 2)]
    assert compare_rows(found)[1]["ΔRel"] != "–"


def test_records_of_other_data_are_not_paired(workspace: Workspace) -> None:
    """Two files may call different records by one id."""
    one = make_trial(0)
    two = one.model_copy(update={"data": DataSpec(digest="e")})
    for name, trial in (("x", one), ("y", TrialSpec.read_back(two.model_dump()))):
        write_trial(store_of(workspace, name), trial, "a")
    found = compared_rows(["x", "y"], workspace, by="arm", phase=None, at=4)
    assert compare_rows(found)[1]["ΔRel"] == "–"
    assert unpaired(found) == ["y: a and x: a have nothing in common"]


def test_ranks_are_of_one_round(workspace: Workspace) -> None:
    """``analyze``: a trial that failed after round 2 is not ranked beside the others' round 4."""
    trials = arms(store_of(workspace), a="done", b="failed 2", c="done", d="absent")
    logged = {t.key: {2: {"retained/avg": 0.9}, 4: {"retained/avg": 0.1 * i}} for i, t in enumerate(trials.values())}
    del logged[trials["b"].key][4]
    named = groups(trial_views(Sweep(store_of(workspace))), by="trial")
    rows, left = ranked(named, logged, metric="retained/avg", mode="max", step=4)
    assert [(r["arm"], r["edits"], r["status"]) for r in rows] == [("c", 4, "done"), ("a", 4, "done")]
    assert [(r["arm"], r["edits"], r["status"]) for r in left] == [("b", None, "failed at 2"), ("d", None, "absent")]
    assert unranked(left, "retained/avg", 4) == ["not ranked: 2 trials that have no round 4"]


def test_the_best_trial_is_the_best_though_ray_did_not_log_it(workspace: Workspace) -> None:
    """A killed driver's log ends before our tables do, and a failure is logged over the last round: both have a value there."""
    store = store_of(workspace)
    trials = arms(store, a="done", b="done", c="failed 4")
    named = groups(trial_views(Sweep(store)), by="trial")
    own = {arm: summary(trial_columns(store, t.key), 4, 1)["retained/avg"] for arm, t in trials.items()}
    logged = {trials["a"].key: {4: {"retained/avg": own["a"]}}, trials["c"].key: {4: {"failure": "OSError: full"}}}
    found = unlogged(store, named, logged, metric="retained/avg", step=4)
    assert found.keys() == {trials["b"].key, trials["c"].key}
    assert taken(found, 4) == ["ranked by our tables: 2 trials whose values at round 4 are not in Ray's log"]
    rounds = logged | {key: {4: values} for key, values in found.items()}
    rows, left = ranked(named, rounds, metric="retained/avg", mode="max", step=4)
    assert {r["arm"]: r["retained/avg"] for r in rows} == own
    assert not left
    assert unlogged(store, named, rounds, metric="retained/avg", step=4) == {}
    assert unlogged(store, named, logged, metric="retained/nothing", step=4) == {}


def test_a_program_is_given_null_for_what_is_undefined(workspace: Workspace) -> None:
    """A word in a column of numbers would be read as text, by whatever reads the file."""
    arms(store_of(workspace), a="done")
    trials = trial_views(Sweep(store_of(workspace)))
    row = {"trial": trials[0].row["trial_key"], "retained/avg": "undefined", "status": "done", "seconds": 1.0}
    assert for_program(row, trials) == {**row, "retained/avg": None, "non_finite_step": None}
    assert list(for_program(row, trials)) == ["trial", "retained/avg", "status", "non_finite_step", "seconds"]


def test_a_plot_s_legend_has_the_states(workspace: Workspace, tmp_path: Path) -> None:
    from raysweep.reports import plot

    arms(store_of(workspace), a="done", b="failed 2")
    sweep = Sweep(store_of(workspace))
    draw(sweep, tmp_path / "p.svg")
    picture = (tmp_path / "p.svg").read_text()
    assert [plot._legend(label, members) for label, members in groups(trial_views(sweep))] == ["a", "b [failed at 2]"]
    assert picture
