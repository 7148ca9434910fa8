"""Content-addressed store of expensive inputs: second moments, context templates, pretrained models.

``artifacts/<kind>/<digest>/{spec.json, data.safetensors, meta.json, COMPLETE}``; the digest covers everything the artifact
depends on. One builder per artifact: a claim file with a heartbeat; others wait; a stale claim is taken over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.atomic import write_folder
from raysweep.errors import ArtifactError
from raysweep.hashing import canonical, digest, file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from raysweep.config.schema import DataSpec, TextSpec

log = logging.getLogger(__name__)

KEPT = 128  # artifacts that a store holds in memory, as mapped files; the oldest goes first
Built = tuple[Mapping[str, "Tensor"], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    """An expensive input, named by everything it depends on.

    Attributes:
        kind: ``moments``, ``projector``, ``contexts``, …; the folder name in the artifact store.
        inputs: canonical data that the artifact depends on besides the model (layer, text digest, counts, seed).
        builder: ``module:function`` called as ``function(lm, requests, texts)`` on the pristine model, returning
            ``[(tensors, metadata), …]``, one per request; requests with the same builder are served together.
        model: the model it is computed with (``lm.identity``: weights, precision, tokenizer, BOS policy); empty = one that nobody
            can tell from another; None = it is computed without a model.
        sources: other artifacts this one is computed from, by name; they are part of its identity. The builder of such a
            request gets, in place of *texts*, one mapping of artifacts per request.
        data: records this one is computed from; ``inputs`` must cover them. The builder of such a request gets, in place of
            *texts*, the records.
        where: how to find what ``inputs`` names (paths); not part of the artifact's identity.
        text: the text whose iterator the builder gets as *texts*; ``inputs`` must cover it.
        version: of the builder's numbers; part of the identity. Raise it when they change (``raysweep/artifact_kinds.py``).
        threads: CPU threads it is computed with, which move the last bits; filled in by who computes it.
    """

    kind: str
    inputs: Mapping[str, Any]
    builder: str
    model: str | None = field(kw_only=True)
    sources: Mapping[str, ArtifactRequest] = field(default_factory=dict)
    data: DataSpec | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    text: TextSpec | None = None
    version: int = 1
    threads: int = 0

    @property
    def known(self) -> bool:
        """Whether everything it is computed from has a digest; if not, it must not be kept."""
        named = self.model != "" and (self.text is None or bool(self.text.digest))
        return named and all(source.known for source in self.sources.values())

    def identity(self) -> dict[str, object]:
        """Return everything that the artifact depends on, as plain data, without what is empty; its digest is the hash of it."""
        sources = {name: source.identity() for name, source in self.sources.items()}
        # Empty ones are left out, so that a field added later moves no digest of what does not use it.
        optional = {"model": self.model, "threads": self.threads, "sources": sources}
        named = {"kind": self.kind, "version": self.version, "inputs": self.inputs}
        return named | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Tensors (CPU) and metadata of one artifact, with its digest."""

    digest: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


class ArtifactStore:
    """A folder of artifacts.

    Promises: an artifact appears complete or not at all; it is built once however many trials ask at the same time; a
    file that does not match its recorded hash is refused, never used; what is computed with a model or from a text that nobody
    can tell from another is not kept. An artifact that was read is handed out again, without another look at its bytes, as long
    as its file is the same and nobody wrote into its tensors: the trials of a process map each file once, and those of a node
    share its pages.
    """

    def __init__(self, root: Path, *, beat: float = 5.0, stale: float = 60.0) -> None:
        self.root = root
        self.beat = beat
        self.stale = stale
        self._read: dict[Path, tuple[tuple[int, int, int], Artifact]] = {}

    def folder(self, request: ArtifactRequest) -> Path:
        """Return where the artifact of *request* lies or will lie."""
        return self.root / request.kind / digest(request.identity())

    def get(self, request: ArtifactRequest) -> Artifact | None:
        """Return the artifact if it is complete, else None.

        Raises:
            ArtifactError: its file does not match the recorded hash.
        """
        folder = self.folder(request)
        seal = folder / "COMPLETE"
        if not seal.is_file():
            return None
        from safetensors.torch import load_file

        data = folder / "data.safetensors"
        mark, artifact = self._read.get(folder, (None, None))
        if artifact is not None and mark == _mark(data) and not any(t._version for t in artifact.tensors.values()):
            return artifact
        # COMPLETE holds the hash of the tensors, so a file that was cut short or replaced is noticed.
        if not data.is_file() or file_digest(data) != seal.read_text().strip():
            raise ArtifactError(f"artifact {folder} does not match its recorded hash", hint="delete that folder")
        meta = json.loads((folder / "meta.json").read_text())
        artifact = Artifact(folder.name, load_file(data), meta)
        while len(self._read) >= KEPT:
            del self._read[next(iter(self._read))]
        self._read[folder] = _mark(data), artifact
        return artifact

    def get_or_build(self, request: ArtifactRequest, build: Callable[[], Built]) -> Artifact:
        """Return the artifact of *request*, building it if nobody has; wait if somebody is building it now."""
        # Without a digest of everything it depends on, a later run could take it for another one's.
        if not request.known:
            return Artifact("", *build())
        while True:
            artifact = self.get(request)
            if artifact is not None:
                return artifact
            folder = self.folder(request)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with self._claim(folder) as mine:
                if mine:
                    # Somebody may have built it between the look above and the claim.
                    if self.get(request) is None:
                        self._write(folder, request, *build())
                else:
                    time.sleep(min(self.beat, 0.5))

    def _write(
        self, folder: Path, request: ArtifactRequest, tensors: Mapping[str, Tensor], meta: Mapping[str, object]
    ) -> None:
        from safetensors.torch import save_file

        with write_folder(folder) as draft:
            spec = canonical({**request.identity(), "builder": request.builder})
            (draft / "spec.json").write_text(json.dumps(spec, indent=1, sort_keys=True))
            (draft / "meta.json").write_text(json.dumps(canonical(meta), indent=1, sort_keys=True))
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / "data.safetensors")
            # The seal is written last; the folder gets its name only after that.
            (draft / "COMPLETE").write_text(file_digest(draft / "data.safetensors"))

    @contextmanager
    def _claim(self, folder: Path) -> Iterator[bool]:
        """Hold the exclusive claim on *folder*; yield whether it was obtained."""
        path = folder.with_name(f".{folder.name}.claim")
        token = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        try:
            # O_EXCL is the lock: of several processes one creates the file.
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            self._take_over_if_stale(path)
            yield False
            return
        os.write(handle, token.encode())
        os.close(handle)
        stop = threading.Event()
        thread = threading.Thread(target=self._heartbeat, args=(path, stop), daemon=True)
        thread.start()
        try:
            yield True
        finally:
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)

    def _heartbeat(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self.beat):
            try:
                # The claim's age is how others tell that we live; the file's own time needs no reading.
                os.utime(path)
            except FileNotFoundError:
                return

    def _take_over_if_stale(self, path: Path) -> None:
        try:
            age = time.time() - path.stat().st_mtime
            owner = path.read_text()
        except FileNotFoundError:
            return
        host, _, rest = owner.partition(":")
        # On this machine the process can be asked for; elsewhere only the age of the claim tells.
        dead = host == socket.gethostname() and rest and not _alive(rest.partition(":")[0])
        if dead or age > self.stale:
            log.warning("taking over the claim of %s on %s, silent for %.0f s", owner, path.name, age)
            path.unlink(missing_ok=True)


def _mark(file: Path) -> tuple[int, int, int]:
    """Return what stands for the content of *file* within one process: size, time, and the file itself."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
