"""The search spaces of the SimIE paper's tables and figures plan as they are, and so does every small line in their headers."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import load_search_space
from raysweep.workspace import Workspace, package_share

SHARE = package_share()
SPACES = sorted((SHARE / "search_spaces").glob("simie_*.yaml"))
TRIALS = {  # arms × models × datasets (× λ), as the paper prints them
    "simie_fig2": 8,
    "simie_figs7to10": 4 * 7 * 3 * 2,
    "simie_table1": 13 * 3 * 2,
    "simie_table2": 7 * 2,
    "simie_table4": 13 * 2,
    "simie_table5": 13 * 3 * 2,
    "simie_table7": 7,
}


def small_lines(path: Path) -> list[list[str]]:
    """Return the arguments of every ``raysweep run … --set …`` of a header."""
    lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# raysweep run")]
    return [shlex.split(line)[2:] for line in lines if "--set" in line]


LINES = [(path.stem, argv) for path in SPACES for argv in small_lines(path)]


def planned(name: str, workspace: Workspace, sets: list[str] | None = None) -> Plan:
    return plan(load_search_space(name, workspace, sets or []), workspace)


def test_there_is_one_file_per_table() -> None:
    assert {p.stem for p in SPACES} == set(TRIALS)


@pytest.mark.parametrize("name", TRIALS)
def test_as_it_is(name: str, full: Workspace) -> None:
    found = planned(name, full)
    assert len(found.trials) == TRIALS[name]
    assert all("is not here: its keys will be others once" in note for note in found.notes), (
        "a hub model, and nothing else"
    )
    for trial in (t.trial for t in found.trials):
        assert (trial.data.order, trial.protocol.batch_size, trial.model.dtype) == ("file", 1, "float32")
        assert trial.protocol.rounds[-1] == trial.data.size == (600 if name == "simie_table7" else 1000)


def test_table_1_holds_the_published_lambdas(full: Workspace) -> None:
    found = {
        (t.trial.editor.label, t.trial.model.name, t.trial.data.name): t.trial.editor.wrap[0].config
        for t in planned("simie_table1", full).trials
        if t.arm.endswith("+simie")
    }
    assert len(found) == 4 * 3 * 2
    assert found["rome+simie", "llama-2-7b", "zsre"].lam == 50
    assert found["rome+simie", "llama-2-7b", "counterfact"].lam == 5
    around_mend = found["mend+simie", "gpt2-xl", "counterfact"]
    assert (around_mend.lam, around_mend.mode) == (0.1, "init")


def test_the_two_alphaedits_differ_in_memory_only(full: Workspace) -> None:
    found = {
        (t.arm, t.trial.data.name): t.trial.editor.config.model_dump() for t in planned("simie_table4", full).trials
    }
    for data in ("zsre", "counterfact"):
        plain, memory = found["alphaedit-", data], found["alphaedit", data]
        assert (plain.pop("pre"), memory.pop("pre")) == (0, 1)
        assert plain == memory == {k: v for k, v in found["alphaedit-+simie", data].items() if k != "pre"}


@pytest.mark.parametrize(("name", "argv"), LINES, ids=lambda v: v if isinstance(v, str) else v[2].rpartition("_")[2])
def test_small_line(name: str, argv: list[str], bare: Workspace) -> None:
    space, *flags = argv
    assert space == name
    assert set(flags[::2]) == {"--set"}
    found = planned(name, bare, flags[1::2])
    assert {t.arm for t in found.trials} == {a.name for a in found.sweep.arms}, "an arm was lost"
    assert found.sweep.name.startswith(f"{name}_")
    assert sum(t.trial.protocol.rounds[-1] for t in found.trials) <= 130, "not small"


def test_every_file_has_both_small_lines() -> None:
    for name in TRIALS:
        ends = [argv[2].rpartition("_")[2] for stem, argv in LINES if stem == name]
        assert ends == ["embedded", "smollm2"], name
