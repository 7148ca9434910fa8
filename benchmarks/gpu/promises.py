"""The editor contract on the device, for every editor; and what the same edits are on the CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raysweep.config.schema import EditorSpec
from raysweep.editors.build import build_editor
from raysweep.evals.scoring import Scores, score
from raysweep.models.lm import LanguageModel
from raysweep.runtime import repeatable
from raysweep.testing import editor_contract
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm

FAMILIES = ("llama", "gpt2", "qwen2")
_VALUE = {"steps": 6, "lr": 0.5, "weight_decay": 0.001, "batch": 2}
_MEMIT: Mapping[str, Any] = {"layers": [0, 1], "value": _VALUE, "moment_weight": 1.0}
_CLOSED = {"lam": 0.1, "mode": "init", "backend": "closed64"}
EDITORS: Mapping[str, Mapping[str, Any]] = {
    "ft": {"name": "ft", "config": {"layers": [1], "steps": 4, "lr": 5e-3, "batch": 2}},
    "rome": {"name": "rome", "config": {"layers": [1], "value": _VALUE}},
    "memit": {"name": "memit", "config": _MEMIT},
    "memit+simie": {"name": "memit", "config": _MEMIT, "wrap": [{"name": "simie", "config": {"lam": 0.1}}]},
    "memit+simie init": {"name": "memit", "config": _MEMIT, "wrap": [{"name": "simie", "config": _CLOSED}]},
    "alphaedit": {
        "name": "alphaedit",
        "config": {"layers": [0, 1], "value": _VALUE, "threshold": 0.01, "ridge": 0.01, "pre": 1},
    },
    "grace": {"name": "grace", "config": {"layer": 1, "steps": 4}},
    "mend": {
        "name": "mend",
        "config": {"layers": [1, 2], "rank": 4, "edit_lr": -1e-4, "train": {"steps": 2, "batch": 2}},
    },
    "lora": {"name": "lora", "config": {"steps": 4, "lr": 1e-2}},
    "wise": {
        "name": "wise",
        "config": {
            "layer": 1,
            "steps": 3,
            "shard": 1,
            "merge_every": 2,
            "margins": {"alpha": 0.5, "beta": 2.0, "gamma": 1.0},
        },
    },
}
PROMISES: tuple[Callable[[Exam], None], ...] = (
    editor_contract.leaves_the_model_bit_identical,
    editor_contract.apply_then_restore_is_the_identity,
    editor_contract.same_seed_same_patch,
    editor_contract.state_survives_storage,
    editor_contract.resume_equals_straight,
    editor_contract.edits_made_together_are_those_made_alone,
)


def examine(device: torch.device, keep_on: Callable[[], bool], families: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield, editor by editor while *keep_on* says so, the promises that it breaks on *device* and how far it is from the CPU.

    All editors sit the exam on the first family before the next one comes.
    """
    for family in families:
        for label, written in EDITORS.items():
            if not keep_on():
                return
            with repeatable(device):
                row = _sit(EditorSpec.model_validate(written), family, device)
            yield {"editor": label, "family": family, **row}


def _sit(spec: EditorSpec, family: str, device: torch.device) -> dict[str, Any]:
    def fresh() -> LanguageModel:
        lm = tiny_lm(family, bos=family == "llama")
        lm.module.to(device)
        return lm

    exam = Exam(build=lambda: build_editor(spec), lm=fresh(), fresh=fresh)
    broken: dict[str, list[str]] = {}
    for promise in PROMISES:
        try:
            promise(exam)
        except Exception:  # a broken promise is a result; the others are examined too
            broken[promise.__name__] = traceback.format_exc().strip().splitlines()[-4:]
            exam = Exam(build=lambda: build_editor(spec), lm=fresh(), fresh=fresh)
    row: dict[str, Any] = {"promises": len(PROMISES), "broken": broken}
    try:
        row |= _beside_the_cpu(spec, family, fresh())
    except Exception:
        row["failed"] = traceback.format_exc().strip().splitlines()[-4:]
    return row


def _beside_the_cpu(spec: EditorSpec, family: str, lm: LanguageModel) -> dict[str, Any]:
    """Return the differences of three edits here from the same on the CPU: weights, answers, log-probabilities."""
    here, there = _edited(spec, lm), _edited(spec, tiny_lm(family, bos=family == "llama"))
    weights = [_relative(change.cpu(), there[0][name]) for name, change in here[0].items()]
    logprobs = [abs(a.logprob - b.logprob) for a, b in zip(here[1], there[1], strict=True)]
    answers = sum(a.answers != b.answers for a, b in zip(here[1], there[1], strict=True))
    return {
        "weights differ by": max(weights, default=0.0),
        "logprobs differ by": max(logprobs),
        "answers differ": answers,
    }


def _edited(spec: EditorSpec, lm: LanguageModel) -> tuple[dict[str, Tensor], list[Scores]]:
    """Return the change of each weight, and the answers, after three edits of *lm*, which is as it was afterwards."""
    exam = Exam(build=lambda: build_editor(spec), lm=lm, fresh=lambda: lm)
    ledger, _ = exam.run(lm, exam.build())
    found = ledger.total_deltas(), score(lm, [p for r in exam.records[:3] for p in r.probes])
    ledger.restore()
    return found


def _relative(here: Tensor, there: Tensor) -> float:
    """Return ``‖here − there‖ / ‖there‖``; 0 where both are nothing."""
    return float((here - there).norm() / there.norm().clamp(min=1e-30))
