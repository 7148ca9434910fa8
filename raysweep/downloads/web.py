"""One file from the web, whole or not at all: resumed where it broke off, bounded, checked, and renamed into place last.

What comes is not trusted, nor what the server says of it. While it comes it lies beside its place as ``.NAME.part``, which no
reader takes for the file. It gets its name when its length is right and its digest is the wanted one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit, urlunsplit

from raysweep.atomic import replace_file

CHUNK = 1 << 20
SECONDS = 60.0  # without a byte
LARGEST = 1 << 40  # bytes of a file whose size nobody knows
_SAID_EVERY = 500 << 20  # bytes
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
Log = Callable[[str], None]


class DownloadError(Exception):
    """A file could not be had.

    Attributes:
        message: which file, from where, and why not.
        status: the server's answer, such as 404; 0 = there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file on the web, and what is known of it.

    Attributes:
        url: where it is; ``http`` or ``https``.
        size: bytes; 0 = not known.
        sha256: of its content, in hex digits; empty = not known.
        blob: its git blob id (sha1 over a header and the content); empty = not known.
        token: sent to the host of *url* and to no other.
    """

    url: str
    size: int = 0
    sha256: str = ""
    blob: str = ""
    token: str = ""

    def fault_of(self, file: Path) -> str:
        """Return in what *file* differs from what is known; empty = in nothing."""
        size = file.stat().st_size
        if self.size and size != self.size:
            return f"{size:,} bytes, expected {self.size:,}"
        for kind, expected in (("sha256", self.sha256), ("git blob id", self.blob)):
            actual = digest_of(file, blob=kind != "sha256") if expected else ""
            if actual != expected:
                return f"{kind} is {actual}, expected {expected}"
        return ""


def digest_of(file: Path, *, blob: bool = False) -> str:
    """Return the sha256 of *file*, or its git blob id, in hex digits."""
    with file.open("rb") as handle:
        if not blob:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        start = hashlib.sha1(b"blob %d\0" % os.fstat(handle.fileno()).st_size, usedforsecurity=False)
        return hashlib.file_digest(handle, lambda: start).hexdigest()


def download(remote: Remote, place: Path, report: Log = lambda _: None) -> Path:
    """Put the file *remote* at *place*, unless it is there; what a former call left is gone on with.

    Args:
        remote: the file.
        place: what it becomes; what lies there already is examined, not replaced.
        report: told what is being done.

    Raises:
        DownloadError: it cannot be had, is another file than expected, does not fit the disk, or another process fetches it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with only_one(place):
        if place.exists():
            fault = remote.fault_of(place)
            if fault:
                raise DownloadError(f"{place} is there, but is another file: {fault}; delete it, or move it away")
            return place
        part = part_of(place)
        # Only a digest tells whether what is here and what would come are of one file.
        if not remote.sha256 and not remote.blob:
            part.unlink(missing_ok=True)
        announced = _receive(remote, part, place.name, report)
        fault = remote.fault_of(part)
        if not fault and announced and part.stat().st_size != announced:
            fault = f"{part.stat().st_size:,} bytes, the server announced {announced:,}"
        if fault:
            # Else the next call would go on with what is wrong already.
            part.unlink()
            raise DownloadError(
                f"{place.name} from {bare(remote.url)} is not the expected file: {fault}; it was deleted"
            )
        replace_file(part, place)
    return place


def part_of(place: Path) -> Path:
    """Return where the file that becomes *place* lies until it is whole."""
    return place.with_name(f".{place.name}.part")


@contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Let one process at a time make *place*.

    Raises:
        DownloadError: another one is at it.
    """
    lock = place.with_name(f".{place.name}.lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise DownloadError(f"{place.name} is being fetched by another process; wait for it to end") from error
        except OSError:
            break  # a file system without locks: digests tell what two processes made of one file
        # Who held it before may have removed the file between our two calls: that lock would bind nobody.
        if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
            break
        os.close(handle)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def read_text(remote: Remote, *, largest: int) -> str:
    """Return the text at *remote*, which is no longer than *largest* bytes.

    Raises:
        DownloadError: it cannot be had, or is longer.
    """
    name = bare(remote.url)
    try:
        with _open(remote) as answer:
            content = answer.read(largest + 1)
    except (OSError, HTTPException, ValueError) as error:  # as below
        raise _unreachable(name, remote, error) from error
    if len(content) > largest:
        raise DownloadError(f"{name}: the answer is longer than {largest:,} bytes")
    return content.decode("utf-8", errors="replace")


def _receive(remote: Remote, part: Path, name: str, report: Log) -> int:
    """Get what is missing of *part*; return how long the server says that the whole is, 0 if it does not say.

    The server's answer says whether it goes on (206) or sends everything again (200).
    """
    have = part.stat().st_size if part.is_file() else 0
    # All of it is here, but was not examined: the last call ended in between.
    if remote.size and have >= remote.size:
        return 0
    _check_room(remote.size - have, part)
    size = f" ({remote.size / 1e6:,.1f} MB{f', {have / 1e6:,.1f} MB are here' if have else ''})" if remote.size else ""
    report(f"downloading {bare(remote.url)}{size}")
    try:
        with _open(remote, have) as answer:
            start, whole = _extent(answer, part, remote, name)
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                _copy(answer, file, remote.size or whole, name, report)
    # URLError, time-outs and broken connections are OSErrors; an address that is none is a ValueError.
    except (OSError, HTTPException, ValueError) as error:
        # The range is beyond the end of what the server has: what is here is of another file.
        if isinstance(error, HTTPError) and error.code == 416 and have:
            part.unlink()
            return _receive(remote, part, name, report)
        raise _unreachable(name, remote, error, part) from error
    received, wanted = part.stat().st_size, remote.size or whole
    if received < wanted:
        raise DownloadError(f"{name} broke off after {received:,} of {wanted:,} bytes, which are kept")
    if not wanted and not remote.sha256 and not remote.blob:
        part.unlink()
        raise DownloadError(
            f"{name}: neither its digest nor its size is known, and {bare(remote.url)} says neither: a part would pass for it"
        )
    return whole


def _extent(answer: HTTPResponse, part: Path, remote: Remote, name: str) -> tuple[int, int]:
    """Return where in the file the answer begins, and how long the server says that the whole file is; 0 = it does not say."""
    start = 0
    if answer.status == 206:
        start = part.stat().st_size
        stated = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        # A piece from elsewhere would be put at the wrong place.
        if stated is None or int(stated[1]) != start:
            part.unlink()
            got = answer.headers.get("Content-Range")
            raise DownloadError(f"{name}: asked for bytes from {start:,}, got {got!r}; the next call begins anew")
    length = answer.headers.get("Content-Length", "")
    whole = start + int(length) if length.isdecimal() else 0
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{name}: comes packed ({answer.headers['Content-Encoding']}), which was not asked for")
    # Said before gigabytes are on their way.
    if remote.size and whole not in (0, remote.size):
        raise DownloadError(f"{name}: the server announces {whole:,} bytes, expected {remote.size:,}: another edition?")
    return start, whole


def _copy(answer: HTTPResponse, file: BinaryIO, size: int, name: str, report: Log) -> None:
    """Write what comes to *file*, which may not grow beyond *size* bytes; 0 = nobody knows how large it is."""
    said = file.tell()
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        if file.tell() > (size or LARGEST):
            file.truncate(0)
            raise DownloadError(f"{name}: more than the {size or LARGEST:,} bytes that it may have; nothing is kept")
        if file.tell() - said >= _SAID_EVERY:
            said = file.tell()
            report(f"{name}: {said / 1e6:,.0f} MB{f' of {size / 1e6:,.0f}' if size else ''}")


def _check_room(missing: int, part: Path) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise DownloadError(f"{part.parent} has {free:,} bytes left, {missing:,} are needed")


def _unreachable(name: str, remote: Remote, error: Exception, part: Path | None = None) -> DownloadError:
    """Return what *error* is to a user: the server refuses, nobody answers, or the disk is full."""
    kept = f" ({part.stat().st_size:,} bytes are kept)" if part is not None and part.is_file() else ""
    whence = name if name == bare(remote.url) else f"{name}: {bare(remote.url)}"
    if isinstance(error, HTTPError):
        said = " ".join(error.msg.split())  # the library's sentence on a circle has several lines
        return DownloadError(f"{whence} answers {error.code} {said}{kept}", error.code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(f"{name}: the disk is full{kept}")
    why = error.reason if isinstance(error, URLError) else error
    return DownloadError(f"{whence} cannot be reached: {why}{kept}")


def _open(remote: Remote, start: int = 0) -> HTTPResponse:
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise DownloadError(f"not an address to fetch from: {bare(remote.url)}")
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-"} if start else {})
    if remote.token:
        # The library would print it with its complaint.
        if not remote.token.isascii() or not remote.token.isprintable():
            raise DownloadError(f"the token for {bare(remote.url)} holds characters that no token has")
        request.add_unredirected_header("Authorization", f"Bearer {remote.token}")
    opener = urllib.request.build_opener(_Redirects(remote.token))
    answer: HTTPResponse = opener.open(request, timeout=SECONDS)
    return answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses only, ten at most; the token goes along to the host that it is for."""

    def __init__(self, token: str) -> None:
        self.token = token

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to *newurl*.

        Raises:
            DownloadError: it is no web address, or leaves https.
        """
        old, new = urlsplit(req.full_url), urlsplit(urljoin(req.full_url, newurl))
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise DownloadError(f"{bare(req.full_url)} leads to {bare(new.geturl())}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        is_same_host = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        # A request that has left the host has none any more: what leads back to it may be made up.
        if request is not None and is_same_host and req.has_header("Authorization"):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> HTTPResponse | None:
        """Follow a redirect; the library's own check of the scheme says less than ours."""
        address = headers.get("location") or headers.get("uri") or ""
        scheme = urlsplit(address).scheme
        if scheme not in ("http", "https", ""):
            raise DownloadError(f"{bare(req.full_url)} leads to {scheme}:…, which is not followed")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def bare(url: str) -> str:
    """Return *url* without user, password and query, which may hold secrets and are no part of a message.

    >>> bare("https://me:secret@example.org/a?sig=1")
    'https://example.org/a'
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
