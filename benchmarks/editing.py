"""Seconds per edit and per evaluated record, ours beside the plain implementation.

    python -m benchmarks.editing --model embedded --edits 10 --threads 2
    python -m benchmarks.editing --model smollm2-135m --edits 5 --threads 2 --editor rome --data-path zsre_mend_edit.json

Both sides edit copies of one model, record by record in turn, so that whatever else the machine does meets both alike. One
edit of each is made beforehand and not counted (it factors second moments and warms the allocator).

``--together n``: edits that do not see each other (SimIE's ``init`` mode), ours n at a time, the plain one by one; both sides
leave the model alone until all are made, then write the sum.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.plain import alphaedit as plain_alphaedit
from benchmarks.plain import common, evaluate
from benchmarks.plain import ft as plain_ft
from benchmarks.plain import grace as plain_grace
from benchmarks.plain import memit as plain_memit
from benchmarks.plain import rome as plain_rome
from benchmarks.plain import simie as plain_simie
from benchmarks.plain import wise as plain_wise
from raysweep.artifacts import Artifact
from raysweep.cli.edit_space import ALIASES
from raysweep.config.plan import plan
from raysweep.config.schema import TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.data.sampling import order
from raysweep.editors.build import build_editor, provide
from raysweep.editors.locate import contexts
from raysweep.evals import scoring
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.seeds import derive
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

TITLE = "seconds per edit and per evaluated record"
TURNS = 3  # how often the questions are asked: the machine's speed moves meanwhile, for both sides alike
EDITORS = ("ft-l", "ft-m", "rome", "rome-21", "memit", "alphaedit", "grace", "wise")
PUBLISHED = {
    "rome-21": ("rome", {"contexts": {"lengths": [[5, 10], [10, 10]]}})
}  # with the contexts of the published setting
MEMORIES = ("grace", "wise")  # they leave the weights alone, so SimIE has nothing to wrap
DATA = {"embedded": "world", "smollm2-135m": "zsre"}
ASKED = (ProbeKind.EFFICACY, ProbeKind.PARAPHRASE, ProbeKind.LOCALITY)
COLUMNS = (
    "editor", "edits", "steps", "edit s", "edit cpu s", "plain edit s", "plain edit cpu s", "x edit wall", "x edit cpu",
    "eval s", "eval cpu s", "plain eval s", "plain eval cpu s", "x eval wall", "x eval cpu", "rel diff", "answers differ",
)  # fmt: skip

PlainEdit = Callable[[LanguageModel, EditRecord], common.Changes]


@dataclass(frozen=True)
class Side:
    """Ours or the plain one.

    Attributes:
        edit: writes records, one after the other or together; returns how many steps the optimisation of one took (NaN: not told).
        finish: writes what is still to be written.
        learnt: returns what has been written so far: changes of weights, or the memory.
    """

    edit: Callable[[Sequence[EditRecord]], float]
    learnt: Callable[[], dict[str, Tensor]]
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Bench:
    """What one editor is measured on."""

    trial: TrialSpec
    lm: LanguageModel
    records: Sequence[EditRecord]
    artifacts: dict[str, Artifact]
    edited: tuple[str, ...]


def arms(editors: Sequence[str], wraps: Sequence[str], together: int = 1) -> dict[str, Any]:
    """Return arms as a search space has them; hyper-parameters come from ``hparams/``."""
    found: dict[str, Any] = {}
    for name in editors:
        kind, config = ALIASES.get(name, PUBLISHED.get(name, (name, {})))
        if together > 1:
            config = config | ({"batch": together} if kind == "ft" else {"value": {"batch": together}})
        for wrap in wraps:
            if wrap == "simie" and kind in MEMORIES:
                continue
            arm = {"editor": {"name": kind, **config}}
            found[f"{name}+simie" if wrap == "simie" else name] = arm | ({"wrap": "simie"} if wrap == "simie" else {})
    return found


def trials(options: argparse.Namespace, workspace: Workspace) -> dict[str, TrialSpec]:
    """Return one trial per arm, through the code that plans sweeps."""
    data: dict[str, Any] = {
        "name": options.data or DATA[options.model],
        "size": max(options.edits, options.evaluated) + 1,
    }
    if options.data_path:
        data["path"] = options.data_path
    tree = {
        "sweep": "benchmark",
        "base": {
            "model": options.model,
            "data": data,
            "protocol": {"rounds": [0, data["size"]]},
            "threads": options.threads,
        },
        "arms": arms(options.editor or EDITORS, options.wrap or ("none", "simie"), options.together),
    }
    return {t.arm: t.trial for t in plan(parse_search_space(tree, file="flags"), workspace).trials}


def prepare(trial: TrialSpec, workspace: Workspace) -> Bench:
    """Load everything a trial needs; second moments and context templates are made, or found, here."""
    deps = make_deps(workspace)
    lm = deps.load_model(trial.model)
    records = order(deps.open_dataset(trial.data), derive(trial.seed, "order"))
    editor = build_editor(trial.editor)
    artifacts = provide(
        lm,
        editor.artifact_requests(lm),
        deps.artifacts,
        lambda text: deps.texts(text, trial.data),
        threads=trial.threads,
    )
    return Bench(trial, lm, records, artifacts, editor.edited_parameters(lm))


def ours(bench: Bench, lm: LanguageModel, together: int) -> Side:
    """Return our editor, run as the lifelong loop does."""
    editor = build_editor(bench.trial.editor)
    ledger = Ledger(lm)
    state = editor.begin(lm, bench.artifacts)

    later: list[WeightDelta] = []

    def edit(records: Sequence[EditRecord]) -> float:
        nonlocal state
        if together > 1:
            batches, rngs = [[r] for r in records], [fresh_rng() for _ in records]
            steps = editor.edit_many(lm, batches, artifacts=bench.artifacts, rngs=rngs)
            later.extend(s.patch for s in steps if isinstance(s.patch, WeightDelta))
        else:
            steps = [editor.edit(lm, records, state, artifacts=bench.artifacts, rng=fresh_rng())]
            ledger.apply(steps[0].patch)
            state = steps[0].state
        told = [[v for n, v in s.stats.items() if n.partition("/")[0] in ("steps", "value_steps")] for s in steps]
        return sum(map(sum, told)) / len(steps) if told[0] else float("nan")

    def finish() -> None:
        for patch in later:
            ledger.apply(patch)

    def learnt() -> dict[str, Tensor]:
        if bench.edited:
            return changes(bench, lm)
        if "side" in state:
            return {"side": state["side"] - plain_wise.original(bench.lm, build_editor(bench.trial.editor).config)}  # type: ignore[attr-defined]
        return {name: state[name] for name in ("keys", "values", "radii")}

    edit([bench.records[0]])
    ledger.restore()
    later.clear()
    state = editor.begin(lm, bench.artifacts)
    return Side(edit, learnt, finish)


def fresh_rng() -> torch.Generator:
    """Return the generator that each edit of either side starts from."""
    return torch.Generator(device="cpu").manual_seed(0)


def changes(bench: Bench, lm: LanguageModel) -> dict[str, Tensor]:
    """Return the total change of each edited weight."""
    return {n: lm.weight(n).detach() - bench.lm.weight(n).detach() for n in bench.edited}


def plain(bench: Bench, lm: LanguageModel, together: int) -> Side:
    """Return the plain counterpart."""
    if bench.trial.editor.name in MEMORIES:
        begin = {"grace": plain_codebook, "wise": plain_side_memory}[bench.trial.editor.name]
        begin(bench, lm).edit([bench.records[0]])
        return begin(bench, lm)
    names, wraps = list(bench.edited), bench.trial.editor.wrap
    make = plain_editor(bench, lm)

    def start() -> PlainEdit:
        if not wraps:
            return make()
        config = wraps[0].config
        state = plain_simie.begin(lm, names, lam=float(config.lam), init=config.mode == "init")
        return partial(plain_simie.edit, state=state, base=make())

    with common.put_back(lm, names):
        common.add(lm, start()(lm, bench.records[0]))
    chosen = start()

    later: list[common.Changes] = []

    def edit(records: Sequence[EditRecord]) -> float:
        for record in records:
            change = chosen(lm, record)
            if together > 1:
                later.append(change)
            else:
                common.add(lm, change)
        return float("nan")

    def finish() -> None:
        for change in later:
            common.add(lm, change)

    return Side(edit, lambda: changes(bench, lm), finish)


def plain_codebook(bench: Bench, lm: LanguageModel) -> Side:
    """Return the plain GRACE with an empty codebook."""
    config: Any = build_editor(bench.trial.editor).config  # type: ignore[attr-defined]
    book = plain_grace.Book()
    width = len(lm.logical(f"{lm.layout.mlp_matrix(config.layer, config.matrix)}.weight"))

    def edit(records: Sequence[EditRecord]) -> float:
        (record,) = records
        plain_grace.edit(lm, record, config, book, torch.rand(width, generator=fresh_rng()).to(lm.device))
        return float("nan")

    def learnt() -> dict[str, Tensor]:
        radii = torch.tensor(book.radii, device=lm.device)
        return {"keys": torch.stack(book.keys), "values": torch.stack(book.values), "radii": radii}

    return Side(edit, learnt)


def plain_side_memory(bench: Bench, lm: LanguageModel) -> Side:
    """Return the plain WISE with an untouched side memory."""
    config: Any = build_editor(bench.trial.editor).config  # type: ignore[attr-defined]
    texts = contexts.templates(config.contexts, bench.artifacts.get("contexts"))
    memory, frozen = plain_wise.begin(lm, config), plain_wise.original(lm, config)

    def edit(records: Sequence[EditRecord]) -> float:
        (record,) = records
        mask = torch.rand(frozen.shape, generator=fresh_rng()) < config.mask_ratio
        plain_wise.edit(lm, record, config, texts, memory, mask.to(lm.device))
        return float("nan")

    return Side(edit, lambda: {"side": memory.side - frozen})


def plain_editor(bench: Bench, lm: LanguageModel) -> Callable[[], PlainEdit]:
    """Return what makes plain counterparts of the trial's editor that have written nothing yet."""
    editor: Any = build_editor(bench.trial.editor.model_copy(update={"wrap": ()}))
    config = editor.config
    if editor.name == "ft":
        return lambda: partial(plain_ft.edit, config=config)
    texts = contexts.templates(config.contexts, bench.artifacts.get("contexts"))
    kind = "projector" if editor.name == "alphaedit" else "moments"
    stored = {n: a.tensors[kind].to(lm.device) for n, a in bench.artifacts.items() if n.startswith(f"{kind}/")}
    matrices: dict[int, Tensor] = {int(n.partition("/")[2]): m for n, m in stored.items()}
    if editor.name == "alphaedit":
        edit = partial(plain_alphaedit.edit, config=config, contexts=texts, projectors=matrices)
        return lambda: partial(edit, memory=plain_alphaedit.begin(config, matrices))
    if editor.name == "rome":
        inverse = plain_rome.inverses(config, matrices)
        return lambda: partial(plain_rome.edit, config=config, contexts=texts, inverse=inverse)
    return lambda: partial(plain_memit.edit, config=config, contexts=texts, moments=matrices)


