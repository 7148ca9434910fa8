"""``docs/keys.md`` names every key that can be written, with its meaning, and is what the code says today."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from raysweep.cli.reference import ARM, FILE, Key, keys_of, keys_page, sections
from raysweep.config.overrides import TOP_KEYS
from raysweep.config.schema import Spec
from raysweep.config.sweep_reader import ARM_KEYS
from tests.docs.pages import ROOT


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs/keys.md").read_text() == keys_page(), "run `make docs`"


@pytest.mark.parametrize("title", sections())
def test_every_key_has_a_meaning(title: str) -> None:
    silent = [key.name for key in keys_of(sections()[title]) if not key.meaning]
    assert not silent, f"no entry under 'Attributes:' in the docstring that checks {title}: {silent}"


def test_the_sections_written_by_hand_name_what_the_reader_accepts() -> None:
    assert [key.name for key in FILE] == list(TOP_KEYS)
    assert sorted(key.name for key in ARM) == sorted(ARM_KEYS)


class Inner(Spec):
    """Part of a spec.

    Attributes:
        width (tokens): how wide
            it is.
    """

    width: Annotated[int, Field(ge=1)]


class Outer(Spec):
    """A spec.

    Attributes:
        kind: which.
        low, high: bounds.
        inner: what is within.
    """

    kind: Literal["a", "b"] = "a"
    low: Annotated[float, Field(gt=0)] | None = None
    high: tuple[int, ...] = (1, 2)
    inner: Inner | None = None


def test_a_key_is_read_from_its_field_and_its_docstring() -> None:
    assert list(keys_of(Outer)) == [
        Key("kind", "`a` or `b`", "`a`", "", "which."),
        Key("low", "number > 0, or null", "`null`", "", "bounds."),
        Key("high", "list of whole number", "`[1, 2]`", "", "bounds."),
        Key("inner", "mapping, or null", "`null`", "", "what is within."),
        Key("inner.width", "whole number ≥ 1", "", "tokens", "how wide it is."),
    ]
