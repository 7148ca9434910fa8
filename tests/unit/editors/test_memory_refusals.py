"""SimIE corrects weight changes; around an editor that replaces modules it is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.config.plan import plan
from raysweep.config.sweep import load_search_space
from raysweep.errors import ProblemsError
from raysweep.workspace import Workspace

SPACE = """\
sweep: refused
base:
  model: embedded
  data: {{name: world, size: 4}}
  protocol: {{rounds: [0, 4]}}
arms:
  both: {{editor: {editor}, wrap: simie}}
"""


@pytest.mark.parametrize("editor", ["grace", "wise"])
def test_simie_around_a_memory_editor_is_refused_at_validation(editor: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(SPACE.format(editor=editor))
    workspace = Workspace(Path(__file__).parents[3])
    with pytest.raises(ProblemsError) as caught:
        plan(load_search_space(str(file), workspace), workspace)
    found = [p for p in caught.value.problems if p.code == "E-WRAP"]
    assert len(found) == 1
    assert f"simie cannot wrap '{editor}': it changes modules, not weights" in found[0].message
    assert "remove 'wrap: simie'" in found[0].hint
