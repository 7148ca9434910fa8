"""Which texts of a trial may be too long for its model, found out before any work starts and without a tokenizer.

A tokenizer gives a text at most as many ids as it has bytes, BOS and SentencePiece's first space aside; so bytes bound tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysweep.records import EditRecord

ASIDE = 2  # BOS, and the space that SentencePiece puts before a text
ENERGY_WIDTH = 512  # the longest row from which SimIE's unit of λ is taken


def longest_text(records: Iterable[EditRecord]) -> tuple[int, str]:
    """Return the largest number of tokens that a text of *records* may have, and the id of its record."""
    sizes = ((max(_bytes(text) for text in _texts(record)) + ASIDE, record.id) for record in records)
    return max(sizes, default=(0, ""))


def _texts(record: EditRecord) -> Iterator[str]:
    """Yield every text in which a model sees *record*."""
    yield f"{record.prompt}  {record.target}"  # two spaces where a target has one of its own
    yield record.unrelated
    yield from (f"{probe.prompt}  {probe.target}" for probe in record.probes)


def _bytes(text: str) -> int:
    return len(text.encode())


def context_tokens(config: Any) -> int:
    """Return how many tokens the longest context template anywhere in a component's *config* may add to a prompt."""
    found = 0
    if isinstance(config, Mapping):
        lengths, templates = config.get("lengths"), config.get("templates")
        if templates is not None:
            found = max((_bytes(template) for template in templates), default=0)
        elif lengths is not None:
            found = max((int(length) for length, _ in lengths), default=0) + ASIDE
        return max([found, *(context_tokens(value) for value in config.values())])
    return found


def text_rows(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Yield how long the rows are that a component with *config* cuts out of a text, and the key that says so."""
    if not isinstance(config, Mapping):
        return
    if "text" in config and "width" in config:
        yield int(config["width"]), ".".join((*path, "width"))
    if isinstance(config.get("lam"), Mapping) and "energy" in config["lam"]:
        yield ENERGY_WIDTH, ".".join((*path, "lam.energy"))
    for key, value in config.items():
        yield from text_rows(value, (*path, str(key)))
