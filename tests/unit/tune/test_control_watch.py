"""A control service that is gone is noticed; one that is back in time is not."""

from __future__ import annotations

import socket
import threading

from raysweep.tune.control_watch import watched


def listener(port: int = 0) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


def test_one_that_is_gone_is_noticed_once() -> None:
    server, calls, gone = listener(), [], threading.Event()

    def note() -> None:
        calls.append("gone")
        gone.set()

    with watched("127.0.0.1", server.getsockname()[1], note, quiet=0.2, poll=0.02):
        assert not gone.wait(0.4), "it is there"
        server.close()
        assert gone.wait(20)
    assert calls == ["gone"]


def test_one_that_is_back_in_time_is_not() -> None:
    server, gone = listener(), threading.Event()
    port = server.getsockname()[1]
    with watched("127.0.0.1", port, gone.set, quiet=1.5, poll=0.02):
        server.close()
        assert not gone.wait(0.2)
        server = listener(port)
        assert not gone.wait(2.0)
    server.close()


def test_after_the_block_nobody_looks() -> None:
    server, gone = listener(), threading.Event()
    port = server.getsockname()[1]
    server.close()
    with watched("127.0.0.1", port, gone.set, quiet=0.3, poll=0.01):
        pass
    assert not gone.wait(0.6)
