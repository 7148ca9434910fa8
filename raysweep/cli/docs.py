"""Pages of ``docs/`` that are made from the code: ``python -m raysweep.cli.docs errors > docs/errors.md``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence

from raysweep import errors
from raysweep.cli.errors import EXIT_CODES
from raysweep.errors import NameUnknownError, RaysweepError, nearest
from raysweep.lazy import lazy

_PART = re.compile(r"^(Cause|Cure): ", re.MULTILINE)


def error_classes() -> dict[str, type[RaysweepError]]:
    """Return every error by code; of classes that share a code, the base."""

    def family(kind: type[RaysweepError]) -> Iterator[type[RaysweepError]]:
        yield kind
        for child in kind.__subclasses__():
            # Tests define errors of their own, and other packages may.
            if child.__module__ == errors.__name__:
                yield from family(child)

    by_code: dict[str, type[RaysweepError]] = {}
    for kind in family(RaysweepError):
        # Bases come first, so a class that only refines one is not a section of its own.
        by_code.setdefault(kind.code, kind)
    return dict(sorted(by_code.items()))


def explain(code: str) -> str:
    """Return what an error means: its claim, cause and cure.

    Raises:
        NameUnknownError: there is no such code.
    """
    known = error_classes()
    kind = known.get(code.upper())
    if kind is None:
        raise NameUnknownError(f"unknown error code '{code}'", hint=nearest(code.upper(), known))
    return f"{kind.code}  {inspect.getdoc(kind)}".replace("``", "`")


def errors_page() -> str:
    """Return ``docs/errors.md``."""
    lines = [
        "# Errors",
        "",
        "Made from `raysweep/errors.py`; do not edit: `python -m raysweep.cli.docs errors > docs/errors.md`.",
        "On the command line: `raysweep doctor --explain E-NAME`; `--debug` with any command prints the traceback.",
        "",
        "| exit code | means |",
        "|--:|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    for code, kind in error_classes().items():
        text = _PART.sub(r"**\1.** ", inspect.getdoc(kind) or "").replace("``", "`")
        paragraphs = re.sub(r"\n+\*\*", "\n\n**", text)
        lines += [f"## {code}", "", f"*{kind.__name__}.* {paragraphs}", ""]
    return "\n".join(lines)


def keys_page() -> str:
    """Return ``docs/keys.md``."""
    # Lazily: errors are explained without the editors, whose keys the other page lists.
    page: str = lazy("raysweep.cli.reference").keys_page()
    return page


def architecture_picture() -> str:
    """Return ``docs/architecture.svg``."""
    svg: str = lazy("raysweep.testing.architecture").picture()
    return svg


PAGES = {"architecture": architecture_picture, "errors": errors_page, "keys": keys_page}


def main(argv: Sequence[str]) -> int:
    """Print the page called by its name."""
    if len(argv) != 1 or argv[0] not in PAGES:
        print(f"usage: python -m raysweep.cli.docs {{{'|'.join(PAGES)}}}", file=sys.stderr)
        return 2
    print(PAGES[argv[0]](), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
