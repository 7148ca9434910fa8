"""Which texts of a trial may be too long for its model, found out before any work starts and without a tokenizer.

A tokenizer gives a text at most as many ids as it has bytes, BOS and SentencePiece's first space aside; so bytes bound tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysweep.config.schema import EditorSpec
from raysweep.records import EditRecord

ASIDE = 2  # BOS, and the space that SentencePiece puts before a text
ENERGY_WIDTH = 512  # the longest row from which SimIE's unit of λ is taken


def refusals(
    model: str, limit: tuple[int, str], data: str, longest: tuple[int, str], editor: EditorSpec
) -> Iterator[tuple[str, str]]:
    """Yield a message and a hint for everything that may be longer than a row of *model* can be.

    Args:
        model: its name.
        limit: the most tokens of a row, and why.
        data: name of the dataset.
        longest: the most tokens that one of its texts may have, and the record.
        editor: with its wrappers; their contexts are put before prompts, and they read texts in rows.
    """
    tokens, why = limit
    configs = [editor.config, *(wrap.config for wrap in editor.wrap)]
    message = f"model '{model}' takes rows of at most {tokens} tokens, because {why}"
    size = longest[0] + max(context_tokens(config) for config in configs)
    if size > tokens:
        about = f"record {longest[1]} of '{data}' may have {size} in the longest context of '{editor.name}'"
        yield (
            f"{message}; {about}",
            "take shorter records, or a model of another rope_type (default, linear, llama3, yarn)",
        )
    for width, key in (row for config in configs for row in text_rows(config)):
        if width > tokens:
            yield (
                f"{message}; but {key} reads rows of {width}",
                f"set {key}: {tokens}" if key.endswith("width") else "give λ in absolute units",
            )


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
    longest = 0
    if isinstance(config, Mapping):
        lengths, templates = config.get("lengths"), config.get("templates")
        if templates is not None:
            longest = max((_bytes(template) for template in templates), default=0)
        elif lengths is not None:
            longest = max((int(length) for length, _ in lengths), default=0) + ASIDE
        return max([longest, *(context_tokens(value) for value in config.values())])
    return longest


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
