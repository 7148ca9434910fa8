"""What is measured on a card, the most important first: an editor, the evaluation or a SimIE update, on a shape, in a precision."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import simie
from benchmarks.gpu import arms, counting, models
from benchmarks.plain import evaluate
from raysweep.config.components import Components
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.evals import scoring
from raysweep.models.lm import LanguageModel
from raysweep.models.sizes import size_from_config
from raysweep.reports import estimates
from raysweep.runtime import device, matmul, repeatable

FEW, MORE = 2, 4  # steps of the short edits whose counts differ by those of MORE - FEW steps
TIMED = 2  # edits that are timed, of which the faster one counts
SINGLE = 12  # questions that are asked one by one, the plain way
_LOSSES = ("steps", "value_steps")
_SPEC: Mapping[str, Mapping[str, str]] = {
    "fp32": {"dtype": "float32"},
    "tf32": {"dtype": "float32", "matmul": "tf32"},
    "bf16": {"dtype": "bfloat16"},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement.

    Attributes:
        shape: of the model.
        dtype: ``fp32``, ``tf32`` (fp32 weights) or ``bf16``.
        what: an :class:`~benchmarks.gpu.arms.Arm`'s label, ``evaluation`` or ``simie update``.
        arm: the editor, if it is one.
        plain: the published way instead of ours.
    """

    shape: str
    dtype: str
    what: str
    arm: arms.Arm | None = None
    plain: bool = False

    @property
    def name(self) -> dict[str, object]:
        """What tells this cell from others, as the report has it."""
        return {"shape": self.shape, "dtype": self.dtype, "what": self.what, "way": "plain" if self.plain else "ours"}


def _edits(shape: str, dtype: str, *labels: str) -> list[Cell]:
    """Return cells of editors written as in the report: ``memit x16``, ``memit+simie``, ``captured memit``, ``plain memit``."""
    cells = []
    for label in labels:
        plain = label.startswith("plain ")
        what = label.removeprefix("plain ")
        captured = what.startswith("captured ")
        name, _, together = what.removeprefix("captured ").partition(" x")
        editor, plus, _ = name.partition("+")
        other = what in ("evaluation", "simie update")
        arm = None if other else arms.Arm(editor, int(together or 1), bool(plus), captured)
        cells.append(Cell(shape, dtype, what, arm, plain))
    return cells


def all_cells() -> list[Cell]:
    """Return everything, the most important first; cells of one model stand together where that costs nothing."""
    return [
        *_edits("llama2-7b", "bf16", "memit", "captured memit", "memit x16", "evaluation", "memit+simie"),
        *_edits(
            "llama2-7b", "bf16", "simie update", "plain memit", "rome", "captured rome", "rome x16", "ft", "ft x16"
        ),
        *_edits("llama2-7b", "bf16", "alphaedit", "grace", "grace x8", "memit x8"),
        *_edits("llama2-7b", "fp32", "memit", "captured memit", "plain memit", "evaluation"),
        *_edits("llama2-7b", "tf32", "memit", "memit x16", "plain memit", "evaluation"),
        *_edits("gpt2-xl", "bf16", "memit", "rome", "ft", "evaluation"),
        *_edits("qwen3-8b", "bf16", "memit", "memit x16", "rome", "evaluation"),
        *_edits("llama2-7b", "bf16", "plain rome", "plain alphaedit", "plain ft", "plain evaluation", "plain grace"),
        *_edits("llama2-7b", "bf16", "rome+simie", "ft+simie", "rome x8", "ft x8", "alphaedit x16"),
        *_edits("llama2-7b", "fp32", "rome", "ft", "alphaedit", "memit x16", "plain rome", "plain ft"),
        *_edits("llama2-7b", "tf32", "rome", "ft", "alphaedit", "rome x16", "plain evaluation"),
        *_edits("gpt2-xl", "fp32", "memit", "plain memit", "rome", "plain rome", "evaluation", "plain evaluation"),
        *_edits("gpt2-xl", "bf16", "memit x16", "alphaedit", "grace", "plain memit"),
        *_edits("qwen3-8b", "bf16", "ft", "alphaedit", "grace", "plain memit", "plain evaluation"),
    ]


