"""Which signal stopped a run is known, whoever handles it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raysweep.cli.errors import report
from raysweep.tune.stop_signals import TimeUp, noted_signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_sigusr1_ends_a_command_where_nobody_handles_it() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with noted_signals() as signals:
        assert not signals.time_is_up
        with pytest.raises(TimeUp) as caught:
            send(signal.SIGUSR1)
        assert signals.time_is_up
    assert report(caught.value, debug=False) == 3
    assert signals.time_is_up
    assert signal.getsignal(signal.SIGUSR1) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_sigusr1_is_noted_though_another_handler_takes_it() -> None:
    came: list[int] = []
    with noted_signals() as signals:
        signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
        send(signal.SIGUSR1)
    assert came == [signal.SIGUSR1]
    assert signals.time_is_up


@pytest.mark.parametrize("other", [signal.SIGINT, signal.SIGTERM])
def test_a_person_s_stop_is_no_time_limit(other: signal.Signals) -> None:
    before = signal.getsignal(other)
    try:
        # As raysweep does it: SIGTERM becomes SIGUSR1, which Tune stops on.
        signal.signal(other, lambda *_: send(signal.SIGUSR1))
        with noted_signals() as signals:
            with pytest.raises(KeyboardInterrupt):
                send(other)
            assert not signals.time_is_up
    finally:
        signal.signal(other, before)


def test_another_thread_notes_nothing() -> None:
    seen: list[bool] = []

    def elsewhere() -> None:
        with noted_signals() as signals:
            seen.append(signals.time_is_up)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]
