"""What the quirks of the published code change in numbers: each flag of docs/quirks.md, our default beside the published way.

    python -m benchmarks.quirks                  # all; a few minutes
    python -m benchmarks.quirks --only Q18 Q23   # some

*world* rows edit the embedded model with the first records of the embedded world (seed 0; hyper-parameters of ``hparams/``) and
show Rel / Gen / Loc of everything written, at the end. *tiny* rows edit the recorded random models with their six recorded records
and show how many of the answers' tokens differ. *change* is ‖ΔW default − ΔW published‖ / ‖ΔW published‖ after the last edit,
the largest of the edited weights (the side memory for WISE).
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from raysweep.artifacts import Artifact
from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.editors.build import build_editor
from raysweep.editors.locate import second_moments
from raysweep.editors.specs import MomentSpec
from raysweep.editors.wise import merging
from raysweep.evals import boundaries, generation, scoring
from raysweep.models import ledger as weight_ledger
from raysweep.models.ledger import Ledger
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.rows import EvalRound
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import embedded_lm
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from raysweep.world import WorldSpec, build_world, edit_records
from tests.golden import test_alphaedit, test_prune, test_wise
from tests.golden.recorded import HERE, Variant, replay
from tests.tokenizers.models import loaded

TITLE = "quirks: our default beside the published way"
COLUMNS = ("quirk", "run", "published way", "default", "published", "change")
Row = dict[str, Any]
Weights = Mapping[str, Tensor]

ROME = {"name": "rome"}
MEMIT = {"name": "memit"}
FT_L = {"name": "ft", "objective": "prompt_last", "ask_special": False}
WISE = {"name": "wise", "shard": 4, "merge_every": 8}
MEND = {"name": "mend", "train.steps": 20, "train.every": 5}
PUBLISHED_SIMIE = {"wrap.simie.backend": "ref_fp32_lu"}
WORLD: tuple[tuple[str, Mapping[str, Any], str, Mapping[str, Any]], ...] = (
    # quirk, editor, wrapper, what the published way sets
    ("Q7", {"name": "grace"}, "", {"protocol.asking": "generation_ref"}),
    ("Q10", ROME, "", {"editor.inverse": "ref_fp32_inverse"}),
    ("Q10", MEMIT, "", {"editor.moments.ref_fp32": True}),
    ("Q10", {"name": "alphaedit"}, "", {"editor.projection": "ref_fp32_svd"}),
    ("Q13", FT_L, "", {"editor.ask_special": True}),
    ("Q16", {"name": "alphaedit", "pre": 1}, "", {"editor.backend": "ref_fp32_lu"}),
    ("Q23", ROME, "prune", {"wrap.prune.persist": True}),
    ("Q29", {**WISE, "mask_weight_decay": True}, "", {"editor.mask_weight_decay": False}),
    ("Q31", WISE, "", {"editor.ref_padding": True}),
    ("Q33", MEND, "", {"editor.ref_labels": True}),
    ("Q34", MEND, "", {"editor.train.ref_kl": True}),
    ("Q35", {**MEND, "train.lr_lr": 1e-3}, "", {"editor.train.ref_lr": True}),
    ("Q36", {**MEND, "train.lr": 1e-2}, "", {"editor.train.select": "last"}),
    ("Q38, Q40", ROME, "simie", PUBLISHED_SIMIE),
    ("Q38, Q40", MEMIT, "simie", {**PUBLISHED_SIMIE, "wrap.simie.lam": 10}),
)
"""``default`` of Q29 is the fix, since the published way is our default; λ is set on both sides."""


def label(editor: Mapping[str, Any], wrap: str) -> str:
    return f"{editor['name']}+{wrap}" if wrap else str(editor["name"])


def tree_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as a nested mapping."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return found


@dataclass
class World:
    """Runs on the embedded model; equal trials run once."""

    workspace: Workspace
    edits: int
    done: dict[str, tuple[EvalRound, Weights]] = field(default_factory=dict)

    def trial(self, editor: Mapping[str, Any], wrap: str, point: Mapping[str, Any]) -> TrialSpec:
        """Return one closed trial, through the code that plans sweeps."""
        asking = "generation" if editor["name"] == "grace" else "teacher_forced"
        rounds = sorted({0, 1, self.edits // 2, self.edits})
        protocol = {"rounds": rounds, "immediate": False, "asking": asking}
        tree = {
            "sweep": "quirks",
            "base": {"data": {"name": "world", "size": self.edits}, "protocol": protocol},
            "arms": {"a": {"editor": tree_of(editor)} | ({"wrap": wrap} if wrap else {})},
            "space": {k: {"grid": [v]} for k, v in point.items()},
        }
        (found,) = plan(parse_search_space(tree, file="quirks"), self.workspace).trials
        return found.trial

    def run(self, editor: Mapping[str, Any], wrap: str, point: Mapping[str, Any]) -> tuple[EvalRound, Weights]:
        """Return the last round of a trial, and the total changes of what it edited."""
        trial = self.trial(editor, wrap, point)
        if trial.key not in self.done:
            deps = make_deps(self.workspace)
            (*_, last) = Lifelong().execute(trial, deps, None)
            assert last.snapshot is not None
            tensors, lm = last.snapshot.tensors, deps.load_model(trial.model)
            names = [n.removeprefix("weights/") for n in tensors if n.startswith("weights/")]
            changes = {n: tensors[f"weights/{n}"] - lm.weight(n).float() for n in names}
            if "state/side" in tensors:
                config = trial.editor.config
                name = lm.layout.mlp_matrix(config.layer, config.matrix)
                changes["side"] = tensors["state/side"] - lm.logical(f"{name}.weight").float()
            self.done[trial.key] = (last, changes)
        return self.done[trial.key]

    def row(self, quirk: str, editor: Mapping[str, Any], wrap: str, point: Mapping[str, Any]) -> Row:
        """Return the default beside the published way, which *point* sets (λ on both sides)."""
        ours, mine = self.run(editor, wrap, {k: v for k, v in point.items() if k.endswith(".lam")})
        theirs, published = self.run(editor, wrap, point)
        said = ", ".join(f"{k.split('.', 1)[1]} {v}" for k, v in point.items())
        row = {"quirk": quirk, "run": f"world, {label(editor, wrap)}, {self.edits} edits", "published way": said}
        return row | {"default": means(ours), "published": means(theirs), "change": change(mine, published)}


def world_rows(wanted: Sequence[str], world: World) -> list[Row]:
    """Return the rows of the embedded world."""
    rows = []
    for quirk, editor, wrap, point in WORLD:
        if not wanted or set(quirk.split(", ")) & set(wanted):
            rows.append(world.row(quirk, editor, wrap, point))
            print(" | ".join(str(v) for v in rows[-1].values()), flush=True)
    return rows


def change(ours: Weights, published: Weights) -> float:
    """Return the largest relative difference of changes that both have, NaN if there is none."""
    pairs = [(ours[n], t) for n, t in published.items() if n in ours and float(t.norm())]
    return max((float((a - b).norm() / b.norm()) for a, b in pairs), default=float("nan"))


def means(found: EvalRound) -> str:
    return " / ".join(f"{found.summary[f'retained/{v}']:.3f}" for v in ("rel", "gen", "loc"))


def edited(variant: Variant, spec: EditorSpec) -> tuple[Weights, list[tuple[int, ...]]]:
    """Write the recorded records; return the total changes and every answer afterwards."""
    return outcome(variant, replay(variant, spec)[-1])


def outcome(variant: Variant, weights: Weights) -> tuple[Weights, list[tuple[int, ...]]]:
    """Return the changes to *weights* and every answer of the model that has them."""
    lm, ledger = variant.lm, Ledger(variant.lm)
    changes = {n: w - lm.weight(n).detach() for n, w in weights.items()}
    ledger.load(weights)
    scores = scoring.score(lm, [p for r in variant.records for p in r.probes])
    ledger.restore()
    return changes, [s.answers for s in scores]


def tiny_row(quirk: str, name: str, said: str, ours: Any, published: Any) -> Row:
    (mine, answers), (theirs, others) = ours, published
    pairs = [(a, b) for x, y in zip(answers, others, strict=True) for a, b in zip(x, y, strict=True)]
    told = f"{sum(a != b for a, b in pairs)} of {len(pairs)} answer tokens differ"
    row = {"quirk": quirk, "run": f"tiny, {name}", "published way": said, "default": told}
    return row | {"published": "–", "change": change(mine, theirs)}


def tiny_rows(wanted: Sequence[str]) -> list[Row]:
    """Return the rows of the recorded models."""
    made = (
        (("Q3",), torn_splits), (("Q4",), two_spaces), (("Q6",), stand_alone_pieces), (("Q7",), generated),
        (("Q8", "Q44"), beside_the_means), (("Q11",), lazy_moments), (("Q18",), labels_by_mean), (("Q28", "Q31"), side_memories),
        (("Q32",), first_memory), (("Q50",), replaced_characters),
    )  # fmt: skip
    rows = [row for quirks, make in made if not wanted or set(quirks) & set(wanted) for row in make()]
    flags = (
        ("Q13", "tiny-llama/ft-prompt_last", "ask_special True", {"ask_special": False}),
        ("Q14", "tiny-gpt2/ft-prompt_last-with-bias", "train_bias True", {"train_bias": False}),
        ("Q33", "tiny-llama/mend", "ref_labels True", {"ref_labels": False}),
    )
    for quirk, name, said, fix in flags:
        if not wanted or quirk in wanted:
            variant = Variant(name)
            spec = variant.spec()
            fixed = EditorSpec(name=spec.name, config={**spec.config.model_dump(), **fix}, wrap=spec.wrap)
            rows.append(tiny_row(quirk, name, said, edited(variant, fixed), edited(variant, spec)))
    if not wanted or "Q17" in wanted:
        variant = Variant(test_alphaedit.REHEARSED[0])
        history, _ = test_alphaedit.run(variant, variant.spec(), rehearse=True)
        rows.append(
            tiny_row(
                "Q17", variant.name, "a throwaway edit stays in memory",
                edited(variant, variant.spec()), outcome(variant, history[-1]),
            )
        )  # fmt: skip
    return rows


def generated() -> list[Row]:
    """GRACE's generated answers compared with the target behind the prompt, and as published (Q7)."""
    rows = []
    for model in ("tiny-gpt2", "tiny-llama"):
        variant = Variant(f"{model}/rome")
        lm, ledger = variant.lm, Ledger(variant.lm)
        editor = build_editor(EditorSpec(name="grace", config={"layer": 1, "steps": 60}))
        words = ("the", "of", "in", "and", "to", "a")  # random models can be steered at one token only
        records = [replace(r, target=t) for r, t in zip(variant.records, words, strict=True)]
        state, rng = editor.begin(lm, {}), torch.Generator().manual_seed(0)
        for record in records:
            step = editor.edit(lm, [record], state, artifacts={}, rng=rng)
            state = step.state
        ledger.apply(step.patch)
        probes = [Probe(kind=ProbeKind.EFFICACY, prompt=r.prompt, target=r.target) for r in records]
        rel = []
        for published in (False, True):
            found = generation.score_generated(lm, probes, published=published)
            rel.append(sum(f.answers == f.labels for f in found) / len(found))
        ledger.restore()
        row = {"quirk": "Q7", "run": f"tiny, {model}, grace, 6 edits", "published way": "asking generation_ref"}
        rows.append(row | {"default": f"Rel {rel[0]:.2f}", "published": f"Rel {rel[1]:.2f}"})
    return rows


