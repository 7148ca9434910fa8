"""What a step, an edit and an evaluated batch may cost a device: launches, waits for it and uploads, held as budgets.

Counts are differences between runs of ``n`` and of ``n + k`` steps, edits or batches, so what is done once is not in them. A budget
is what was counted when it was written, and a little more for launches; a smaller count is a reason to lower it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from benchmarks import launches
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.stopping import STEPS_BETWEEN_READS
from raysweep.evals.scoring import score
from raysweep.models.joined import join
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
from raysweep.testing.sham_device import Counts, ShamDevice, move

DTYPES = (torch.float32, torch.bfloat16)
VALUE = {"lr": 0.1, "weight_decay": 0.001}
LOCATED: dict[str, dict[str, Any]] = {
    "rome": {"layers": [0]},
    "memit": {"layers": [0], "moment_weight": 1.0},
    "alphaedit": {"layers": [0], "threshold": 0.01, "ridge": 0.01},
}
FT: dict[str, dict[str, Any]] = {
    "FT-L": {"layers": [0], "objective": "prompt_last", "lr": 1e-3},
    "FT-M": {"layers": [0], "objective": "target_new", "lr": 1e-3, "norm_constraint": 1e-2},
}
SIMIE = WrapSpec(name="simie", config={"lam": 0.1, "mode": "sequential", "backend": "woodbury64"})


def counted(name: str, config: Mapping[str, Any], **options: Any) -> Counts:
    """Return what edits of a tiny model cost; *options* are those of :func:`watched`."""
    return watched(name, config, **options)[0]


def watched(
    name: str,
    config: Mapping[str, Any],
    *,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    edits: int = 1,
    wrap: tuple[WrapSpec, ...] = (),
) -> tuple[Counts, ShamDevice]:
    """Return the same, and the device on which they were made."""

    def fresh() -> Any:
        lm = tiny_lm(family)
        lm.module.to(dtype)
        join(lm.module, lm.layout)
        return lm

    lm = fresh()
    exam = Exam(build=lambda: build_editor(EditorSpec(name=name, config=dict(config), wrap=wrap)), lm=lm, fresh=fresh)
    editor = exam.build()
    artifacts = exam.artifacts(editor, lm)
    move(lm.module)
    with ShamDevice() as sham:
        state, before = editor.begin(lm, artifacts), sham.total
        for i, record in enumerate(toy_records(edits)):
            rng = torch.Generator().manual_seed(i)
            state = editor.edit(lm, [record], state, artifacts=artifacts, rng=rng).state
        return sham.total - before, sham


def with_steps(name: str, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**config, "steps": steps} if name == "ft" else {**config, "value": {**VALUE, "steps": steps}}


def per_read(name: str, config: Mapping[str, Any], **given: Any) -> Counts:
    """Return what as many steps cost as there are between two reads."""
    few, more = (with_steps(name, config, n * STEPS_BETWEEN_READS) for n in (2, 3))
    return counted(name, more, **given) - counted(name, few, **given)


@pytest.mark.parametrize("name", [*LOCATED, *FT, "grace"])
def test_a_step_adds_nothing_up_by_atomics_and_sorts_nothing(name: str) -> None:
    """Where bits are to repeat, an index whose gradient adds up is a sort: a dozen kernels, which this device counts as one."""
    editor, config = ("ft", FT[name]) if name in FT else (name, LOCATED.get(name, {"layer": 1, "lr": 1e-2}))
    steps = {n: {**config, "steps": n} if name == "grace" else with_steps(editor, config, n) for n in (4, 8)}
    (_, few), (_, more) = (watched(editor, steps[n]) for n in (4, 8))
    assert more.sorted == few.sorted
    written = {n: c - few.operations[n] for n, c in more.operations.items() if "index_put" in n}
    # FT-L asks several tokens at one place, whose gradients add up there
    assert sum(written.values()) == (4 if name == "FT-L" else 0), written


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*LOCATED, *FT])
def test_a_step_waits_for_nothing_and_uploads_nothing(name: str, dtype: torch.dtype, family: str) -> None:
    """One wait in every fourth step, which asks whether the loop may end."""
    editor, config = ("ft", FT[name]) if name in FT else (name, LOCATED[name])
    cost = per_read(editor, config, dtype=dtype, family=family)
    assert (cost.syncs, cost.uploads) == (1, 0), cost


@pytest.mark.parametrize(
    ("family", "budget"), [("llama", 28), ("qwen2", 28), ("qwen3", 32), ("gpt2", 23), ("gptj", 23)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["memit", "FT-M"])
def test_a_block_takes_few_launches_in_a_step(name: str, dtype: torch.dtype, family: str, budget: int) -> None:
    """Forward and backward, by the difference of editing one block higher; the same in every precision."""
    editor, config = ("ft", FT[name]) if name in FT else (name, LOCATED[name])
    low, high = (per_read(editor, {**config, "layers": [n]}, dtype=dtype, family=family) for n in (0, 1))
    assert (low - high).launches <= budget * STEPS_BETWEEN_READS, (low - high).launches / STEPS_BETWEEN_READS


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("rome", Counts(launches=325, syncs=6, uploads=12)),
        ("memit", Counts(launches=375, syncs=6, uploads=16)),
        ("alphaedit", Counts(launches=375, syncs=6, uploads=16)),
        ("FT-L", Counts(launches=190, syncs=1, uploads=7)),
        ("FT-M", Counts(launches=195, syncs=1, uploads=7)),
    ],
)
def test_an_edit_waits_and_uploads_a_fixed_number_of_times(name: str, budget: Counts) -> None:
    """Beside its steps: reading the record's rows, what stays the same in all steps, and the solve."""
    editor, config = ("ft", FT[name]) if name in FT else (name, LOCATED[name])
    short = with_steps(editor, config, 1)
    cost = counted(editor, short, edits=3) - counted(editor, short, edits=2)
    assert cost.syncs <= budget.syncs, cost
    assert cost.uploads <= budget.uploads, cost
    assert cost.launches <= budget.launches, cost


