"""How counts, durations, trials and failures are put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysweep.config import names
from raysweep.config.names import TrialName

VIEW_NAMES = {"ppl": "PPL", "ppl_median": "PPL median", "ppl_expmean": "PPL exp-mean"}


def counted(number: int, one: str, many: str) -> str:
    """Return ``1 trial`` or ``2 trials``."""
    return f"{number:,} {one if number == 1 else many}"


def clock(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``12.3 s``.

    >>> clock(3723), clock(12.34)
    ('1:02:03', '12.3 s')
    """
    if math.isnan(seconds):
        return "–"
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def brief(failure: str) -> str:
    """Return a stored failure on one line, and its hint on a second one if it has a hint.

    >>> brief("ModelError: no weights\\n    fetch them")
    'ModelError: no weights\\n    fetch them'
    """
    head, *rest = failure.splitlines() or [""]
    hint = next((line.strip() for line in rest if line.startswith("    ") and line.strip()), "")
    return f"{head}\n    {hint}" if hint else head


def trial_labels(places: Sequence[TrialName]) -> dict[str, str]:
    """Return what to call each trial, by key: ``memit+simie lam=10 seed=0``, with all names of one that has several."""
    texts = names.labels([(n.arm, names.without_seed(n.point)) for n in places])
    by_key: dict[str, list[str]] = {}
    for name, text in zip(places, texts, strict=True):
        seed = f" seed={name.point['seed']}" if "seed" in name.point else ""
        by_key.setdefault(name.key, []).append(f"{text}{seed}")
    return {key: " = ".join(of) for key, of in by_key.items()}
