"""From the docstrings of raysweep to what mkdocstrings reads: roles become code, promises and examples sections."""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_PROMISES = re.compile(r"^( *Promises[^\n:]*)\n(?= +1\.)", re.MULTILINE)


class Plain(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of *obj*."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return *text* with its roles as code, ``Promises`` as a section of its own, and its examples as one.

    >>> plain("see :class:`~raysweep.rows.EvalRound`")
    'see `EvalRound`'
    """
    text = _ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2] if '~' in m[0] else m[1]}`", text)
    # Examples stand at the end: from the first prompt on everything belongs to them.
    before, prompt, after = text.partition("\n>>> ")
    if prompt:
        text = f"{before}\nExamples:\n{indent(prompt[1:] + after, '    ')}"
    return _PROMISES.sub(r"\1:\n", text)
