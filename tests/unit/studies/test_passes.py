"""Several trials, one pass over the edits: each gets the rows it would have got alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.config.schema import EditorSpec, TrialSpec, WrapSpec
from raysweep.editors.wrappers.prune import Prune
from raysweep.rows import EvalRound, Snapshot
from raysweep.studies.base import GroupMemberError
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, tiny_lm
from tests.unit.studies.test_lifelong import deps, facts, trial

BASES = ("linear", "2", "e")


def pruned(base: str, **protocol: Any) -> TrialSpec:
    bare = trial("ft", **({"rounds": (0, 2, 4)} | protocol))
    around = (WrapSpec(name="prune", config={"base": base}),)
    return bare.model_copy(update={"editor": bare.editor.model_copy(update={"wrap": around})})


def together(trials: Sequence[TrialSpec], effects: Any, resumes: dict[str, Snapshot]) -> dict[str, list[EvalRound]]:
    found: dict[str, list[EvalRound]] = {t.key: [] for t in trials}
    for key, one in Lifelong().execute_group(trials, effects, resumes):
        found[key].append(one)
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PRUNE restrain every singular value, so that its base matters after the first edit."""
    begin = Prune.begin

    def low(self: Prune, *given: Any) -> dict[str, Any]:
        state = begin(self, *given)
        return {**state, "largest": dict.fromkeys(state["largest"], 1e-3)}

    monkeypatch.setattr(Prune, "begin", low)


@pytest.fixture
def alone(tmp_path: Path, always: None) -> dict[str, list[EvalRound]]:
    lm = tiny_lm("llama")
    return {t.key: list(Lifelong().execute(t, deps(tmp_path, lm), None)) for t in map(pruned, BASES)}


def test_members_of_a_pass_get_what_they_get_alone(
    tmp_path: Path, alone: dict[str, list[EvalRound]], monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = []
    edit = Prune.edit
    monkeypatch.setattr(Prune, "edit", lambda self, *a, **k: (edits.append(self.config.base), edit(self, *a, **k))[1])
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    trials = [pruned(b) for b in BASES]
    found = together(trials, deps(tmp_path, lm), {})
    assert same(before, fingerprint(lm)), "the model must be pristine again"
    assert edits == ["linear"] * 4, "one pass over the edits"
    for key, rounds in found.items():
        assert same(facts(rounds), facts(alone[key]))
    last = [rounds[-1].rows for rounds in found.values()]
    assert len({tuple(r.value for r in rows) for rows in last}) == len(BASES), "the bases must make a difference"


def test_a_pass_goes_on_where_every_member_can_and_measures_only_what_is_missing(
    tmp_path: Path, alone: dict[str, list[EvalRound]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One member has a snapshot at 2, one at 2 from another pass, one nothing: the pass edits anew, the two are ahead."""
    a, b, c = (pruned(base) for base in BASES)
    ahead = {t.key: alone[t.key][1].snapshot for t in (a, b)}
    assert all(ahead.values())
    lm = tiny_lm("llama")
    found = together([a, b, c], deps(tmp_path, lm), ahead)  # type: ignore[arg-type]
    assert {k: [r.step for r in rounds] for k, rounds in found.items()} == {a.key: [4], b.key: [4], c.key: [0, 2, 4]}
    for t in (a, b):
        assert same(facts(found[t.key]), facts(alone[t.key][2:]))
    assert same(facts(found[c.key]), facts(alone[c.key]))
    edits = []
    edit = Prune.edit
    monkeypatch.setattr(Prune, "edit", lambda self, *a, **k: (edits.append(1), edit(self, *a, **k))[1])
    first = ahead[a.key]
    assert first is not None
    second = replace(ahead[b.key], tensors=first.tensors)  # type: ignore[type-var]
    found = together([a, b], deps(tmp_path, lm), {a.key: first, b.key: second})  # type: ignore[dict-item]
    assert len(edits) == 2
    for t in (a, b):
        assert same(facts(found[t.key]), facts(alone[t.key][2:]))


def test_only_what_is_shared_is_timed_as_shared(tmp_path: Path, always: None) -> None:
    found = together([pruned(b) for b in BASES], deps(tmp_path, tiny_lm("llama")), {})
    for rounds in found.values():
        phases = [{t.phase for t in r.timing} for r in rounds]
        assert phases[0] == {"load_shared", "artifacts_shared", "base_shared", "round_shared", "snapshot"}
        assert phases[1] == {"edit_shared", "apply_shared", "immediate", "round", "snapshot"}
        assert {t.count for t in rounds[1].timing if t.phase == "edit_shared"} == {2}


def test_an_error_of_one_member_names_it(tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    view = Prune.report_view

    def broken(self: Prune, *given: Any) -> Any:
        if self.config.base == "2":
            raise ValueError("no view")
        return view(self, *given)

    monkeypatch.setattr(Prune, "report_view", broken)
    trials = [pruned(b) for b in BASES]
    with pytest.raises(GroupMemberError) as caught:
        together(trials, deps(tmp_path, tiny_lm("llama")), {})
    assert caught.value.key == trials[1].key
    assert str(caught.value.__cause__) == "no view"
    with pytest.raises(ValueError, match="no view"):
        together(trials[1:2], deps(tmp_path, tiny_lm("llama")), {})


def test_prune_shares_its_edits_unless_rounds_keep_the_view() -> None:
    from raysweep.editors.build import build_editor

    def shared(**config: Any) -> Any:
        spec = EditorSpec(name="ft", config={"layers": [1]}, wrap=(WrapSpec(name="prune", config=config),))
        return build_editor(spec).edit_dependencies()  # type: ignore[attr-defined]

    assert shared(base="2") == shared(base="e")
    assert shared(base="2")["inner"]["config"]["layers"] == [1] or shared(base="2")["inner"]["config"]["layers"] == (1,)
    assert shared(persist=True) is None
