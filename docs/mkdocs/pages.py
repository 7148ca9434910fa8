"""Hooks of mkdocs: which files are pages, and links to what is no page.

The pages lie all over the repository (README.md, docs, search_spaces …) and link to each other and to source files, as GitHub
shows them. The site has the same folders, so links between pages hold as they are; a link to any other file becomes one to GitHub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from contents import PATTERNS, reference_pages
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_TITLE = re.compile(r"^(```\w+ )title=([^\n\"]+)$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def pages() -> list[str]:
    """Return the paths of all pages and pictures that lie in the repository."""
    found = {path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return sorted(found)


def on_config(config: Any) -> Any:
    """Put the reference into the navigation, and whatever page is not in it."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [*reference_pages()]
    listed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    more = [page for page in pages() if page.endswith(".md") and page not in listed]
    config.nav.append({"More": more})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Replace the files of docs/ by the pages under the names that they have in the repository."""
    theme = [file for file in files if file.src_uri not in {p.removeprefix("docs/") for p in pages()}]
    kept = [file for file in theme if not file.src_uri.startswith("mkdocs/")]
    own = [File.generated(config, page, abs_src_path=str(ROOT / page)) for page in pages()]
    made = [File.generated(config, path, content=text) for path, text in reference_pages().items()]
    return Files([*kept, *own, *made])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files that are no pages at the repository."""
    here = PurePosixPath(page.file.src_uri).parent

    def pointed(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[0]
        path = os.path.normpath(here / target)
        if files.get_file_from_path(path) is not None:
            return match[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        # A folder with a page of its own is that page.
        if kind == "tree" and files.get_file_from_path(f"{path}/README.md") is not None:
            return f"{match[1]}{target.rstrip('/')}/README.md{match[3]}"
        if not (ROOT / path).exists():
            return match[0]  # which mkdocs then warns of
        return f"{match[1]}{config.repo_url.rstrip('/')}/{kind}/main/{path}{f'#{anchor}' if anchor else ''}{match[3]}"

    # GitHub takes a block's title bare, the site wants it in quotes.
    return _LINK.sub(pointed, _TITLE.sub(r'\1title="\2"', markdown))
