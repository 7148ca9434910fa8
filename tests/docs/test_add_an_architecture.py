"""The page that adds an architecture is executed: its file sits the layout contract, ROME edits the model, a folder of it loads."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from raysweep.models.layout import LAYOUTS, Layout
from raysweep.testing.layout_contract import check_layout_contract, tiny_model
from tests.docs.pages import ROOT, block, blocks, installed, run_parts

PAGE = ROOT / "docs/add_an_architecture.md"
LOADS = """
from pathlib import Path
from raysweep.models import sizes
from raysweep.testing.fixtures import byte_tokenizer, load_folder
from raysweep.testing.layout_contract import tiny_model

folder = Path("model").resolve()
module = tiny_model("gemma", vocab_size=258, tie_word_embeddings=True)
module.save_pretrained(folder)
byte_tokenizer(bos=True).save_pretrained(folder)
lm = load_folder(folder)
assert lm.layout.model_type == "gemma", lm.layout
assert sizes.size_from_config(module.config.to_dict()).parameters == sum(p.numel() for p in module.parameters() if p.dim() == 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, its layout installed as a third party's would be."""
    root = tmp_path_factory.mktemp("page")
    (root / "gemma_layout.py").write_text(block(PAGE, "raysweep/models/layouts/gemma.py"), encoding="utf-8")
    (root / "look.py").write_text(block(PAGE, "look.py"), encoding="utf-8")
    (root / "test_gemma.py").write_text(block(PAGE, "test_gemma.py"), encoding="utf-8")
    installed(PAGE, root, "gemma_layout")
    return root


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What a process that finds the layout prints of each part, by its title."""
    tests = "import pytest; assert pytest.main(['-q', '-p', 'no:cacheprovider', 'test_gemma.py']) == 0"
    return run_parts(folder, {"look": block(PAGE, "look.py"), "tests": tests, "loads": LOADS})


def test_a_look_at_the_model_shows_the_names_of_the_layout(printed: dict[str, str]) -> None:
    names = ("embed_tokens", "layers", "down_proj", "o_proj", "norm", "lm_head")
    assert all(f"({name}):" in printed["look"] for name in names)


def test_the_page_s_own_tests_pass(printed: dict[str, str]) -> None:
    assert "passed" in printed["tests"]
    assert "failed" not in printed["tests"]


def test_a_folder_of_the_family_loads(printed: dict[str, str]) -> None:
    assert "loads" in printed


def test_the_sentence_is_what_the_contract_says() -> None:
    namespace: dict[str, object] = {}
    exec(block(PAGE, "raysweep/models/layouts/gemma.py"), namespace)
    layout = namespace["LAYOUT"]
    assert isinstance(layout, Layout)
    with pytest.raises(AssertionError) as caught:
        check_layout_contract(replace(layout, embed_scale=None), tiny_model("gemma"))
    assert str(caught.value) == block(PAGE, "the sentence").strip()


def test_the_line_has_the_form_of_the_table(folder: Path) -> None:
    (line,) = (b.text.strip() for b in blocks(PAGE) if b.language == "text" and "LAYOUT" in b.text)
    name, _, origin = line.rstrip(",").replace('"', "").partition(": ")
    assert (name, origin) == ("gemma", LAYOUTS.origin("llama").replace("llama", "gemma"))


def test_every_field_and_every_promise_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{field.name}`" in text for field in fields(Layout) if field.name != "model_type")
    numbered = re.findall(r"^ {4}(\d)\. ", check_layout_contract.__doc__ or "", re.MULTILINE)
    (table,) = (part for part in text.split("\n\n") if part.startswith("| promise |"))
    assert len(numbered) == len(table.splitlines()) - 2 == 7
    assert "examines seven promises" in text
