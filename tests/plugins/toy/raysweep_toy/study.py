"""A study: the lifelong one, under a name and with a ranking of its own."""

from __future__ import annotations

from typing import ClassVar

from raysweep.studies.lifelong import Lifelong


class Twice(Lifelong):
    """Edit, measure, and rank by what is retained of the facts alone."""

    name: ClassVar[str] = "twice"
    version: ClassVar[int] = 7
    metric: ClassVar[str] = "retained/rel"
