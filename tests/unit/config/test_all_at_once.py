"""One pass tells every mistake of a file, whether of YAML, of form, of content, or of what a study or the data ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.config.plan import open_plan
from raysweep.errors import ProblemsError
from raysweep.workspace import Workspace
from tests.unit.config.fakes import components

SEVEN = """\
sweep: 2024
bases: {}
base:
  model: nowhere
  data: {name: hundred, size: 20}
  protocol: {rounds: [0, 50], batch_size: 1, batch_size: 2}
arms:
  a: {editor: surgery}
  b: {editor: {name: surgeon, layers: [-1]}}
  "": {editor: plain}
space:
  sed: {grid: [1]}
search: {samples: 1e9}
"""


def said(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ProblemsError) as caught:
        open_plan(str(tmp_path / "x.yaml"), Workspace(tmp_path, share=tmp_path), components=components())
    return [str(p) for p in caught.value.problems]


def test_mistakes_of_every_stage_come_together(tmp_path: Path) -> None:
    found = "\n".join(said(SEVEN, tmp_path))
    for text in (
        "x.yaml:1:8  sweep: 2024 is no folder name",
        "x.yaml:2:1  unknown key 'bases'",
        "x.yaml:4:10  unknown model 'nowhere'",
        "rounds beyond the data: [50]",
        "x.yaml:6:46  key 'batch_size' is written twice",
        "unknown editor 'surgery'",
        "an arm needs a name that can be seen",
        "x.yaml:12:3  'sed' applies to no arm",
        "samples: should be a valid integer",
    ):
        assert text in found, found


def test_what_cannot_be_read_breeds_no_further_complaints(tmp_path: Path) -> None:
    """Rounds and swept keys that fit what the author meant are not blamed for a section or an arm that was lost."""
    text = """\
sweep: x
base: {model: tiny, data: [hundred], protocol: {rounds: [0, 99999]}}
arms:
  a: {editor: {name: 3}}
  b: {editor: plain}
space: {editor.layers.0: {grid: [1]}}
"""
    assert len(said(text, tmp_path)) == 2


def test_data_that_are_not_there_leave_the_rest_to_be_checked(tmp_path: Path) -> None:
    base = "base: {model: tiny, data: {name: hundred, path: missing, size: 5}, protocol: {rounds: [9]}}"
    text = f"sweep: x\n{base}\narms: {{a: {{editor: plain}}}}\n"
    found = "\n".join(said(text, tmp_path))
    assert "'missing' does not exist" in found
    assert "rounds beyond the data: [9]" in found


def test_merge_keys_are_one_mistake_not_two(tmp_path: Path) -> None:
    text = "sweep: x\nbase: {model: tiny, data: hundred}\narms:\n  a: &a {editor: plain}\n  b:\n    <<: *a\n"
    assert len(said(text, tmp_path)) == 1
