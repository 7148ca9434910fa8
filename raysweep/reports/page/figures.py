"""A figure as part of a page: SVG without what a page has no use for, with ids of its own, a title and a description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from raysweep.reports import plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IDS = re.compile(r'(\bid="|url\(#|href="#)')
_NUMBER = re.compile(r"(?<=[ \-])(\d+\.\d{3})\d+")


def inline(figure: Figure, name: str, *, title: str, about: str) -> Markup:
    """Return *figure* as an ``<svg>`` element for a page.

    Args:
        figure: it is closed.
        name: goes before every id in it: figures of one page must not share any.
        title: what it is, for screen readers and as a tooltip.
        about: what it shows, in a sentence.
    """
    text = plot_style.drawn(figure, "svg").decode()
    body = text[text.index("<svg") :]
    # The metadata hold addresses of vocabularies; a page that may load nothing should name nothing to load.
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = _IDS.sub(rf"\g<1>{name}-", body)
    # Coordinates are in points; a thousandth of one is not seen, and they are most of the page.
    body = _NUMBER.sub(r"\1", body)
    width, height = (re.search(rf'<svg[^>]* {side}="([^"]*)"', body) for side in ("width", "height"))
    assert width is not None
    assert height is not None
    head = f'<svg role="img" aria-labelledby="{name}-t {name}-d"'
    named = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(about)}</desc>'
    opened = re.sub(r"<svg", head, body, count=1)
    # Sizes are the page's to choose; the view box keeps the proportions.
    opened = re.sub(r' (width|height)="[\d.]+pt"', "", opened, count=2)
    end = opened.index(">") + 1
    return Markup(opened[:end] + named + opened[end:])
