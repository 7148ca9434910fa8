"""Search spaces that were mistyped, cut short, grown without bound or written in spite: `validate` answers in words, in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import share
from tests.fuzz.mutate import Draw, damaged, odd_values, trees, written
from tests.fuzz.oracle import Tally

GOOD: dict[str, Any] = {
    "sweep": "fuzz",
    "study": "lifelong",
    "base": {
        "model": {"name": "embedded", "dtype": "float32"},
        "data": {"name": "zsre", "path": "data/ZsRE/sample.json", "size": 4, "skip": 0, "order": "seeded"},
        "protocol": {"batch_size": 1, "rounds": [0, 2, 4], "scope": "seen", "probes": ["efficacy", "locality"]},
        "threads": 1,
        "seed": 0,
    },
    "arms": {
        "rome": {"editor": {"name": "rome", "layers": [1], "value": {"steps": 5, "lr": 0.5}}},
        "rome+simie": {"editor": "rome", "wrap": {"name": "simie", "lam": 10, "mode": "init"}},
        "wise": {"editor": {"name": "wise", "layer": 2}, "space": {"editor.lr": {"grid": [0.5, 1.0]}}},
    },
    "space": {"seed": {"grid": [0, 1]}, "wrap.simie.lam": {"loguniform": [0.01, 100]}},
    "search": {"sampler": "random", "samples": 2, "seed": 0, "metric": "retained/avg", "mode": "max"},
    "resources": {"cpu": 1, "retries": 2, "shards": 1},
}
YAML = """\
sweep: fuzz
base:
  model: embedded
  data: {name: zsre, path: data/ZsRE/sample.json, size: 4}   # four records
  protocol: {rounds: [0, 4], batch_size: 1}
arms:
  a: &a {editor: ft}
  b: *a
  "c d":
    editor: {name: grace, layer: 2}
    wrap: []
space:
  seed: {grid: [0, 1]}
"""


HPARAMS: dict[str, Any] = {
    "layers": [1],
    "steps": 5,
    "for": [{"editor": "ft", "lr": 1e-3}, {"data": "zsre", "steps": 3}],
    "source": "x",
}


def bomb(levels: int, width: int) -> str:
    lines = ["sweep: bomb", "a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


HUGE = st.one_of(
    st.builds(bomb, st.integers(2, 60), st.integers(1, 30)),
    st.integers(0, 6000).map(lambda n: "sweep: " + "[" * n),
    st.integers(0, 6000).map(lambda n: "sweep: " + "{a: " * n + "1" + "}" * n),
    st.integers(0, 3000).map(lambda n: "\n".join(" " * i + "a:" for i in range(n))),
    st.integers(0, 5000).map(lambda n: "- " * n),
    st.integers(0, 5000).map(lambda n: "? " * n),
    st.integers(1, 10**6).map(lambda n: f"sweep: x\nspace: {{seed: {{grid: [{', '.join(['1'] * min(n, 400_000))}]}}}}"),
    st.integers(1, 10**30).map(lambda n: f"{YAML}search: {{sampler: random, samples: {n}}}\n"),
    st.integers(1, 400).map(
        lambda n: f"{YAML}  threads: {{grid: {list(range(1, n))}}}\n  data.size: {{grid: {[4] * n}}}\n"
    ),
    st.integers(0, 3_000_000).map(lambda n: "sweep: " + "x" * n),
    st.sampled_from(['"\\ud800"', '"\\0"', '"\\x1b"', '"\\U00110000"', '"\\uZZZZ"']).map(
        lambda t: f"sweep: {t}\narms: {{{t}: {t}}}"
    ),
    st.sampled_from(["%YAML 1.1\n---\n", "%TAG ! x\n---\n", "--- \n---\n", "...\n", "%\n"]).map(
        lambda head: head + YAML
    ),
    st.sampled_from(
        ["!!binary x", "!!set {a}", "!!timestamp x", "!x y", "!!float x", "!!int 9e9", "0b2", "0o9", "9" * 5000]
    ).map(lambda value: YAML.replace("size: 4", f"size: {value}")),
)


def test_the_good_ones_are_good(root: Path, tally: Tally) -> None:
    """A mutation of a file that was refused anyway would try little."""
    (root / "hparams/ft").mkdir(parents=True)
    (root / "hparams/ft/embedded.yaml").write_text(json.dumps(HPARAMS))
    for text in (json.dumps(GOOD), YAML):
        (root / "fuzz.yaml").write_text(text)
        assert "ok: " in tally.command("good ones", "validate", "fuzz.yaml")


@given(data=st.data())
@share(0.22)
def test_a_tree_with_odd_parts(data: st.DataObject, root: Path, tally: Tally) -> None:
    text = data.draw(written(data.draw(trees(GOOD))))
    (root / "fuzz.yaml").write_bytes(text)
    tally.command("search spaces, odd values", "validate", "fuzz.yaml")


@given(text=damaged(YAML.encode()))
@share(0.12)
def test_a_text_that_was_damaged(text: bytes, root: Path, tally: Tally) -> None:
    (root / "fuzz.yaml").write_bytes(text)
    tally.command("search spaces, damaged text", "validate", "fuzz.yaml")


@given(text=HUGE)
@share(0.04)
def test_a_text_without_bound(text: str, root: Path, tally: Tally) -> None:
    (root / "fuzz.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    tally.command("search spaces, without bound", "validate", "fuzz.yaml")


@st.composite
def overrides(draw: Draw) -> list[str]:
    keys = (
        "data.path",
        "data.size",
        "model.path",
        "seed",
        "space.seed",
        "arms.a.editor.steps",
        "arms",
        "sweep",
        "x",
        "",
        "a.b.c",
        "model",
    )
    texts = st.text(st.characters(blacklist_characters="\x00"), max_size=30) | odd_values().map(str)
    made = [f"{draw(st.sampled_from(keys))}={draw(texts)}" for _ in range(draw(st.integers(1, 3)))]
    return [part for text in made for part in ("--set", text.replace("\x00", ""))]


@given(argv=overrides())
@share(0.06)
def test_odd_overrides(argv: list[str], root: Path, tally: Tally) -> None:
    (root / "fuzz.yaml").write_text(YAML)
    tally.command("--set", "validate", "fuzz.yaml", *argv)


@given(
    tree=trees(HPARAMS),
    data=st.data(),
)
@share(0.05)
def test_odd_hyper_parameter_files(tree: Any, data: st.DataObject, root: Path, tally: Tally) -> None:
    (root / "hparams/ft").mkdir(parents=True, exist_ok=True)
    (root / "hparams/ft/embedded.yaml").write_bytes(data.draw(written(tree)))
    (root / "fuzz.yaml").write_text(YAML)
    tally.command("hyper-parameter files", "validate", "fuzz.yaml")
