"""The process of one logger: a JSON line in for each message, a JSON line out when it is dealt with (an error, or empty).

Run as ``python -m raysweep.tune.loggers.worker NAME SWEEP FOLDER``. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from raysweep.tune.loggers import LOGGERS
from raysweep.tune.loggers.base import Message, RunLogger, Started


def main(name: str, sweep: str, folder: str) -> None:
    """Deal with every message of standard input."""
    os.nice(19)  # trials go first
    # The programs print, and one that lacks a password asks for it: neither may meet our messages.
    messages, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    logger: RunLogger | None = None
    for line in messages:
        try:
            logger = logger or LOGGERS.get(name)(sweep, Path(folder))
            deal(logger, json.loads(line))
            error = ""
        except Exception as caught:  # whatever the program raises is told, and the next message tried
            error = f"{type(caught).__name__}: {caught}"
            traceback.print_exc()
        replies.write(f"{json.dumps(error)}\n")
        replies.flush()
    if logger is not None:
        logger.close()


def deal(logger: RunLogger, message: Message) -> None:
    """Pass one message on to *logger*."""
    if message["do"] == "start":
        logger.start(Started(message["key"], message["name"], message["config"]))
    elif message["do"] == "log":
        logger.log(message["key"], message["step"], message["values"])
    else:
        logger.finish(message["key"], message["state"], message["values"])


if __name__ == "__main__":
    main(*sys.argv[1:])
