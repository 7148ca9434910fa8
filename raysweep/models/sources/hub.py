"""Hub models: which commit a revision is, from the local cache or by asking the hub.

A branch such as ``main`` is a name that moves; a key must hold what was loaded. So the digest of a hub model is its commit,
``hub:owner/model@<40 hex digits>``; a digest that ends otherwise says that the commit is not known yet.
"""

from __future__ import annotations

import re
from pathlib import Path

_PREFIX = "hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def digest_of(repository: str, revision: str) -> str:
    """Return the digest of a hub model.

    >>> digest_of("gpt2", "main")
    'hub:gpt2@main'
    """
    return f"{_PREFIX}{repository}@{revision}"


def commit_of(digest: str) -> str:
    """Return the commit that a hub model's *digest* names, else an empty text.

    >>> commit_of("hub:gpt2@main"), commit_of("hub:gpt2@" + 40 * "a") == 40 * "a"
    ('', True)
    """
    last = digest.rpartition("@")[2]
    return last if digest.startswith(_PREFIX) and _COMMIT.fullmatch(last) else ""


def cached_commit(repository: str, revision: str) -> str:
    """Return the commit of *revision* if its configuration and tokenizer are in the local cache, else an empty text."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision or "main")
    if not isinstance(config, str):
        return ""
    # the cache's folders are named by commit
    folder = Path(config).parent
    tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return folder.name if tokenizer and _COMMIT.fullmatch(folder.name) else ""
