"""What Ray Tune logged of a sweep, read from its JSON files alone: nothing in them is executed.

Ray keeps one folder per session below ``_ray``, in it one folder per trial with ``params.json`` (its configuration) and
``result.json`` (a line per reported round). The session's ``experiment_state-*.json`` and ``*.pkl`` beside them hold pickles,
which run code when they are opened; this module never reads them, so that a sweep received from a stranger can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from raysweep.errors import StoreError
from raysweep.results.store import ResultStore

RAY_FOLDER = "_ray"
TRIAL_KEY = "trial"
"""Key of the trial's configuration under which its trial key stands."""

Rounds = dict[int, dict[str, object]]


def sessions(store: ResultStore) -> tuple[str, ...]:
    """Return the folders of all sessions that logged something, oldest first, relative to the store."""
    folders = store.folder.folders(RAY_FOLDER)
    return tuple(name for name in folders if store.folder.folders(name))


def logged_rounds(store: ResultStore, keys: Collection[str]) -> dict[str, Rounds]:
    """Return ``{trial key: {step: what Ray was told}}`` of *keys* over all sessions; a later session counts.

    A torn last line, as a killed driver leaves it, is left out.

    Raises:
        StoreError: the sweep has no Ray session, or a log is damaged elsewhere than at its end.
    """
    rounds: dict[str, Rounds] = {}
    names = sessions(store)
    if not names:
        raise StoreError(f"no Ray session lies in {store.folder.path(RAY_FOLDER)}", hint="run the sweep first")
    for session in names:
        for folder in store.folder.folders(session):
            key = _trial_of(store, folder)
            if key in keys:
                # Sessions come in the order of their start, so rounds that a later one made again replace those of an
                # earlier one.
                rounds.setdefault(key, {}).update(_rounds(store, f"{folder}/result.json"))
    return rounds


def _trial_of(store: ResultStore, folder: str) -> str:
    """Return the key of the trial that *folder* logs; empty where Ray was killed before it wrote one."""
    try:
        configuration = json.loads(store.folder.read(f"{folder}/params.json"))
    except (FileNotFoundError, ValueError):
        return ""
    return str(configuration.get(TRIAL_KEY, "")) if isinstance(configuration, Mapping) else ""


def _rounds(store: ResultStore, name: str) -> Rounds:
    try:
        # A killed driver may leave half a character at the end.
        lines = store.folder.read(name).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    rounds: Rounds = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rounds[int(row["step"])] = row
        except (ValueError, TypeError, KeyError) as error:
            # Ray appends a line per round, so only the last one can be torn.
            if number == len(lines):
                break
            raise StoreError(
                f"{store.folder.path(name)}:{number} is no logged round: {error}",
                hint="delete that folder: Ray's logs are beside our tables, which stand without them",
            ) from error
    return rounds
