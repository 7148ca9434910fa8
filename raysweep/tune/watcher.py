"""Who is told how a sweep goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Watcher:
    """Is told how a sweep goes, and shows nothing of it; ``raysweep.cli.display.Display`` is one that does."""

    def prepared(self) -> None:
        """The sweep is locked by this process and its plan is written; nothing has run yet."""

    def connecting(self, address: str | None) -> None:
        """Ray is about to be started, or joined at *address*; that takes seconds."""

    def joined(self, nodes: Sequence[str]) -> None:
        """A cluster was joined; *nodes* are the lines of a table of its nodes."""

    def begin(self) -> None:
        """The trials are about to start."""

    def started(self, key: str) -> None:
        """A trial runs."""

    def round(self, key: str, result: Mapping[str, object]) -> None:
        """A trial reached a round."""

    def lost(self, key: str, retried: bool) -> None:
        """A trial's process died."""

    def hung(self, key: str, reason: str) -> None:
        """A trial gave no sign of life for too long, in the words of *reason*; its process is being ended."""

    def waiting(self, reason: str) -> None:
        """Trials wait and none runs: the cluster has no place for one now, for *reason*; said again while that lasts."""

    def cluster_lost(self, address: str, done: int, total: int) -> None:
        """The control service at *address* is gone; this process ends, with *done* of *total* trials done."""

    def stopped(self, key: str) -> None:
        """A trial no longer runs."""

    def end(self) -> None:
        """No trial runs any more."""