def measured(arm: str, bench: Bench, edits: int, count: int, *, together: int = 1, with_plain: bool) -> dict[str, Any]:
    """Edit the *edits* records after the first with both, evaluate *count* of those on, at least the edited; return one row."""
    records, asked = bench.records[1 : edits + 1], bench.records[1 : max(edits, count) + 1]
    questions = [p for r in asked for p in r.probes if p.kind in ASKED]
    mine = replace(bench.lm, module=copy.deepcopy(bench.lm.module))
    theirs = replace(bench.lm, module=copy.deepcopy(bench.lm.module)) if with_plain else None
    our_side, plain_side = ours(bench, mine, together), plain(bench, theirs, together) if theirs else None
    clocks = [measure.Clock() for _ in range(4)]
    steps = 0.0
    for begin in range(0, len(records), together):
        chosen = records[begin : begin + together]
        with clocks[0].timed():
            steps += our_side.edit(chosen) * len(chosen) / len(records)
        if plain_side:
            with clocks[1].timed():
                plain_side.edit(chosen)
    our_side.finish()
    if plain_side:
        plain_side.finish()
    differ = evaluated(mine, questions, bench.trial.protocol.eval_batch, clocks[2:], with_plain=with_plain)
    row: dict[str, Any] = {
        "editor": arm,
        "edits": len(records),
        "wrap": [w.config.model_dump(mode="json") for w in bench.trial.editor.wrap],
    }
    row |= {"steps": steps, "config": bench.trial.editor.config.model_dump(mode="json")}
    row["clocks"] = [{"wall": c.wall, "cpu": c.cpu} for c in clocks]
    for what, clock, count in zip(("edit", "plain edit", "eval", "plain eval"), clocks, (0, 0, 1, 1), strict=True):
        row[f"{what} s"], row[f"{what} cpu s"] = clock.mean(TURNS * len(asked) if count else len(records))
    if plain_side:
        for what in ("edit", "eval"):
            row[f"x {what} wall"] = row[f"plain {what} s"] / row[f"{what} s"]
            row[f"x {what} cpu"] = row[f"plain {what} cpu s"] / row[f"{what} cpu s"]
        row |= {"rel diff": difference(our_side.learnt(), plain_side.learnt()), "answers differ": differ}
    return row