@pytest.mark.parametrize("before", [0, 3])  # edits before the one counted; the drift is measured at the first
@pytest.mark.parametrize("name", ["rome", "memit", "FT-M"])
def test_simie_adds_one_wait_to_an_edit(name: str, before: int) -> None:
    editor, config = ("ft", FT[name]) if name in FT else (name, LOCATED[name])
    short = with_steps(editor, config, 1)
    two_matrices = {**short, "layers": [0, 1]} if name == "memit" else short
    bare, wrapped = (
        counted(editor, two_matrices, edits=before + 1, wrap=wrap)
        - counted(editor, two_matrices, edits=before, wrap=wrap)
        for wrap in ((), (SIMIE,))
    )
    cost = wrapped - bare
    # of all inputs: does the update stand; of all matrices: the norms to report
    assert cost.syncs == 1, cost
    assert cost.uploads <= 3, cost


@pytest.mark.parametrize(
    ("name", "config", "waits"),
    [
        ("grace", {"layer": 1, "lr": 1e-2}, 0),
        ("lora", {"lr": 1e-2}, 0),
        ("wise", {"layer": 1, "lr": 1e-2, "shard": 4, "merge_every": 8}, 1),
    ],
)
def test_a_step_with_losses_read_later_waits_for_nothing(name: str, config: dict[str, Any], waits: int) -> None:
    """WISE asks in every fourth step whether to end; GRACE's and LoRA's steps are as many as they are."""
    few, more = (counted(name, {**config, "steps": n * STEPS_BETWEEN_READS}) for n in (1, 2))
    cost = more - few
    assert (cost.syncs, cost.uploads) == (waits, 0), cost


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_evaluated_batch_waits_once(family: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(family)
    lm.module.to(dtype)
    join(lm.module, lm.layout)
    move(lm.module)
    probes = [probe for record in toy_records(8) for probe in record.probes]
    with ShamDevice() as sham:
        for n in (12, 24):
            score(lm, probes[:n], batch=4)
            sham.mark(str(n))
    (_, few), (_, more) = sham.between_marks()
    cost = more - few  # three batches
    assert cost.syncs == 3, cost
    assert cost.uploads <= 3 * 6, cost
    assert cost.launches <= 3 * 90, cost


@pytest.mark.parametrize(("what", "waits"), [("second moments", 0), ("energies", 0), ("projector", 2), ("contexts", 1)])
def test_what_is_made_before_the_first_edit_seldom_waits(what: str, waits: int) -> None:
    """Texts are never waited for; a projector is, for its rank and its eigenvalues; a context, for each token drawn."""
    cost = launches.artifact(what, launches.model("llama", 2))
    assert cost.syncs == waits, cost
    assert cost.uploads <= 3, cost
