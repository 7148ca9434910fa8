"""Loggers of a third party, found through entry points: one hangs on its server, one raises, one dies, one is slow to start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from raysweep.tune.loggers.base import RunLogger, Started, State, Values

NAMES = ("dying", "hanging", "raising", "unable")


class Plain(RunLogger):
    """Writes what it is told into a file."""

    package = "os"

    def say(self, *words: object) -> None:
        with (self.folder / f"{type(self).__name__}.txt").open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def start(self, trial: Started) -> None:
        self.say("start", trial.key)

    def log(self, key: str, step: int, values: Values) -> None:
        self.say("log", key, step, *values.values())

    def finish(self, key: str, state: State, values: Values) -> None:
        self.say("finish", key, state)

    def close(self) -> None:
        self.say("close")


class Hanging(Plain):
    """Asks a server that accepts and never answers."""

    def log(self, key: str, step: int, values: Values) -> None:
        with socket.create_connection(("127.0.0.1", int(os.environ["FAKE_LOGGERS_PORT"]))) as server:
            server.recv(1)


class Raising(Plain):
    """Fails at each round."""

    def log(self, key: str, step: int, values: Values) -> None:
        print("this is no answer")
        raise ValueError(f"no room for step {step}")


class Dying(Plain):
    """Takes its process along."""

    def log(self, key: str, step: int, values: Values) -> None:
        os._exit(1)


class Unable(Plain):
    """Cannot be made; like a program without a password, it asks for one."""

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        input("password: ")


def install(folder: Path) -> None:
    """Make these loggers an installed package in *folder*, to be put on PYTHONPATH."""
    (folder / "fake_loggers.py").write_text(Path(__file__).read_text())
    info = folder / "fake_loggers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-loggers\nVersion: 1.0\n")
    lines = [f"{name} = fake_loggers:{name.title()}" for name in (*NAMES, "plain")]
    (info / "entry_points.txt").write_text("\n".join(["[raysweep.loggers]", *lines, ""]))