def evaluated(
    lm: LanguageModel, questions: Sequence[Probe], batch: int, clocks: Sequence[measure.Clock], *, with_plain: bool
) -> str:
    """Ask *questions* of one edited model both ways, in turn, :data:`TURNS` times; return in how many the answers differ."""
    scoring.score(lm, questions[:1], batch=batch)
    for _ in range(TURNS):
        with clocks[0].timed():
            batched = scoring.score(lm, questions, batch=batch)
        if with_plain:
            with clocks[1].timed():
                single = [evaluate.score(lm, q) for q in questions]
    if not with_plain:
        return ""
    differ = sum(a.answers != b.answers or a.labels != b.labels for a, b in zip(batched, single, strict=True))
    return f"{differ}/{len(questions)}"


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest ``‖ours − plain‖ / ‖plain‖`` of what all edits together have written."""
    return max(float((mine[n].double() - t.double()).norm() / t.double().norm()) for n, t in theirs.items())


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.editing", description=TITLE)
    parser.add_argument("--model", default="embedded", choices=sorted(DATA))
    parser.add_argument("--edits", type=int, default=10, help="records edited and evaluated (one more is the warm-up)")
    parser.add_argument("--evaluated", type=int, default=0, help="records to evaluate, if more than are edited")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--editor", action="append", choices=EDITORS, help="may be repeated; default: all")
    parser.add_argument("--wrap", action="append", choices=("none", "simie"), help="may be repeated; default: both")
    parser.add_argument("--together", type=int, default=1, help="edits made at once, none seeing another")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--data", default="", help="dataset; default: world for embedded, zsre for smollm2-135m")
    parser.add_argument("--data-path", default="", help="its file")
    parser.add_argument("--root", default="", help="workspace; default: here")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    workspace = Workspace.here(options.root or None)
    about = measure.machine()
    rows = []
    for arm, trial in trials(options, workspace).items():
        bench = prepare(trial, workspace)
        torch.set_num_threads(options.threads)
        found = measured(
            arm, bench, options.edits, options.evaluated, together=options.together, with_plain=options.plain
        )
        rows.append(found)
        print(f"{arm}: {rows[-1]['edit s']:.3f} s per edit", flush=True)
    columns = COLUMNS if options.plain else [c for c in COLUMNS if not c.startswith(("plain", "x ", "rel", "answers"))]
    measure.show(f"{TITLE}: {options.model}", about, columns, rows)
    measure.write_json(options.json, TITLE, about, vars(options), rows)
    return rows


if __name__ == "__main__":
    main()
