"""Layouts of records that other projects publish, told by their fields: a dataset that does not read one says which does."""

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
        dataset: that reads it; empty = none does.
    """

    name: str
    fields: frozenset[str]
    nested: frozenset[str] = frozenset()
    cure: str = ""
    dataset: str = ""

    def fits(self, row: object) -> bool:
        """Tell whether *row* is of this layout."""
        return (
            isinstance(row, Mapping)
            and self.fields <= row.keys()
            and all(isinstance(row[key], Mapping | list) for key in self.nested)
        )


_ZSRE = "'src', 'alt', 'subject', 'rephrase', 'loc', 'loc_ans'"


def _read_as(name: str, dataset: str, fields: set[str], nested: set[str] | None = None) -> Layout:
    return Layout(name, frozenset(fields), frozenset(nested or ()), f"data.name: {dataset} reads it", dataset)


# By keys that no layout of another dataset has. The first that fits is named.
LAYOUTS = (
    _read_as("KnowEdit", "knowedit", {"prompt", "target_new", "locality"}, {"locality"}),
    _read_as("KnowEdit", "knowedit", {"prompt", "target_new", "portability"}, {"portability"}),
    _read_as("KnowEdit", "knowedit", {"text", "labels", "concept"}),
    _read_as("QAEdit", "qaedit", {"prompt", "target", "locality"}, {"locality"}),
    _read_as("WikiBigEdit", "wikibigedit", {"update", "ans"}),
    _read_as("MQuAKE", "mquake", {"requested_rewrite", "questions"}, {"requested_rewrite", "questions"}),
    _read_as("RippleEdits", "rippleedits", {"example_type", "edit"}, {"edit"}),
    _read_as("UniEdit", "uniedit", {"edit", "generality", "locality"}, {"edit", "generality"}),
    _read_as("UltraEditBench", "ultraeditbench", {"prompt", "ans", "rephrase_prompt", "loc"}),
    _read_as("FEVER", "fever", {"prompt", "equiv_prompt", "alt"}, {"equiv_prompt"}),
    _read_as("HalluEditBench", "hallueditbench", {"question", "object", "locality_question"}),
    Layout(
        "the original zsRE (KnowledgeEditor, MEND)",
        frozenset({"input", "output"}),
        frozenset({"output"}),
        f"it has no subjects and no locality questions; write rows with {_ZSRE}, of which only the first two are needed",
    ),
)


def layout_of(row: object) -> Layout | None:
    """Return the layout of *row* if it is one of those that are known by their fields.

    >>> layout_of({"update": "Who?", "ans": "Bo"}).name
    'WikiBigEdit'
    """
    return next((layout for layout in LAYOUTS if layout.fits(row)), None)
