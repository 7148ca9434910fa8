"""A trial's specification that is read back is stored as the same JSON again, whatever its components have become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raysweep.config.editor_schema import EditorSpec, UnreadConfig, WrapSpec
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.editors.ft import FineTuneConfig
from raysweep.editors.wrappers.simie.config import SimIEConfig


def stored() -> dict[str, Any]:
    trial = TrialSpec(
        study="lifelong",
        model=ModelSpec(),
        data=DataSpec(),
        editor=EditorSpec(name="ft", config={"layers": [1]}, wrap=(WrapSpec(name="simie", config={"lam": 2.0}),)),
        protocol=ProtocolSpec(),
        seed=0,
    )
    plain: dict[str, Any] = json.loads(json.dumps(trial.model_dump(mode="json")))
    return plain


def test_configurations_are_of_their_component_s_class() -> None:
    trial = TrialSpec.read_back(stored())
    assert isinstance(trial.editor.config, FineTuneConfig)
    assert isinstance(trial.editor.wrap[0].config, SimIEConfig)
    assert trial.editor.config.layers == (1,)
    assert trial.model_dump(mode="json") == stored()


@pytest.mark.parametrize("change", ["removed", "added", "not installed", "one for one point nought"])
def test_what_no_longer_fits_is_kept_as_stored(change: str) -> None:
    plain = stored()
    config = plain["editor"]["config"]
    if change == "removed":
        del config["steps"]  # a key that was added to the class since
    elif change == "added":
        config["no_longer"] = [1, {"a": None}]
    elif change == "not installed":
        plain["editor"]["name"] = "elsewhere"
    else:
        config["lr"] = 1
    trial = TrialSpec.read_back(plain)
    assert isinstance(trial.editor.config, UnreadConfig)
    assert json.dumps(trial.model_dump(mode="json"), sort_keys=True) == json.dumps(plain, sort_keys=True)


def test_a_name_that_nobody_knows_is_refused_where_nothing_was_stored() -> None:
    with pytest.raises(ValueError, match="unknown editor 'elsewhere'"):
        EditorSpec(name="elsewhere", config={})