def labels_by_mean() -> list[Row]:
    """Entries of GRACE's codebook after six facts of the world in two wordings each (Q18)."""
    lm, told = embedded_lm(), []
    records = edit_records(build_world(WorldSpec()))[:6]
    again = [replace(r, prompt=next(p.prompt for p in r.probes if p.kind is ProbeKind.PARAPHRASE)) for r in records]
    for ref in (False, True):
        editor = build_editor(EditorSpec(name="grace", config={"layer": 2, "steps": 2, "radius": 3.0, "ref": ref}))
        state, rng = editor.begin(lm, {}), torch.Generator().manual_seed(0)
        for record in (*records, *again):
            state = editor.edit(lm, [record], state, artifacts={}, rng=rng).state
        told.append(f"{len(state['keys'])} entries")
    row = {"quirk": "Q18", "run": "world, grace, 6 facts in 2 wordings", "published way": "ref True"}
    return [row | {"default": told[0], "published": told[1]}]


def beside_the_means() -> list[Row]:
    """What stands beside the published means: of perplexities (Q8), of tokens (Q44)."""
    rows = []
    for quirk, name, views in (
        ("Q8", "tiny-gpt2/rome-ppl", {"PPL": "ppl", "median": "ppl_median", "exp-mean": "ppl_expmean"}),
        ("Q44", "tiny-gpt2/ft-target_new-25steps", {"Rel": "rel", "exact": "rel_exact"}),
    ):
        variant = Variant(name)
        (*_, last) = test_prune.study(variant, variant.spec())
        mean, *others = (f"{said} {last.summary[f'retained/{view}']:.3g}" for said, view in views.items())
        row = {"quirk": quirk, "run": f"tiny, {name}", "published way": "a mean"}
        rows.append(row | {"default": f"beside it: {', '.join(others)}", "published": mean})
    return rows