def covering(cells: Sequence[Cell]) -> list[Cell]:
    """Return those of *cells* that run something no earlier one runs: a model in a precision, or a way of editing or asking."""
    seen: set[object] = set()
    chosen = []
    for cell in cells:
        new = {(cell.shape, cell.dtype), (cell.what, cell.plain)} - seen
        chosen += [cell] if new else []
        seen |= new
    return chosen


@dataclass
class Bench:
    """Measures cells one after the other, and keeps the model from one to the next where it is the same.

    Attributes:
        shapes: by name.
        ceiling: TFLOP/s by precision (:func:`benchmarks.gpu.counting.ceiling`).
    """

    shapes: Mapping[str, models.Shape]
    ceiling: Mapping[str, float]
    _loaded: tuple[tuple[str, torch.dtype], LanguageModel] | None = field(default=None, init=False)

    def measure(self, cells: Sequence[Cell], keep_on: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Yield a row per cell while *keep_on* says so; what fails is a row with its traceback's last lines."""
        for cell in cells:
            if not keep_on():
                return
            row: dict[str, Any] = dict(cell.name)
            try:
                # ours as in a trial, the published way as it is published
                order = nullcontext() if cell.plain else repeatable(device())
                with matmul(counting.PRODUCTS[cell.dtype][1]), order:
                    self._fill(cell, row)
            except Exception:  # whatever it is, the other cells are worth having
                row["failed"] = traceback.format_exc().strip().splitlines()[-6:]
                self._loaded = None
            gc.collect()
            if device().type != "cpu":
                torch.accelerator.empty_cache()
            yield row

    def _model(self, cell: Cell, row: dict[str, Any]) -> LanguageModel:
        key = (cell.shape, models.DTYPES[cell.dtype])
        if self._loaded is None or self._loaded[0] != key:
            # The old one goes before the new one comes: two of them need not fit.
            self._loaded = None
            gc.collect()
            made: list[LanguageModel] = []
            peak = counting.Peak()
            (row["load s"],) = counting.seconds(
                lambda: made.append(models.random_model(*self._named(cell), key[1], device()))
            )
            row["load peak GB"] = peak.gigabytes()
            self._loaded = (key, made[0])
        return self._loaded[1]

    def _named(self, cell: Cell) -> tuple[str, models.Shape]:
        return cell.shape, self.shapes[cell.shape]

    def _fill(self, cell: Cell, row: dict[str, Any]) -> None:
        lm = self._model(cell, row)
        if cell.what == "evaluation":
            _evaluation(cell, lm, row)
        elif cell.what == "simie update":
            _simie_update(lm, row)
        elif cell.plain:
            _plain_edit(cell, lm, self.shapes[cell.shape], row)
        else:
            _edit(cell, lm, self.shapes[cell.shape], row)
        if row.get("flop") and cell.dtype in self.ceiling:
            row["of ceiling"] = row["flop"] / row["s"] / 1e12 / self.ceiling[cell.dtype]


def _edit(cell: Cell, lm: LanguageModel, shape: models.Shape, row: dict[str, Any]) -> None:
    """Fill in seconds, counts and memory of one edit (of each of several, if they are made together)."""
    assert cell.arm is not None
    arm, asked = cell.arm, models.records()
    size = arm.together
    few, more, held = _short_edits(arm, lm, shape, asked)
    peak = counting.Peak()
    write, ledger = arm.ours(lm, shape)
    stats: dict[str, float] = {}
    # The first record of its length is recorded, which is not what the others take: the fastest of several counts.
    timed = 2 * TIMED if arm.captured else TIMED
    batches = [asked[i * size : (i + 1) * size] if size == 1 else asked[:size] for i in range(timed)]
    row["each s"] = [counting.seconds(lambda b=b: stats.update(write(b)))[0] / size for b in batches]
    row["s"] = min(row["each s"])
    row["peak GB"] = peak.gigabytes() or (sum(p.nbytes for p in lm.module.parameters()) + held) / 1e9
    row["plan GB"] = _planned(cell, lm, shape, len(batches) * size) / 1e9
    row["steps"] = sum(value for name, value in stats.items() if name.partition("/")[0] in _LOSSES)
    # an editor that never stops early does not say how many it made
    row["steps"] = row["steps"] or arm.steps(shape)
    ledger.restore()
    step = counting.per_step(few, more, MORE - FEW)
    whole = few.plus(step.times(max(0.0, row["steps"] - FEW))).times(1 / size)
    if not arm.recorded:
        # what is replayed passes nobody who counts arithmetic
        row["flop"] = whole.flop
    row |= {"launches": whole.launches, "waits": whole.waits, "uploads": whole.uploads}
    row |= {
        "busy s": whole.busy,
        "step launches": step.launches,
        "step waits": step.waits,
        "step uploads": step.uploads,
    }


def _short_edits(
    arm: arms.Arm, lm: LanguageModel, shape: models.Shape, asked: Sequence[Any]
) -> tuple[counting.Counts, counting.Counts, int]:
    """Count two edits of few steps, which also warm everything up; on a CPU, return the bytes that the second one held, too."""
    found = []
    for steps in (FEW, MORE):
        write, ledger = arm.ours(lm, shape, steps)
        batch = asked[: arm.together]
        write(batch)
        found.append(counting.counted(lambda write=write, batch=batch: write(batch)))
        ledger.restore()
    held = 0
    if device().type == "cpu":
        # From the beginning, as a trial has it: second moments and their factors are made in here, too.
        def whole() -> None:
            write, ledger = arm.ours(lm, shape, FEW)
            write(asked[: arm.together])
            ledger.restore()

        held = counting.live_bytes(whole, lm.module.parameters())
    return found[0], found[1], held


def _plain_edit(cell: Cell, lm: LanguageModel, shape: models.Shape, row: dict[str, Any]) -> None:
    assert cell.arm is not None
    asked = models.records()
    cell.arm.plain(lm, shape, FEW)(asked[:1])
    peak = counting.Peak()
    write = cell.arm.plain(lm, shape)
    (row["s"],) = counting.seconds(lambda: write(asked[:1]))
    row["peak GB"] = peak.gigabytes()


def _evaluation(cell: Cell, lm: LanguageModel, row: dict[str, Any]) -> None:
    """Fill in seconds per question, all asked at once or one by one."""
    questions = [probe for record in models.records() for probe in record.probes]
    if cell.plain:
        evaluate.score(lm, questions[0])
        row["s"] = counting.seconds(lambda: [evaluate.score(lm, q) for q in questions[:SINGLE]])[0] / SINGLE
        return
    ask = lambda: scoring.score(lm, questions, batch=len(questions))  # noqa: E731
    ask()
    peak = counting.Peak()
    row["s"] = min(counting.seconds(ask, 3)) / len(questions)
    row["peak GB"] = peak.gigabytes()
    counts = counting.counted(ask)
    each = counts.times(1 / len(questions))
    row |= {"flop": each.flop, "busy s": each.busy, "launches": each.launches, "waits": each.waits}
    row |= {"batch waits": counts.waits, "batch uploads": counts.uploads, "questions": len(questions)}


def _simie_update(lm: LanguageModel, row: dict[str, Any]) -> None:
    """Fill in seconds of one update of the fast back end, for one matrix of this model."""
    d_out, d_in = lm.logical(f"{lm.layout.mlp_out.format(0)}.weight").shape
    case = simie.Case(
        d_in, d_out, keys=20, updates=10, slow=2, lam=arms.SIMIE_LAM, shared=30.0, held=0, mode="sequential"
    )
    simie.run(simie.FAST, case)
    _, found = simie.run(simie.FAST, case)
    row |= {"s": found["update s"], "apply s": found["apply s"], "state MB": found["state MB"]}


def _planned(cell: Cell, lm: LanguageModel, shape: models.Shape, edits: int) -> float:
    """Return the bytes that `raysweep plan` says of a GPU's memory."""
    assert cell.arm is not None
    size = size_from_config(lm.module.config.to_dict())
    assert size is not None
    trial = TrialSpec(
        study="lifelong",
        model=ModelSpec.model_validate({"name": cell.shape, **_SPEC[cell.dtype]}),
        data=DataSpec(size=edits),
        editor=cell.arm.spec(shape),
        protocol=ProtocolSpec(rounds=(edits,)),
        seed=0,
    )
    return estimates.memory(trial, size, Components.installed()).on_device
