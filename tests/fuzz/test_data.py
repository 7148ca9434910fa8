"""Files of records of every kind of damage: `data check` and a plan that uses them answer in words, in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raysweep.config.schema import DataSpec, TextSpec
from raysweep.data.texts import open_texts, resolve
from raysweep.workspace import Workspace, package_share
from tests.fuzz.conftest import share
from tests.fuzz.mutate import damaged, trees, written
from tests.fuzz.oracle import Tally

SAMPLES = {
    "zsre": "ZsRE/sample.json",
    "counterfact": "counterfact/sample.json",
    "hallucination": "hallucination/sample.json",
}
ROWS: dict[str, Any] = {
    name: json.loads((package_share() / "data" / file).read_text(encoding="utf-8"))[:3]
    for name, file in SAMPLES.items()
}
ROWS["original"] = json.loads((package_share() / "data/counterfact/sample.original.json").read_text(encoding="utf-8"))[
    :2
]
SPACE = """\
sweep: fuzz
base:
  model: embedded
  data: {name: NAME, path: FILE, invalid: HOW}
arms: {rome: {editor: rome}, ft: {editor: ft}, wise: {editor: {name: wise, layer: 2}}}
"""


def tried(name: str, text: bytes, ending: str, how: str, root: Path, tally: Tally, kind: str) -> None:
    file = root / f"rows{ending}"
    file.write_bytes(text)
    dataset = name.replace("original", "counterfact")
    tally.command(f"{kind}, data check", "data", "check", dataset, "--path", str(file))
    space = SPACE.replace("NAME", dataset).replace("FILE", str(file)).replace("HOW", how)
    (root / "fuzz.yaml").write_text(space)
    tally.command(f"{kind}, plan", "validate", "fuzz.yaml")


@given(
    name=st.sampled_from(sorted(ROWS)),
    data=st.data(),
    ending=st.sampled_from([".json", ".jsonl"]),
    how=st.sampled_from(["refuse", "skip"]),
)
@share(0.08)
def test_odd_rows(name: str, data: st.DataObject, ending: str, how: str, root: Path, tally: Tally) -> None:
    tree = data.draw(trees(ROWS[name]))
    if data.draw(st.booleans()) and isinstance(tree, list):
        text = b"\n".join(data.draw(written(row)) for row in tree)
    else:
        text = data.draw(written(tree))
    tried(name, text, ending, how, root, tally, "records, odd values")


@given(name=st.sampled_from(sorted(ROWS)), data=st.data(), ending=st.sampled_from([".json", ".jsonl"]))
@share(0.06)
def test_damaged_files(name: str, data: st.DataObject, ending: str, root: Path, tally: Tally) -> None:
    text = data.draw(damaged(json.dumps(ROWS[name], ensure_ascii=False).encode()))
    tried(name, text, ending, "refuse", root, tally, "records, damaged text")


@given(count=st.integers(0, 200_000), part=st.sampled_from(["[", '{"a":', '[{"src":', "1", '"\\ud800', "9"]))
@share(0.02)
def test_files_without_bound(count: int, part: str, root: Path, tally: Tally) -> None:
    tried("zsre", (part * count).encode(), ".json", "skip", root, tally, "records, without bound")


@given(
    ending=st.sampled_from([".txt", ".jsonl"]),
    text=damaged(b'{"text": "one"}\n{"text": "two \\u00e9"}\n\n"three"\n', most=4),
)
@share(0.01)
def test_damaged_texts(ending: str, text: bytes, root: Path, tally: Tally) -> None:
    """Text for second moments: the plan reads the first one, the run all of them."""
    (root / f"text{ending}").write_bytes(text)
    spec = TextSpec(name="mine", path=f"text{ending}")
    workspace = Workspace(root)
    tally.call("texts, plan", lambda: resolve(spec, DataSpec(), workspace))
    tally.call("texts, run", lambda: [text.encode() for text in open_texts(spec, DataSpec(), workspace)])
