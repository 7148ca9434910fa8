"""How to write what was written wrongly: quoted names, and domains in the place where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raysweep.config.space import is_domain
from raysweep.jsontypes import Json


def quoted(key: str, value: Json) -> str:
    """Return how to write *value*, which YAML takes for something else, as a name; empty if it can be none.

    >>> quoted("sweep", 20240101)
    'quote it, so that YAML takes it for text: sweep: "20240101"'
    """
    if value is None:
        return 'in YAML null means nothing; quote the name: "null"'
    if isinstance(value, bool):
        return f'quote it, so that YAML takes it for text: {key}: "{str(value).lower()}"'
    if isinstance(value, int | float):
        return f'quote it, so that YAML takes it for text: {key}: "{value}"'
    return ""


def nested_domains(tree: Json, key: str) -> Iterator[str]:
    """Yield, for each domain inside the mapping *tree* at *key*, the line that should stand in its place.

    >>> list(nested_domains({"simie": {"lam": {"grid": [1, 10]}}}, "wrap"))
    ['wrap.simie.lam: {grid: [1, 10]}']
    """
    if is_domain(tree):
        ((kind, values),) = tree.items()
        shown = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
        yield f"{key}: {{{kind}: [{shown}]}}"
    elif isinstance(tree, Mapping):
        for name, below in tree.items():
            yield from nested_domains(below, f"{key}.{name}")
