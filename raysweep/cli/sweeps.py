"""Several sweeps side by side, each with what tells its labels from those of the others."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.results.tables import Sweep, open_sweep
from raysweep.workspace import Workspace


def opened(sweeps: Sequence[str], workspace: Workspace, *, everything: bool = False) -> list[tuple[Sweep, str]]:
    """Return each of *sweeps* with what goes before its labels, which tells it from the others."""
    found = [open_sweep(name, workspace, everything=everything) for name in sweeps]
    if len(found) == 1:
        return [(found[0], "")]
    names = [sweep.name for sweep in found]
    alike = len(set(names)) < len(set(sweeps))  # folders of one name in different places
    return [(sweep, f"{given if alike else sweep.name}: ") for sweep, given in zip(found, sweeps, strict=True)]
