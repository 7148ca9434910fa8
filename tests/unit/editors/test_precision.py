"""In a model of half precision, what is optimised and lost is fp32, and what is solved is fp64: seen at torch's own operators."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.locate import target_value
from raysweep.editors.specs import ValueSpec
from raysweep.models import tokens
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm
from tests.contracts.test_editors import CONFIGS

# No block's forward pass calls any of these.
LOSS = {"_log_softmax", "logsumexp", "nll_loss_forward"}
UPDATE = {"sqrt", "lerp_", "addcmul_", "addcdiv_", "_fused_adam_"}  # Adam, torch's and ours
SOLVE = {
    "linalg_cholesky_ex",
    "cholesky_solve",
    "linalg_solve_triangular",
    "_linalg_solve_ex",
    "linalg_inv_ex",
    "_linalg_eigh",
}

SIMIE: dict[str, dict[str, Any]] = {
    "recursive": {"lam": 0.1},
    "closed form": {"lam": 0.1, "mode": "init", "backend": "closed64"},
}
CASES = [
    *((name, "") for name in ("ft", "rome", "memit", "alphaedit", "grace", "wise", "lora", "mend")),
    *((name, form) for name in ("ft", "rome", "memit", "alphaedit", "mend") for form in SIMIE),
]


class Dtypes(TorchDispatchMode):
    """Notes in which floating-point types each operator was given its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        self.seen[func._schema.name.rpartition("::")[2]] |= set(given)
        return func(*args, **(kwargs or {}))

    def of(self, names: set[str]) -> set[torch.dtype]:
        """The types of all that operators called *names* were given."""
        return set().union(*(self.seen[name] for name in names if name in self.seen))


def narrow_lm(dtype: torch.dtype) -> LanguageModel:
    lm = tiny_lm("llama")
    lm.module.to(dtype)
    return lm


def edited(name: str, form: str, dtype: torch.dtype) -> tuple[Dtypes, Ledger]:
    """Edit two records in a model of *dtype*, one after the other; watched from the first edit on."""
    around = (WrapSpec(name="simie", config=SIMIE[form]),) if form else ()
    spec = EditorSpec(name=name, config=CONFIGS[name], wrap=around)
    exam = Exam(build=lambda: build_editor(spec), lm=narrow_lm(dtype), fresh=lambda: narrow_lm(dtype))
    lm, editor = exam.lm, exam.build()
    artifacts = exam.artifacts(editor, lm)
    state, ledger = editor.begin(lm, artifacts), Ledger(lm)
    with Dtypes() as seen:
        for i in range(2):
            rng = torch.Generator().manual_seed(i)
            step = editor.edit(lm, [exam.records[i]], state, artifacts=artifacts, rng=rng)
            ledger.apply(step.patch)
            state = step.state
        editor.report_view(lm, ledger.total_deltas, state)  # where the closed form solves
    return seen, ledger


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("name", "form"), CASES, ids=[f"{name} {form}".strip() for name, form in CASES])
def test_a_narrow_model_is_edited_in_fp32_and_solved_in_fp64(name: str, form: str, dtype: torch.dtype) -> None:
    seen, ledger = edited(name, form, dtype)
    assert dtype in seen.of({"mm"}), "the model computes in its own type"
    assert seen.of(LOSS) == {torch.float32}
    assert seen.of(UPDATE) <= {torch.float32, torch.float64}
    assert seen.of(UPDATE) or name == "wise", "WISE steps by the gradient itself"
    solves = bool(form) or name in ("rome", "memit", "alphaedit")
    assert seen.of(SOLVE) == ({torch.float64} if solves else set())
    assert {t.dtype for t in ledger.tensors().values()} <= {torch.float32}, "what the edits add up to"
    assert not ledger.non_finite()


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gptj", torch.float32)])
def test_a_shift_that_reaches_no_prediction_stays_where_it_was(family: str, dtype: torch.dtype) -> None:
    """Behind the last block only the KL row sees the shift, and at 0 it has no gradient: Adam must not be given rounding."""
    lm = tiny_lm(family)  # GPT-J's head has a bias
    lm.module.to(dtype)
    target = tokens.target(lm, "The pet of Ana is", "red")
    task = target_value.value_task(lm, "The pet of {} is", "Ana", target, ["{}", "So. {}"])
    top = lm.module.config.num_hidden_layers - 1
    spec = ValueSpec(steps=4, lr=0.1)
    (value,) = target_value.optimise(lm, [task], layer=top, site="block", spec=spec)
    assert value.steps == 4
    assert not value.shift.count_nonzero()
    (below,) = target_value.optimise(lm, [task], layer=top - 1, site="block", spec=spec)
    assert below.shift.count_nonzero()
