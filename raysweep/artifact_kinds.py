"""The kinds of artifacts that editors and studies share, with the version of the numbers that each holds.

A version is a part of the artifact's digest and of the key of every trial that may use one. Raise it when the numbers change.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS: Mapping[str, int] = {
    "answers": 1,
    "contexts": 2,  # 2: without replacement characters
    "energy": 1,
    "hypernetwork": 1,
    "moments": 1,
    "projector": 1,
}
