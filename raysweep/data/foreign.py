"""Layouts of records that other projects publish and that are not read here, told by their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout of rows.

    Attributes:
        name: whose it is.
        fields: keys that each of its rows has.
        nested: those of them that hold lists or objects; a text there is another layout's.
        cure: how to make it one that is read.
    """

    name: str
    fields: frozenset[str]
    nested: frozenset[str] = frozenset()
    cure: str = ""

    def fits(self, row: object) -> bool:
        """Tell whether *row* is of this layout."""
        return (
            isinstance(row, Mapping)
            and self.fields <= row.keys()
            and all(isinstance(row[key], Mapping | list) for key in self.nested)
        )


_COUNTERFACT = "'prompt', 'target_new', 'subject', 'rephrase_prompt', 'locality_prompt', 'locality_ground_truth'"
_ZSRE = "'src', 'alt', 'subject', 'rephrase', 'loc', 'loc_ans'"
# By keys that no layout of ours has. The first that fits is named.
LAYOUTS = (
    Layout(
        "KnowEdit",
        frozenset({"prompt", "target_new", "locality"}),
        frozenset({"locality"}),
        f"its lists of locality and portability probes are not read; flatten each row to {_COUNTERFACT} (data.name: counterfact)",
    ),
    Layout(
        "KnowEdit",
        frozenset({"prompt", "target_new", "portability"}),
        frozenset({"portability"}),
        f"its lists of portability probes are not read; flatten each row to {_COUNTERFACT} (data.name: counterfact)",
    ),
    Layout(
        "WikiBigEdit",
        frozenset({"update", "ans"}),
        cure=f"rename 'update' to 'src' and 'ans' to 'alt' (data.name: zsre reads {_ZSRE}); 'personas' and 'mhop' are not read",
    ),
    Layout(
        "MQuAKE",
        frozenset({"requested_rewrite", "questions"}),
        frozenset({"requested_rewrite", "questions"}),
        "a row has several rewrites and multi-hop questions; write one row per rewrite (data.name: counterfact)",
    ),
    Layout(
        "RippleEdits",
        frozenset({"example_type", "edit"}),
        frozenset({"edit"}),
        f"write one row per edit with {_COUNTERFACT} (data.name: counterfact)",
    ),
    Layout(
        "the original zsRE (KnowledgeEditor, MEND)",
        frozenset({"input", "output"}),
        frozenset({"output"}),
        f"it has no subjects and no locality questions; write rows with {_ZSRE}, of which only the first two are needed",
    ),
)


def layout_of(row: object) -> Layout | None:
    """Return the layout of *row* if it is one of those that are known but not read.

    >>> layout_of({"update": "Who?", "ans": "Bo"}).name
    'WikiBigEdit'
    """
    return next((layout for layout in LAYOUTS if layout.fits(row)), None)
