"""What a GPU would be asked for: launches, syncs and uploads per optimisation step, edit, SimIE update and evaluated question.

    python -m benchmarks.launches
    python -m benchmarks.launches --editor rome --editor memit --blocks 6

A random model on the device that pretends (``raysweep/testing/sham_device.py``) is edited; no GPU is needed. Operations of ATen
are counted, not seconds, and they don't depend on the model's width. A *step* is the difference between an edit of ``LONG`` and
one of ``SHORT`` steps, divided by the steps between; an *edit* has ``LONG``; a *SimIE update* is the difference between an edit
with and without the wrapper; a *batch* of questions, between four batches and two. ``a block`` is the difference that a further
block makes, above the edited ones. The second edit is counted: the first has factors and context templates to prepare.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch

from benchmarks import measure
from raysweep.artifacts import Artifact
from raysweep.config.schema import EditorSpec, TextSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.locate import contexts, null_space, second_moments
from raysweep.editors.specs import MomentSpec
from raysweep.evals.scoring import score
from raysweep.models.joined import join
from raysweep.models.layout import layout_of
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
from raysweep.testing.layout_contract import tiny_model
from raysweep.testing.sham_device import Counts, ShamDevice, move

TITLE = "launches, syncs and uploads"
SHORT, LONG = 8, 24
MORE_BLOCKS = 2
BATCH = 12  # questions of a batch
COLUMNS = ("what", "per", "launches", "a block", "syncs", "uploads")
VALUE = {"lr": 1e-3}  # so low that no edit ends before its last step
# A configuration with so many steps.
EDITORS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "ft": lambda steps: {"layers": [1], "steps": steps, "lr": 1e-6, "stop_loss": 0},
    "rome": lambda steps: {"layers": [1], "value": VALUE | {"steps": steps}},
    "memit": lambda steps: {"layers": [0, 1], "value": VALUE | {"steps": steps}, "moment_weight": 1.0},
    "alphaedit": lambda steps: {"layers": [0, 1], "value": VALUE | {"steps": steps}, "threshold": 0.01, "ridge": 0.01},
    "grace": lambda steps: {"layer": 1, "steps": steps, "lr": 1e-6},
    "wise": lambda steps: {"layer": 1, "steps": steps, "lr": 1e-6, "shard": 4, "merge_every": 8},
    "lora": lambda steps: {"steps": steps, "lr": 1e-6},
    "mend": lambda steps: {"layers": [1, 2], "rank": 4, "train": {"steps": 2, "batch": 2}},
}
STEPLESS = ("mend",)  # an edit is one pass and its gradient
MEMORIES = ("grace", "wise")  # they leave the weights alone, so SimIE has nothing to wrap
ARTIFACTS = {
    "second moments": "batch of texts",
    "energies": "batch of texts",
    "projector": "layer",
    "contexts": "token",
}
SIMIE = WrapSpec(name="simie", config={"lam": 0.1})


@dataclass(frozen=True)
class Paid:
    """What one thing costs on average."""

    launches: float
    syncs: float
    uploads: float

    @classmethod
    def each(cls, counts: Counts, number: float) -> Paid:
        """Return *counts* divided by *number*."""
        return cls(counts.launches / number, counts.syncs / number, counts.uploads / number)


def model(family: str, blocks: int) -> LanguageModel:
    """Return a random model of *family* with so many blocks, width 16 and bytes as tokens, on the sham device."""
    depth = {"n_layer": blocks} if family in ("gpt2", "gptj") else {"num_hidden_layers": blocks}
    room = {"vocab_size": 258, "max_position_embeddings": 256, "n_positions": 256}
    module = tiny_model(family, **room, **depth)
    layout = layout_of(module.config)
    # as a model is loaded on a device
    join(module, layout)
    return replace(tiny_lm("llama"), module=move(module), layout=layout, digest=f"{family}{blocks}")


def edit(lm: LanguageModel, spec: EditorSpec) -> tuple[Counts, float]:
    """Return what the second of two edits costs, its addition to the weights included, and the steps that it says it took."""
    exam = Exam(build=lambda: build_editor(spec), lm=lm, fresh=lambda: lm)
    with ShamDevice() as sham:
        editor = exam.build()
        artifacts = exam.artifacts(editor, lm)
        ledger, state = Ledger(lm), editor.begin(lm, artifacts)
        for record in exam.records[:2]:
            sham.mark("before")
            rng = torch.Generator().manual_seed(0)
            step = editor.edit(lm, [record], state, artifacts=artifacts, rng=rng)
            ledger.apply(step.patch)
            state = step.state
        sham.mark("edit")
        counts = sham.between_marks()[-1][1]
        ledger.restore()
    told = [v for name, v in step.stats.items() if name.partition("/")[0] in ("steps", "value_steps")]
    return counts, sum(told)


def per_step(name: str, lm: LanguageModel) -> Paid:
    """Return what one optimisation step of the editor *name* costs."""
    (few, short), (many, long) = (edit(lm, EditorSpec(name=name, config=EDITORS[name](n))) for n in (SHORT, LONG))
    told = long - short
    assert told in (0, LONG - SHORT), f"{name} ended early: {short} and {long} steps"
    return Paid.each(many - few, LONG - SHORT)


def per_edit(name: str, lm: LanguageModel) -> Paid:
    """Return what an edit of :data:`LONG` steps by the editor *name* costs."""
    return Paid.each(edit(lm, EditorSpec(name=name, config=EDITORS[name](LONG)))[0], 1)


def per_update(name: str, lm: LanguageModel) -> Paid:
    """Return what SimIE adds to an edit of the editor *name*."""
    plain = EditorSpec(name=name, config=EDITORS[name](SHORT))
    return Paid.each(edit(lm, plain.model_copy(update={"wrap": (SIMIE,)}))[0] - edit(lm, plain)[0], 1)


def per_batch(lm: LanguageModel) -> Paid:
    """Return what a batch of :data:`BATCH` questions costs."""
    questions = [replace(p, prompt=f"{p.prompt} {i}") for i, r in enumerate(toy_records(16)) for p in r.probes]
    found = []
    for batches in (2, 4):
        with ShamDevice() as sham:
            score(lm, questions[: batches * BATCH], batch=BATCH)
        found.append(sham.total)
    return Paid.each(found[1] - found[0], 2)


def artifact(what: str, lm: LanguageModel) -> Paid:
    """Return what a batch of texts (second moments, energies of one input), a layer's projector or a context's token costs."""
    module, spec, text = lm.layout.mlp_out, MomentSpec(width=200), "x" * 200
    moments = second_moments.request(lm, module, 0, spec)
    energy = second_moments.energy_request(lm, module.format(0), TextSpec(tokens=0))
    projector = null_space.request(lm, module, 0, spec, threshold=0.5, method="eigh64")
    diagonal = Artifact("", {"moments": torch.linspace(0, 1, 16).diag()}, {})
    make: dict[str, Callable[[int], object]] = {
        # twenty such texts fill a batch
        "second moments": lambda n: second_moments.build(lm, [moments], repeat(text, 20 * n)),
        "energies": lambda n: second_moments.build_energy(lm, [energy], repeat(text, 20 * n)),
        "projector": lambda n: null_space.build(lm, [projector] * n, [{"moments": diagonal}] * n),
        "contexts": lambda n: contexts._continue(lm, "The", 5 + n, torch.Generator().manual_seed(0)),
    }
    found = []
    for number in (2, 4):
        with ShamDevice() as sham:
            make[what](number)
        found.append(sham.total)
    return Paid.each(found[1] - found[0], 2)


def rows(editors: Sequence[str], family: str, blocks: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    shallow, deep = model(family, blocks), model(family, blocks + MORE_BLOCKS)
    kinds: dict[str, Callable[[str, LanguageModel], Paid]] = {
        "step": per_step,
        "edit": per_edit,
        "SimIE update": per_update,
    }
    for name in editors:
        for per, count in kinds.items():
            if (per == "SimIE update" and name in MEMORIES) or (per == "step" and name in STEPLESS):
                continue
            yield _row(name, per, count(name, shallow), count(name, deep))
    for what, per in ARTIFACTS.items():
        yield _row(what, per, artifact(what, shallow), artifact(what, deep))
    here, there = per_batch(shallow), per_batch(deep)
    yield _row("evaluation", f"batch of {BATCH}", here, there)
    questions = [Paid(p.launches / BATCH, p.syncs / BATCH, p.uploads / BATCH) for p in (here, there)]
    yield _row("evaluation", "question", *questions)


def _row(what: str, per: str, shallow: Paid, deep: Paid) -> dict[str, Any]:
    block = (deep.launches - shallow.launches) / MORE_BLOCKS
    return {
        "what": what,
        "per": per,
        "launches": shallow.launches,
        "a block": block,
        "syncs": shallow.syncs,
        "uploads": shallow.uploads,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Count what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.launches", description=TITLE)
    parser.add_argument("--editor", action="append", choices=sorted(EDITORS), help="may be repeated; default: all")
    parser.add_argument("--family", default="llama", help="of the random model: a model_type with a layout")
    parser.add_argument("--blocks", type=int, default=4, help="of the random model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = list(rows(options.editor or list(EDITORS), options.family, options.blocks))
    title = f"{TITLE}: {options.family}, {options.blocks} blocks"
    measure.report(options, title, measure.machine(), COLUMNS, found)
    return found


if __name__ == "__main__":
    main()
