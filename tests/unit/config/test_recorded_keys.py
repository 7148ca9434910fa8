"""Every trial of the shipped search spaces has the key, the edit group and the stored JSON that were recorded.

Where a version is raised or a default changed on purpose they move too, and ``recorded_keys.json`` says so in the same commit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.sweep import load_search_space
from raysweep.hashing import digest, text_digest
from raysweep.workspace import Workspace, package_share

SHARE = package_share()
WIKIDATA = {"belief_10k", "belief_100k", "belief_one_gpu"}  # they need a graph that is not shipped
NAMES = sorted({p.stem for p in (SHARE / "search_spaces").glob("*.yaml")} - WIKIDATA)
RECORDED = json.loads(Path(__file__).with_name("recorded_keys.json").read_text(encoding="utf-8"))


def summary(name: str, workspace: Workspace) -> dict[str, object]:
    """Return how many trials *name* has, and hashes of their keys, of their edit groups and of what is stored of them."""
    components = replace(Components.installed(), environment={})  # as on a machine where no variable is set
    planned = plan(load_search_space(name, workspace), workspace, components).trials
    # Absolute paths are stored too, of folders that lie elsewhere on each machine.
    stored = json.dumps([t.trial.model_dump(mode="json") for t in planned])
    return {
        "trials": len(planned),
        "keys": digest([t.key for t in planned]),
        "groups": digest([(t.edit_key, t.proposal_cache_key, t.can_propose) for t in planned]),
        "stored": text_digest(stored.replace(str(workspace.root), "ROOT").replace(str(SHARE), "SHARE")),
    }


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_stored_specifications_are_as_recorded(name: str, full: Workspace) -> None:
    assert summary(name, full) == RECORDED[name]
