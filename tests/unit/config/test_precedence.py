"""Whatever is stated on the command line takes effect, or is refused by the name and place of what hides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.config.load import parse
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.errors import ProblemsError
from raysweep.workspace import Workspace, package_share, resolve_from_cwd
from tests.unit.config.fakes import components

SPACE = """
sweep: x
base:
  model: tiny
  data: {name: hundred, size: 20}
  threads: 1
arms:
  plain: {editor: plain}
  own: {editor: {name: surgeon, layers: [2], rate: 1}, seed: 5, data: {size: 10, skip: 1}, space: {editor.rate: {grid: [3, 4]}}}
  ridge: {editor: plain, wrap: {name: ridge, lam: 2}, space: {seed: {grid: [7, 8]}, data.skip: {grid: [2, 3]}}}
space:
  seed: {grid: [0, 1, 2]}
  wrap.ridge.lam: {grid: [1.0, 10.0]}
"""


def planned(workspace: Workspace, *overrides: str, text: str = SPACE) -> Plan:
    return plan(parse_search_space(parse(text, "x.yaml"), overrides), workspace, components())


def refused(workspace: Workspace, *overrides: str, text: str = SPACE) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        planned(workspace, *overrides, text=text)
    return [str(p) for p in caught.value.problems]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, share=tmp_path)


def value(trial: Any, key: str) -> Any:
    """Return what *trial* has under a dotted key; the wrapper and the editor by their configuration."""
    if key.startswith("editor."):
        return trial.editor.config.stored_value(key.removeprefix("editor."))
    if key.startswith("wrap."):
        found = {w.name: w.config for w in trial.editor.wrap}
        name, _, field = key.removeprefix("wrap.").partition(".")
        return found[name].stored_value(field) if name in found else None
    for part in key.split("."):
        trial = getattr(trial, part)
    return trial


@pytest.mark.parametrize(
    ("override", "key", "wanted"),
    [
        # a value of all arms, over: the sweep's domain, an arm's own domain, an arm's own value
        ("seed=9", "seed", {"plain": {9}, "own": {9}, "ridge": {9}}),
        ("base.seed=9", "seed", {"plain": {9}, "own": {9}, "ridge": {9}}),
        ("base={seed: 9, data: hundred, model: tiny}", "seed", {"plain": {9}, "own": {9}, "ridge": {9}}),
        ("data.size=15", "data.size", {"plain": {15}, "own": {15}, "ridge": {15}}),
        ("data={name: hundred, size: 15}", "data.size", {"plain": {15}, "own": {15}, "ridge": {15}}),
        ("data.skip=4", "data.skip", {"plain": {4}, "own": {4}, "ridge": {4}}),
        ("data=other", "data.name", {"plain": {"other"}, "own": {"other"}, "ridge": {"other"}}),
        # a domain of all arms, over the same
        ("seed={grid: [3, 4]}", "seed", {"plain": {3, 4}, "own": {3, 4}, "ridge": {3, 4}}),
        ("space.seed={grid: [3, 4]}", "seed", {"plain": {3, 4}, "own": {3, 4}, "ridge": {3, 4}}),
        ("base.data.size={grid: [6, 7]}", "data.size", {"plain": {6, 7}, "own": {6, 7}, "ridge": {6, 7}}),
        ("data.skip={grid: [6]}", "data.skip", {"plain": {6}, "own": {6}, "ridge": {6}}),
        ("space={data.skip: {grid: [6]}}", "data.skip", {"plain": {6}, "own": {6}, "ridge": {6}}),
        ("data={grid: [hundred, other]}", "data.name", {"plain": {"hundred", "other"}, "own": {"hundred", "other"}}),
        ("editor.rate={grid: [8.0]}", "editor.rate", {"own": {8.0}}),
        ("wrap.ridge.lam={grid: [5.0]}", "wrap.ridge.lam", {"ridge": {5.0}}),
        # a value or a domain of one arm, over its own domain and over the sweep's; the others keep theirs
        ("arms.own.editor.rate=9.0", "editor.rate", {"own": {9.0}}),
        ("arms.own.seed=9", "seed", {"own": {9}, "plain": {0, 1, 2}, "ridge": {7, 8}}),
        ("arms.ridge.seed=9", "seed", {"ridge": {9}, "plain": {0, 1, 2}}),
        ("arms.ridge.wrap.ridge.lam=9.0", "wrap.ridge.lam", {"ridge": {9.0}}),
        ("arms.ridge.wrap={name: ridge, lam: 9.0}", "wrap.ridge.lam", {"ridge": {9.0}}),
        ("arms.ridge.wrap=[{name: ridge, lam: 9.0}]", "wrap.ridge.lam", {"ridge": {9.0}}),
        ("arms.ridge={editor: plain, wrap: {name: ridge, lam: 9.0}}", "wrap.ridge.lam", {"ridge": {9.0}}),
        ("arms.ridge.wrap={name: ridge, lam: {path: [5, 6]}}", "wrap.ridge.lam", {"ridge": {5.0, 6.0}}),
        ("arms.plain.data.size=5", "data.size", {"plain": {5}, "own": {10}}),
        ("arms.plain.seed={grid: [4]}", "seed", {"plain": {4}, "ridge": {7, 8}}),
        ("arms.own.editor.rate={grid: [6.0]}", "editor.rate", {"own": {6.0}}),
        ("arms.ridge.wrap.ridge.lam={grid: [6.0]}", "wrap.ridge.lam", {"ridge": {6.0}}),
    ],
)
def test_a_stated_value_is_never_hidden(
    workspace: Workspace, override: str, key: str, wanted: dict[str, set[Any]]
) -> None:
    found = planned(workspace, override)
    for arm, values in wanted.items():
        assert {value(t.trial, key) for t in found.trials if t.arm == arm} == values, arm


def test_the_plan_says_what_was_replaced(workspace: Workspace) -> None:
    notes = planned(workspace, "seed=9").notes
    assert "--set seed=9 replaces the sweep's domain of 'seed' (x.yaml:12:3)" in notes
    assert "--set seed=9 replaces 'seed' of arm 'own' (x.yaml:9:56)" in notes
    assert "--set seed=9 replaces the domain of 'seed' in arm 'ridge' (x.yaml:10:63)" in notes
    assert not any("--set" in n for n in planned(workspace, "protocol.rounds=[0, 5]").notes)


def test_the_plan_says_what_a_search_space_hides_from_itself(workspace: Workspace) -> None:
    text = SPACE.replace("threads: 1", "threads: 1\n  seed: 4")
    notes = planned(workspace, text=text + "search: {samples: 3}\n").notes
    assert "'seed' of base (x.yaml:7:9) has no effect: it is swept (x.yaml:13:3)" in notes
    assert "'editor.rate' of arm 'own' (x.yaml:10:52) has no effect: it is swept (x.yaml:10:100)" in notes
    assert "search.samples (x.yaml:15) has no effect: every domain is a grid" in notes
    assert any("search.samples has no effect" in p for p in refused(workspace, "search.samples=3"))


def test_the_point_shows_the_one_value(workspace: Workspace) -> None:
    assert [dict(t.point) for t in planned(workspace, "seed=9").trials if t.arm == "plain"] == [{"seed": 9}]


@pytest.mark.parametrize("swap", [False, True])
def test_the_narrower_of_two_statements_holds_in_its_arm_in_either_order(workspace: Workspace, swap: bool) -> None:
    for broad, narrow, key, wanted in [
        ("seed=9", "arms.ridge.seed=3", "seed", {"plain": {9}, "own": {9}, "ridge": {3}}),
        ("seed={grid: [8, 9]}", "arms.ridge.seed=3", "seed", {"plain": {8, 9}, "own": {8, 9}, "ridge": {3}}),
        ("data.size=15", "arms.own.data.size=12", "data.size", {"plain": {15}, "own": {12}}),
        ("base={data: hundred, model: tiny, seed: 1}", "data.size=12", "data.size", {"plain": {12}, "own": {12}}),
        ("data=other", "data.path=a.json", "data.path", {"plain": {resolve_from_cwd("a.json")}}),
    ]:
        both = (narrow, broad) if swap else (broad, narrow)
        found = planned(workspace, *both)
        for arm, values in wanted.items():
            assert {value(t.trial, key) for t in found.trials if t.arm == arm} == values, (both, arm)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1", "seed=2"], "--set seed=2  'seed' is given two values, here and by --set seed=1"),
        (["seed=1", "base.seed=2"], "--set base.seed=2  'seed' is given two values, here and by --set seed=1"),
        (["seed=1", "seed={grid: [1]}"], "'seed' is given two values"),
        (["seed=1", "space.seed={grid: [2]}"], "'seed' is given two values"),
        (["data={name: other, size: 5}", "data.size=6"], "--set data.size=6  'data.size' is given two values"),
        (["arms.own.editor.rate=1", "arms.own={editor: {name: surgeon, layers: [1], rate: 2}}"], "given two values"),
        (["arms.ridge.wrap.ridge.lam=1", "arms.ridge.wrap={name: ridge, lam: 2}"], "given two values"),
        (["resources.cpu=1", "resources={cpu: 2}"], "'resources.cpu' is given two values"),
        (["sweep=a", "sweep=b"], "'sweep' is given two values"),
    ],
)
def test_one_key_has_one_value(workspace: Workspace, overrides: list[str], message: str) -> None:
    assert any(message in p for p in refused(workspace, *overrides))


def test_the_same_value_twice_is_no_contradiction(workspace: Workspace) -> None:
    assert {t.trial.seed for t in planned(workspace, "seed=9", "base.seed=9", "seed=9").trials} == {9}


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (
            SPACE.replace("wrap.ridge.lam: {grid: [1.0, 10.0]}", "editor.layers: {grid: [1, 2]}"),
            "arms.own.editor.layers=[1]",
            "--set arms.own.editor.layers=[1]  'editor.layers' of arm 'own' is hidden by the sweep's domain of "
            "'editor.layers' (x.yaml:13:3)\n    remove 'editor.layers' from space",
        ),
        (
            SPACE.replace("wrap.ridge.lam: {grid: [1.0, 10.0]}", "data.name: {grid: [other]}"),
            "data.path=a.json",
            "--set data.path=a.json  'data.path' has no effect: data.name is swept over 'other' (x.yaml:13:14)",
        ),
        (
            SPACE.replace("plain: {editor: plain}", "plain: {editor: plain, data: other}"),
            "arms.plain.space.data.name={grid: [hundred]}",
            "",
        ),
    ],
)
def test_what_cannot_win_is_refused_by_name(workspace: Workspace, text: str, override: str, message: str) -> None:
    if message:
        assert any(message in p for p in refused(workspace, override, text=text))
    else:
        found = planned(workspace, override, text=text)
        assert {t.trial.data.name for t in found.trials if t.arm == "plain"} == {"hundred"}


def test_a_path_of_one_dataset_says_where_another_is_used(workspace: Workspace) -> None:
    text = SPACE.replace("plain: {editor: plain}", "plain: {editor: plain, data: {name: other, path: b.json}}")
    found = planned(workspace, "data.path=a.json", text=text)
    paths = {t.arm: t.trial.data.path for t in found.trials}
    assert paths["ridge"] == resolve_from_cwd("a.json")
    assert any(
        "--set data.path=a.json is of data 'hundred' alone: arm 'plain' has data 'other'" in n for n in found.notes
    )


class TestPaths:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The current folder, below the workspace's root."""
        folder = tmp_path / "here"
        folder.mkdir()
        monkeypatch.chdir(folder)
        return folder

    def test_stated_paths_count_from_the_current_folder(self, workspace: Workspace, tmp_path: Path, here: Path) -> None:
        for override, wanted in [
            ("data.path=a.json", str(here / "a.json")),
            ("data={name: hundred, path: ../a.json}", str(tmp_path / "a.json")),
            ("base.data.path=/x/a.json", "/x/a.json"),
            ("data.path={grid: [b.json]}", str(here / "b.json")),
        ]:
            assert {t.trial.data.path for t in planned(workspace, override).trials} == {wanted}

    def test_a_file_of_the_search_space_counts_from_the_root(self, workspace: Workspace) -> None:
        text = SPACE.replace("size: 20", "size: 20, path: a.json")
        assert planned(workspace, text=text).trials[0].trial.data.path == str(workspace.root / "a.json")

    def test_a_path_that_is_nowhere_says_what_was_tried(self, workspace: Workspace, tmp_path: Path, here: Path) -> None:
        text = SPACE.replace("size: 20", "size: 20, path: missing")
        said = "\n".join(refused(workspace, text=text))
        assert f"x.yaml:5:41  'missing' is neither at {tmp_path / 'missing'}" in said
        assert "counts from the workspace's root" in said
        (here / "missing").write_text("[]")
        assert f"the current folder has one: write {here / 'missing'}" in "\n".join(refused(workspace, text=text))

    def test_a_path_in_two_places_says_which_is_used(self, workspace: Workspace, tmp_path: Path, here: Path) -> None:
        for folder in (here, tmp_path):
            (folder / "a.json").write_text("[]")
        text = SPACE.replace("size: 20", "size: 20, path: a.json")
        told = f"x.yaml:5: 'a.json' is {tmp_path / 'a.json'} (a path in a file counts from the root), not {here / 'a.json'}"
        assert told in planned(workspace, text=text).notes

    def test_what_came_with_the_package_is_found_from_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert resolve_from_cwd("data/ZsRE/sample.json", shipped=True) == str(package_share() / "data/ZsRE/sample.json")
        assert resolve_from_cwd("data/ZsRE/sample.json") == str(tmp_path / "data/ZsRE/sample.json")
        (tmp_path / "data/ZsRE").mkdir(parents=True)
        (tmp_path / "data/ZsRE/sample.json").write_text("[]")
        assert resolve_from_cwd("data/ZsRE/sample.json", shipped=True) == str(tmp_path / "data/ZsRE/sample.json")
        assert resolve_from_cwd("s3://bucket/x") == "s3://bucket/x"
        assert resolve_from_cwd("~/x") == str(Path.home() / "x")


def test_what_was_laid_over_reads_back(workspace: Workspace) -> None:
    said = ["seed={grid: [1, 2]}", "protocol.immediate=true", "sweep=y", "arms.own.editor.layers=[1]", 'model.bos="1"']
    sweep = parse_search_space(parse(SPACE, "x.yaml"), said)
    again = parse_search_space(parse(SPACE, "x.yaml"), sweep.source.overrides)
    assert again.model_dump(mode="json") == sweep.model_dump(mode="json")
    assert again.base["model"]["bos"] == "1"