def side_memories() -> list[Row]:
    """WISE's labels where the irrelevant text is the longest row (Q28), and its padding (Q31), on the recorded records."""
    variant = Variant("tiny-gpt2/wise-retrieve")
    masks = [t for n, t in variant.tensors.items() if n.endswith("weight_mask")]

    def run(times: int = 1, **flags: bool) -> Weights:
        config = test_wise.config(variant).model_copy(update={"ref_labels": False, **flags})
        editor = test_wise.Recorded(config, [*masks])
        state = editor.begin(variant.lm, {})
        frozen = state["side"]
        for record in test_wise.records(variant):
            long = replace(record, unrelated=" ".join([record.unrelated] * times))
            state = editor.edit(variant.lm, [long], state, artifacts={}, rng=torch.Generator()).state
        return {"side": state["side"] - frozen}

    row = {"run": f"tiny, {variant.name}", "default": "–", "published": "–"}
    labels = change(run(4), run(4, ref_labels=True))
    padding = change(run(ref_padding=False), run())
    return [
        row | {"quirk": "Q28", "published way": "ref_labels True, irrelevant text x 4", "change": labels},
        row | {"quirk": "Q31", "published way": "ref_padding True", "change": padding},
    ]


def two_spaces() -> list[Row]:
    """A target that begins with a space: ROME and FT put another before it, MEMIT does not (Q4); both are kept."""
    rows = []
    for name in ("rome", "memit"):
        variant = Variant(f"tiny-gpt2/{name}")
        record = variant.records[3]
        spaced = replace(record, target=f" {record.target}")
        (one,), (two,) = (one_edit(variant, r) for r in (record, spaced))
        row = {"quirk": "Q4", "run": f"tiny, {variant.name}, one edit", "published way": 'target " x" against "x"'}
        rows.append(row | {"default": "the same", "published": "–", "change": change({"w": two}, {"w": one})})
    return rows


