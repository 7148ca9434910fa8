"""Seeds derived from a root seed and a path; nothing is ever seeded globally."""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends only on *seed* and *path*.

    >>> derive(0, "edit", 3) == derive(0, "edit", 3) != derive(0, "edit", 4)
    True
    """
    text = "/".join([str(seed), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
