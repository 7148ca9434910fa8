"""Which texts of a trial may be too long for its model, found out before any work starts and without a tokenizer.

A tokenizer gives a text at most as many ids as it has bytes, BOS and SentencePiece's first space aside; so bytes bound tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raysweep.config.editor_schema import EditorConfig, EditorSpec
from raysweep.records import EditRecord

ASIDE = 2  # BOS, and the space that SentencePiece puts before a text


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
    for width, key in (row for config in configs for row in config.text_rows()):
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


def context_tokens(config: EditorConfig) -> int:
    """Return how many tokens the longest context template of a component with *config* may add to a prompt."""
    longest = 0
    for spec in config.context_specs():
        if spec.templates is not None:
            here = max((_bytes(template) for template in spec.templates), default=0)
        else:
            here = max((length for length, _ in spec.lengths), default=0) + ASIDE
        longest = max(longest, here)
    return longest
