"""Mutations of trees, texts and bytes: what people mistype, what programs write by mistake, and what a spiteful file holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Path = tuple[str | int, ...]

NUMBERS = (0, -1, 1, 2, 99, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 1.0, 5.0, 0.5, -0.0, 1e-400, 1e308, 1e999)
WORDS = (
    *("", " ", "\n", "\t", "null", "true", "on", "no", "~", "5", "5.0", "1e3", "0x10", "nan", "inf", "-inf", "None"),
    *("[red]x[/red]", "[/]", "{}", "{x}", "%s", "a: b", "#", "- x", "&a", "*a", "!!python/object:os.system x", "<<"),
    *(
        "../../etc/passwd",
        "/",
        ".",
        "..",
        "~nobody/x",
        "C:\\x",
        "a" * 300,
        "é",
        "é",
        "\u200b",
        "\u202e",
        "💥",
        "\ud800",
    ),
    *("\x00", "\x1b[31m", "﻿", "\u2028", "memit", "roem", "rome", "world", "zsre", "embedded", "simie"),
)
NESTS = (
    [],
    {},
    [[]],
    {"": {}},
    {"name": None},
    {"name": 3},
    {"grid": [1, 2]},
    {"grid": []},
    {"grid": [[1]]},
    {"path": [1]},
)


def odd_values() -> st.SearchStrategy[Any]:
    """Values of every type, of which few are right anywhere."""
    plain = st.sampled_from([None, True, False, float("nan"), float("inf"), *NUMBERS, *WORDS, *NESTS])
    drawn = st.one_of(st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=4))
    deep = st.integers(1, 200).map(lambda n: json.loads("[" * n + "]" * n))
    return st.one_of(plain, plain, plain, drawn, deep)


def paths(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of everything in *tree*."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, below in items:
        yield from paths(below, (*path, key))


def at(tree: Any, path: Path) -> Any:
    """Return what is at *path*."""
    for part in path:
        tree = tree[part]
    return tree


@st.composite
def trees(draw: Draw, good: Any, most: int = 4) -> Any:
    """A copy of *good* with up to *most* things replaced, removed, renamed, doubled or wrapped."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, most))):
        places = [p for p in paths(tree) if p]
        if not places:
            break
        path = draw(st.sampled_from(places))
        parent, last = at(tree, path[:-1]), path[-1]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "wrap", "double", "move"]))
        if how == "replace":
            parent[last] = draw(odd_values())
        elif how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(WORDS))] = parent.pop(last)
        elif how == "wrap":
            parent[last] = draw(st.sampled_from([[parent[last]], {"name": parent[last]}, {"grid": [parent[last]]}]))
        elif how == "double":
            parent[last] = [copy.deepcopy(parent[last])] * draw(st.sampled_from([2, 3, 50]))
        else:
            parent[last] = copy.deepcopy(at(tree, draw(st.sampled_from(places))))
    return tree


@st.composite
def damaged(draw: Draw, good: bytes, most: int = 6) -> bytes:
    """*good* with up to *most* bytes or stretches changed, cut, repeated or inserted; often none."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, most))):
        if not data:
            break
        begin = draw(st.integers(0, len(data) - 1))
        end = min(len(data), begin + draw(st.sampled_from([1, 1, 2, 4, 8, 100])))
        how = draw(st.sampled_from(["flip", "flip", "cut", "repeat", "insert", "truncate", "zero", "ones"]))
        if how == "flip":
            data[begin] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[begin:end]
        elif how == "repeat":
            data[begin:begin] = data[begin:end] * draw(st.sampled_from([1, 2, 100]))
        elif how == "insert":
            data[begin:begin] = draw(
                st.binary(max_size=8) | st.sampled_from([w.encode("utf-8", "replace") for w in WORDS])
            )
        elif how == "truncate":
            del data[begin:]
        else:
            data[begin:end] = (b"\x00" if how == "zero" else b"\xff") * (end - begin)
    return bytes(data)


@st.composite
def written(draw: Draw, tree: Any) -> bytes:
    """*tree* as JSON, which is YAML too, the way one program or another writes it."""
    text = json.dumps(tree, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
    encoding = draw(st.sampled_from(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")
