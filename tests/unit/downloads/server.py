"""A web server that misbehaves as it is told, and remembers what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from raysweep.downloads.web import Remote
from tests.unit.loopback import serving


@dataclass
class Server:
    """Serves ``files`` by path.

    Attributes:
        limit: so many bytes of an answer come, then the connection breaks.
        ranges: whether it can go on in the middle.
        headers: sent instead of the true ones; None = not sent.
        redirects: from a path to an address.
        status: answered for a path, instead of the file.
        asked: (path, Range, Authorization) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    limit: int = 1 << 40
    ranges: bool = True
    headers: dict[str, str | None] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0
    on_get: Callable[[], None] = lambda: None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def remote(self, path: str, content: bytes, **known: Any) -> Remote:
        """Serve *content* at *path*; return what is known of it."""
        self.files[path] = content
        about = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **known}
        return Remote(url=f"{self.root}/{path}", **about)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path[1:])
        asked = request.headers.get("Range", "")
        self.asked.append((path, asked, request.headers.get("Authorization", "")))
        self.on_get()
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
            return
        content = self.files.get(path.partition("?")[0])
        status = self.status.get(path.partition("?")[0], 200 if content is not None else 404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if content is not None and start >= len(content) > 0:
            status = 416
        if status != 200 or content is None:
            request.send_error(status)
            return
        own = {"Content-Length": str(len(content) - start)}
        if start:
            own["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.send_response(206 if start else 200)
        for name, value in {**own, **self.headers}.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content[start:][: self.limit])


@contextmanager
def server(state: Server | None = None) -> Iterator[Server]:
    """Yield a server that runs."""
    state = state or Server()
    with serving(state.answer) as state.port:
        yield state
