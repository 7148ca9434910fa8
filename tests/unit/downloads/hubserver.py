"""The part of the Hugging Face hub's web interface that is used, on the loopback address."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.unit.downloads.server import Server, server

COMMIT = "c" * 40


class Hub(Server):
    """Serves repositories; files of ``large`` have a sha256, the others a git blob id, as on the hub."""

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: str = "models",
        revision: str = "main",
        commit: str = COMMIT,
        large: str = ".safetensors",
    ) -> None:
        """Serve a repository at *revision* and at *commit*."""
        siblings = []
        for path, content in files.items():
            entry: dict[str, object] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path.endswith(large):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(entry)
            prefix = "datasets/" if kind == "datasets" else ""
            self.files[f"{prefix}{name}/resolve/{commit}/{path}"] = content
        listing = json.dumps({"sha": commit, "siblings": siblings}).encode()
        for one in (revision, commit):
            self.files[f"api/{kind}/{name}/revision/{one}"] = listing


@contextmanager
def hub() -> Iterator[Hub]:
    """Yield a hub that runs."""
    with server(Hub()) as state:
        assert isinstance(state, Hub)
        yield state
