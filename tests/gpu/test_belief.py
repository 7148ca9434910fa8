"""The belief study on a device: the editing of its points, and what the model is asked about them on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.models.sources import catalogue
from raysweep.rows import EvalRound
from raysweep.runtime import repeatable
from raysweep.studies.belief import Belief, BeliefLifelong
from raysweep.testing.sham_device import ShamDevice, device, move
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.gpu.agree import agree
from tests.unit.studies.test_belief import EDITORS as CHOSEN
from tests.unit.studies.test_belief import tiny_workspace

# The model has two blocks. A shift behind the last one moves nothing but the KL row, whose gradient is nought at first: on a device
# (and in bf16, or with a bias in the head) it is rounding instead, which Adam makes a whole step of. So the block before is edited.
EDITORS = CHOSEN | {
    "memit+simie": CHOSEN["memit+simie"].model_copy(
        update={"config": type(CHOSEN["memit+simie"].config)(layers=(0,), value={"steps": 3}, moment_weight=1.0)}
    )
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny_workspace(tmp_path_factory.mktemp("belief"))


def facts(rounds: list[EvalRound]) -> list[object]:
    return [(r.step, r.rows, r.stats, dict(r.summary), r.beliefs, r.points, r.training) for r in rounds]


@pytest.mark.parametrize("study", [Belief, BeliefLifelong], ids=lambda s: s.name)
@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_points_are_edited_as_on_the_cpu(
    editor: str, study: type[Belief] | type[BeliefLifelong], workspace: Workspace
) -> None:
    trial = TrialSpec(
        study=study.name,
        model=catalogue.resolve(ModelSpec(name="tiny"), workspace),
        data=DataSpec(name="belief", path="hparams/belief/tiny.yaml", size=3),
        editor=EDITORS[editor],
        protocol=ProtocolSpec(batch_size=1, rounds=(0, 3)),
        seed=1,
    )
    have = make_deps(workspace)
    expected = list(study().execute(trial, have, None))
    with ShamDevice(), repeatable(device()):
        model = make_deps(workspace).load_model(trial.model)
        move(model.module)
        elsewhere = replace(have, load_model=lambda _: model, artifacts=ArtifactStore(workspace.root / "sham"))
        found = list(study().execute(trial, elsewhere, None))
    agree(facts(expected), facts(found), 1e-5)
