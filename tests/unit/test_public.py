"""The public names load lazily and exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import raysweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(set(raysweep.__all__) - {"__version__"}))
def test_public_name_exists(name: str) -> None:
    assert getattr(raysweep, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = raysweep.no_such_name


def test_importing_raysweep_is_light() -> None:
    code = "import raysweep, sys; assert not {'torch', 'ray', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dir_lists_the_public_names() -> None:
    assert set(raysweep.__all__) <= set(dir(raysweep))


def test_a_former_name_works_and_says_what_it_is_now() -> None:
    with pytest.warns(DeprecationWarning, match="load_search_space"):
        assert raysweep.read_sweep is raysweep.load_search_space


SNIPPET = """\
import raysweep
reveal_type(raysweep.load_model)
reveal_type(raysweep.open_results)
reveal_type(raysweep.edit(raysweep.load_model("embedded"), "rome", prompt="a", target="b").undo())
reveal_type(raysweep.open_sweep("demo").errors())
reveal_type(raysweep.Editor)
raysweep.edit("embedded", "rome")
raysweep.nonexistent
"""


def test_a_type_checker_sees_the_public_names(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    # From the root, with its configuration: so it shares the cache of `make lint` and takes half a second.
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(snippet)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    load_model, open_results, session, errors, editor, wrong, missing = answer.stdout.splitlines()
    assert "ModelSpec" in load_model
    assert load_model.endswith('-> raysweep.models.lm.LanguageModel"')
    assert open_results.endswith('-> raysweep.results.tables.Sweep"')
    assert session.endswith('"raysweep.library.session.EditSession"')
    assert errors.endswith('"list[raysweep.reports.opened.TrialError]"')
    assert "raysweep.editors.base.BaseEditor" in editor
    assert 'expected "LanguageModel"' in wrong
    assert 'Module has no attribute "nonexistent"' in missing
