"""docs/quirks.md has every quirk once, its flags exist, and docs/golden.md has every recorded run."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from raysweep.config.schema import ProtocolSpec
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from tests.docs.pages import ROOT
from tests.golden.recorded import variants
from tests.golden.test_withheld import TABLE

QUIRKS = (ROOT / "docs/quirks.md").read_text(encoding="utf-8")
ROWS = {m.group(1): m.group(0) for m in re.finditer(r"^\| (Q\d+) \|.*$", QUIRKS, re.MULTILINE)}
FLAGS = sorted(set(re.findall(r"`(\w+)\.([\w.]+): [^`]+`", "\n".join(ROWS.values()))))


def test_every_quirk_has_one_row() -> None:
    assert list(ROWS) == [f"Q{n}" for n in range(1, 51)]
    for row in ROWS.values():
        assert [cell.strip() != "" for cell in row.strip("| ").split(" | ")] == [True] * 6, row


@pytest.mark.parametrize(("owner", "path"), FLAGS, ids=".".join)
def test_flags_exist(owner: str, path: str) -> None:
    """`wise.merge.published: true` names a field of that editor's, wrapper's or the protocol's configuration."""
    table = EDITORS if owner in EDITORS.names() else WRAPPERS
    kind = ProtocolSpec if owner == "protocol" else table.get(owner).config_type
    for part in path.split("."):
        field = kind.model_fields[part].annotation
        kind = next((t for t in (field, *get_args(field)) if hasattr(t, "model_fields")), None)


def test_every_recorded_run_has_a_line() -> None:
    page = (ROOT / "docs/golden.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (tiny-\w+/\S+) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(variants("ft", "rome", "memit", "alphaedit", "prune", "mend", "grace", "wise"))
    assert all(f"`{name.split('/')[1]}`" in page for name in TABLE)