def one_edit(variant: Variant, record: EditRecord) -> tuple[Tensor, ...]:
    editor, lm = build_editor(variant.spec()), variant.lm
    step = editor.edit(lm, [record], editor.begin(lm, {}), artifacts=variant.artifacts(), rng=torch.Generator())
    return tuple(d.dense() for d in list(step.patch.deltas.values())[:1])  # type: ignore[union-attr]


def stand_alone_pieces() -> list[Row]:
    """Targets without SentencePiece's stand-alone piece (Q6), on a random Llama with a tokenizer in Llama-2's shape."""
    flags = [{"strip_dummy_piece": strip} for strip in (True, False)]
    row = {"quirk": "Q6", "published way": "strip_dummy_piece False (default)", "default": "True"}
    return [row | {"run": f"llama-2, {name}, one edit", "change": c} for name, c in random_llama("Mars hill", *flags)]


def replaced_characters() -> list[Row]:
    """A target whose last character is several tokens (Q50), on the same model."""
    row = {"quirk": "Q50", "published way": "ref_decoded_rows True", "default": "–"}
    found = random_llama("서울", {"ref_decoded_rows": False}, {"ref_decoded_rows": True}, editors=("rome", "memit"))
    return [row | {"run": f"llama-2, {name}, one edit", "change": c} for name, c in found]


