"""Several sweeps side by side, each with what tells its labels from those of the others."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.results.tables import Sweep, open_results
from raysweep.workspace import Workspace

LabelledSweep = tuple[Sweep, str]  # a sweep, and what goes before its labels


def open_labelled(
    sweeps: Sequence[str | LabelledSweep], workspace: Workspace, *, everything: bool = False
) -> list[LabelledSweep]:
    """Return each of *sweeps* with what goes before its labels, which tells it from the others; what is open stays as it is."""
    texts = [sweep for sweep in sweeps if isinstance(sweep, str)]
    # They come opened, all of them; opened again, every file would be read again.
    if len(texts) < len(sweeps):
        return [sweep for sweep in sweeps if not isinstance(sweep, str)]
    opened = [open_results(name, workspace, everything=everything) for name in texts]
    if len(opened) == 1:
        return [(opened[0], "")]
    names = [sweep.name for sweep in opened]
    # The same sweep in two folders: then the folder, not the name, tells them apart.
    alike = len(set(names)) < len(set(texts))  # folders of one name in different places
    return [(sweep, f"{name if alike else sweep.name}: ") for sweep, name in zip(opened, texts, strict=True)]
