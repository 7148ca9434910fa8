"""Adapters are read by PEFT itself, in a fresh process, and answer as the edited models did."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from raysweep.exports import proof
from raysweep.exports.export import claimed
from raysweep.exports.forms import Form
from raysweep.exports.proof import prove
from raysweep.models.layout import LAYOUTS
from tests.unit.exports.test_exports import PROMPTS, edited_trial

pytest.importorskip("peft", reason="the peft package is not installed")

# In place of our own formula; PEFT puts its layers into the model that it is given.
SCRIPT = """
import runpy, sys
from peft import PeftModel
plain = runpy.run_path({plain!r})["main"]
plain.__globals__["add_adapter"] = lambda model, folder: PeftModel.from_pretrained(model, folder)
plain(sys.argv[1])
"""


@pytest.mark.parametrize("rank", [1, 3])
def test_peft_has_the_edited_model_of_every_family(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peft.py.txt").write_text(SCRIPT.format(plain=str(proof._SCRIPT)))
    monkeypatch.setattr(proof, "_SCRIPT", tmp_path / "peft.py.txt")
    claims = []
    with ExitStack() as stack:
        for name in LAYOUTS.names():
            opened, folder = edited_trial(name, rank=rank), tmp_path / name
            folder.mkdir()
            claim, found = stack.enter_context(claimed(opened, folder, Form.ADAPTER, PROMPTS))
            assert found == rank
            claims.append(claim)
        differences = prove(claims)
    for name, claim, difference in zip(LAYOUTS.names(), claims, differences, strict=True):
        largest = max(float(one.abs().max()) for one in claim.logits)
        assert difference <= 1e-5 * max(largest, 1.0), name
