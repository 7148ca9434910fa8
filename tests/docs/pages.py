"""The pages a reader meets, their fenced blocks and the command lines in them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "search_spaces/*.md", "hparams/*.md", "data/*.md", "examples/*.md")
    for p in ROOT.glob(pattern)
)
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_COST = re.compile(r"\s{2,}\(.*$")  # what stands behind the command in the first line of a search space
_MARK = "=====> "  # before what a part prints


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its ``title=``, its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    fences = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, rest.partition("title=")[2].strip(), text) for language, rest, text in fences]


def block(page: Path, title: str) -> str:
    """Return the text of the one block with *title*."""
    (text,) = (b.text for b in blocks(page) if b.title == title)
    return text


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """Return the inline code of *page*."""
    return _SPAN.findall(prose(page))


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of every ``raysweep …`` command line of a page or a search space."""
    if path.suffix == ".yaml":
        lines = _commented(path.read_text(encoding="utf-8"))
    else:
        lines = [span for span in spans(path) if span.startswith("raysweep ")]
        for one in blocks(path):
            lines += _commented(one.text) if one.language == "yaml" else _typed(one.text)
        lines += _typed("\n".join(re.findall("^    (.*)$", prose(path), re.MULTILINE)))  # indented code
    for line in lines:
        yield shlex.split(_COST.sub("", line), comments=True)[1:]


def _commented(text: str) -> list[str]:
    return [line[2:] for line in text.splitlines() if re.match(r"# raysweep \w", line)]


def _typed(text: str) -> list[str]:
    lines = [line.removeprefix("$ ").replace("python cli.py", "raysweep") for line in text.splitlines()]
    return [line for line in lines if line.startswith("raysweep ")]


def installed(page: Path, root: Path, name: str) -> None:
    """Put what an installer leaves of the package *name* into *root*, with the entry point that *page* declares for it."""
    head, line = block(page, "pyproject.toml").strip().splitlines()
    group = head.removeprefix("[project.entry-points.").removesuffix("]").strip('"')
    info = root / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n".replace('"', ""))


def run_parts(root: Path, parts: Mapping[str, str]) -> dict[str, str]:
    """Run pieces of code in one Python, in the workspace *root*, with the package that lies there on its path.

    They share what is imported, which takes longer than they do, and nothing else. All must succeed.

    Returns:
        What each printed, by its name.
    """
    path = os.pathsep.join([str(root), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAYSWEEP_ROOT": str(root)}
    code = "".join(f"print({_MARK + name!r}, flush=True)\nexec({text!r}, {{}})\n" for name, text in parts.items())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(part.split("\n", 1) for part in done.stdout.split(_MARK)[1:])