def random_llama(
    target: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], *, editors: Sequence[str] = ("rome", "memit", "ft")
) -> list[tuple[str, float]]:
    """Return, for each editor, how far two settings of its value (of itself for FT) differ after one edit."""
    record = EditRecord(id="0", subject="Ana", prompt="The pet of Ana is", target=target, probes=())
    value = {"steps": 20, "lr": 0.5}
    bases: dict[str, dict[str, Any]] = {
        "rome": {"layers": [1], "value": value, "moments": {"damping": 1e-2}},
        "memit": {"layers": [0, 1], "value": value, "moment_weight": 1.0, "moments": {"damping": 1e-2}},
        "ft": {"layers": [1], "lr": 1e-3},
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        lm = loaded("llama-2", Path(folder, "llama-2"))
        for name in editors:
            pair = []
            for flags in (ours, theirs):
                spec = {**bases[name], **(flags if name == "ft" else {"value": {**value, **flags}})}
                editor = build_editor(EditorSpec(name=name, config=spec))
                artifacts = Exam(build=lambda e=editor: e, lm=lm, fresh=lambda: lm).artifacts(editor, lm)
                step = editor.edit(lm, [record], None, artifacts=artifacts, rng=torch.Generator())
                pair.append({n: d.dense() for n, d in step.patch.deltas.items()})  # type: ignore[union-attr]
            found.append((name, change(*pair)))
    return found


def lazy_moments() -> list[Row]:
    """Second moments of MEMIT's upper layer taken after the lower one was edited (Q11), for the first record."""
    rows = []
    for model in ("tiny-gpt2", "tiny-llama"):
        variant = Variant(f"{model}/memit")
        lm, artifacts = variant.lm, variant.artifacts()
        texts = json.loads((HERE / model / "covariance.json").read_text())["texts"]
        editor = build_editor(variant.spec())
        step = editor.edit(lm, variant.records[:1], None, artifacts=artifacts, rng=torch.Generator())
        lower = dict(list(step.patch.deltas.items())[:1])  # type: ignore[union-attr]
        asked = second_moments.request(lm, lm.layout.mlp_out, 2, MomentSpec())
        asked = replace(asked, inputs={**asked.inputs, "text": {"tokens": 0}})
        with weight_ledger.applied(lm, lower):
            ((tensors, _),) = second_moments.build(lm, [asked], iter(texts))
        early = {**artifacts, "moments/2": Artifact("lazy", tensors, {})}
        again = build_editor(variant.spec())
        other = again.edit(lm, variant.records[:1], None, artifacts=early, rng=torch.Generator())
        pair = [{n: d.dense() for n, d in s.patch.deltas.items()} for s in (step, other)]  # type: ignore[union-attr]
        told = change({"c": artifacts["moments/2"].tensors["moments"]}, {"c": tensors["moments"]})
        row = {
            "quirk": "Q11",
            "run": f"tiny, {variant.name}, one edit",
            "published way": "moments after the lower edit",
        }
        rows.append(row | {"default": f"C differs by {told:.2g}", "published": "–", "change": change(*pair)})
    return rows


def first_memory() -> list[Row]:
    """Linear mergers that use only the first of two memories (Q32)."""
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(64, 64, generator=rng)
    copies = [base + 0.1 * torch.randn(64, 64, generator=rng) for _ in range(2)]
    rows = []
    for algorithm in ("linear", "slerp"):
        ours, theirs = (
            {"w": merging.merge(base, copies, [0.5, 0.5], algorithm=algorithm, first_only=first) - base}  # type: ignore[arg-type]
            for first in (False, True)
        )
        row = {
            "quirk": "Q32",
            "run": f"random 64 x 64, {algorithm}, two memories",
            "published way": "merge.published True",
        }
        rows.append(row | {"default": "–", "published": "–", "change": change(ours, theirs)})
    return rows


def torn_splits() -> list[Row]:
    """How many splits of questions and subjects rest on a false assumption (Q3)."""
    tiny = [(f"tiny, {model}", Variant(f"{model}/rome")) for model in ("tiny-gpt2", "tiny-llama")]
    asked = [(name, v.lm, v.records) for name, v in tiny]
    asked.append(("world", embedded_lm(), list(edit_records(build_world(WorldSpec())))[:250]))
    rows = []
    for name, lm, records in asked:
        answers, subjects = boundaries.report(lm, records, [p for r in records for p in r.probes])
        row = {"quirk": "Q3", "run": f"{name}, {len(records)} records", "published way": "unchecked"}
        rows.append(row | {"default": f"{answers} answers, {subjects} subjects", "published": "–"})
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.quirks", description=TITLE)
    parser.add_argument("--only", nargs="*", default=[], metavar="Qn")
    parser.add_argument("--edits", type=int, default=10, help="of the world")
    parser.add_argument("--root", default="", help="where artifacts are kept")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    about = measure.machine()
    rows = tiny_rows(options.only) + world_rows(
        options.only, World(Workspace.here(options.root or None), options.edits)
    )
    rows.sort(key=lambda r: int(str(r["quirk"]).split(",")[0][1:]))
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


if __name__ == "__main__":
    main()
