"""How configurations are drawn, so that forty of them can be told apart: colour by editor, line by wrapper, legend outside."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from raysweep.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dashes = (
    str | tuple[float, tuple[float, ...]]
)  # a name of matplotlib's, or an offset and lengths of ink and gap in line widths

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#332288", "#AA4466",
    "#6699CC",
)  # fmt: skip
"""Okabe and Ito's eight, then four of Tol's: for people who see colours differently, too."""
MARKERS = "osD^vPX*<>hp"
PLAIN: Dashes = (0, (4, 2))
LINES: tuple[Dashes, ...] = ("-", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
LIGHTEST, DARKEST = 0.62, 0.24  # lightness of the shades within one editor and wrapper
CROWDED = 12  # configurations from which on panels are larger and bands fainter


@dataclass(frozen=True, slots=True)
class Style:
    """How one configuration is drawn: a colour, a dash pattern and a marker."""

    colour: str
    line: Dashes
    marker: str


def styles(editors: Mapping[str, str]) -> dict[str, Style]:
    """Return a style per label, no two alike among up to twelve configurations of one editor and wrapper.

    Args:
        editors: the editor of each label with its wrappers, such as ``memit+simie``, in the order of the legend.

    An editor has a hue; plain editors are dashed, each set of wrappers has a line of its own (the first one a solid line). Several
    configurations of one editor and wrapper get shades from light to dark, and different markers.
    """
    families = list(dict.fromkeys(name.partition("+")[0] for name in editors.values()))
    wrappers = list(dict.fromkeys(name.partition("+")[2] for name in editors.values() if "+" in name))
    out = {}
    for name in dict.fromkeys(editors.values()):
        family, _, wrapper = name.partition("+")
        members = [label for label, other in editors.items() if other == name]
        base = COLOURS[families.index(family) % len(COLOURS)]
        line = LINES[wrappers.index(wrapper) % len(LINES)] if wrapper else PLAIN
        for i, label in enumerate(members):
            colour = base if len(members) == 1 else _shade(base, i / (len(members) - 1))
            out[label] = Style(colour, line, MARKERS[i % len(MARKERS)])
    return {label: out[label] for label in editors}


def _shade(colour: str, at: float) -> str:
    """Return *colour* with another lightness: the lightest at 0, the darkest at 1."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    mixed = colorsys.hls_to_rgb(hue, LIGHTEST + at * (DARKEST - LIGHTEST), saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)


def pyplot() -> ModuleType:
    """Return ``matplotlib.pyplot`` for figures that become files: no window is ever opened."""
    import matplotlib

    # Before pyplot: on a machine without a display the default back end ends in an error.
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    loaded: ModuleType = module
    return loaded


def band_alpha(count: int) -> float:
    """Return how opaque the interval of each of *count* configurations is: the more there are, the fainter."""
    return 0.16 if count <= CROWDED // 2 else 0.09 if count <= CROWDED else 0.04


def panels(count: int, titles: Sequence[str], *, share_x: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel per title: in a row, or in a larger square where there are many configurations."""
    crowded = count > CROWDED
    rows, columns = (2, 2) if crowded else (1, len(titles))
    # "constrained" makes room for the legend outside, which tight_layout does not.
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(14, 8.4 if crowded else 3.6), sharey=True, sharex=share_x, dpi=150, layout="constrained"
    )
    flat = list(axes.flat)
    for axis, title in zip(flat, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, flat


def handle(style: Style) -> Artist:
    """Return what stands for *style* in a legend."""
    from matplotlib.lines import Line2D

    fill = "white" if style.line == PLAIN else style.colour
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, marker=style.marker, markersize=4.5, markerfacecolor=fill, linewidth=1.8
    )  # fmt: skip


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below the panels, in as many columns as fit, and make the figure as much higher."""
    size = 10 if len(labels) <= CROWDED else 8
    # How wide a legend is can only be measured on a drawn one, so each number of columns is tried.
    for columns in range(min(6, max(len(labels), 1)), 0, -1):
        # Labels are set afterwards: one that begins with "_" would be left out, and "$" would be read as mathematics.
        box = figure.legend(
            handles, ["x"] * len(labels), loc="outside lower center", ncols=columns, frameon=False, fontsize=size,
            handlelength=3.2, columnspacing=1.4,
        )  # fmt: skip
        for text, label in zip(box.get_texts(), labels, strict=True):
            text.set_parse_math(False)
            text.set_text(label)
        extent = box.get_window_extent()
        if extent.width <= figure.bbox.width * 0.98 or columns == 1:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        box.remove()


DATELESS: Mapping[str, Mapping[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What matplotlib writes of itself and of the time into each format, left out: equal figures are equal files."""


def save(figure: Figure, path: Path) -> None:
    """Write the figure, in the format that the name of *path* ends with; equal figures are equal files.

    Raises:
        SpecError: it is none of ``DATELESS``.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in DATELESS:
        raise SpecError(f"cannot draw into '{path.name}'", hint=f"end the name with one of: .{', .'.join(DATELESS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn(figure, kind))


def drawn(figure: Figure, kind: str) -> bytes:
    """Return the figure in a format of ``DATELESS``, and close it. The text of an SVG stays text, to be selected and searched."""
    from matplotlib import rc_context

    data = io.BytesIO()
    # Names of clips and markers are hashes, salted with a random number unless told otherwise.
    with rc_context({"svg.hashsalt": "raysweep", "svg.fonttype": "none"}):
        figure.savefig(data, format=kind, metadata=dict(DATELESS[kind]))
    pyplot().close(figure)
    return data.getvalue()
