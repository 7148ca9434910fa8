"""Print how far we are from each recorded run of the published code, and how far both are from the truth.

    python -m tests.golden.report            # all of them; or names that begin with: … report tiny-gpt2/memit

*ours* takes the published solves (fp32 LU where it has one); *fix* our default ones (fp64); *truth* is the same run with the whole
model and all algebra in fp64 (edited weights and the optimisers' iterates are still kept in fp32, which is 6e-8). Each number is
the largest relative Frobenius error of a weight's change over all recorded edits (of a codebook's tensors for GRACE).
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.models.lm import LanguageModel
from tests.golden import test_alphaedit, test_grace, test_prune, test_wise
from tests.golden.recorded import Variant, model, variants

LIMIT = 1e-4
Weights = Mapping[str, Tensor]


@lru_cache(maxsize=2)
def doubled(name: str) -> LanguageModel:
    lm = model(name)
    return replace(lm, module=copy.deepcopy(lm.module).double())


class Exact(Variant):
    """A variant on a model in fp64."""

    @property
    def lm(self) -> LanguageModel:
        return doubled(self.name.split("/")[0])


def solved(spec: EditorSpec, *, published: bool) -> EditorSpec:
    """Return *spec* with the published solves, or with ours."""
    config = spec.config.model_dump()
    if spec.name == "alphaedit":
        config["backend"] = "ref_fp32_lu" if published else "rls64"
    if published:
        return EditorSpec(name=spec.name, config=config, wrap=spec.wrap)
    wraps = (WrapSpec(name=w.name, config={**w.config.model_dump(), "backend": "woodbury64"}) for w in spec.wrap)
    return EditorSpec(name=spec.name, config=config, wrap=tuple(wraps))


def run(variant: Variant, *, published: bool) -> dict[str, Tensor]:
    """Return what we compute of everything that was recorded of *variant*, by the recorded name."""
    kind = variant.name.split("/")[1].split("-")[0]
    if kind == "grace":
        _, states, _ = test_grace.replay(variant)
        parts = test_grace.PARTS.items()
        return {f"edit{i}.{theirs}": s[ours] for i, s in enumerate(states) for ours, theirs in parts}
    if kind == "wise":
        _, states, _ = test_wise.replay(variant)
        found = {f"edit{i}.new_weight": s["side"] for i, s in enumerate(states)}
        found |= {f"edit{i}.memory_weight{j}": m for i, s in enumerate(states) for j, m in enumerate(s["memories"])}
        return {n: t.t() for n, t in found.items()} if test_wise.config(variant).matrix == "in" else found
    if kind == "prune":
        found = {}
        names = {"round1": "prune_call0.after_1_edits", "round6": "prune_call1.after_6_edits"}
        for key, weights in test_prune.replay(variant).items():
            found |= {f"{names.get(key, f'{key}.after_base')}.{n}": w for n, w in weights.items()}
        return found
    rehearse = variant.name in test_alphaedit.REHEARSED
    history, _ = test_alphaedit.run(variant, solved(variant.spec(), published=published), rehearse=rehearse)
    label = "after_simie" if variant.data["simie"] else "after_base"
    return {f"edit{i}.{label}.{n}": w for i, weights in enumerate(history) for n, w in weights.items()}


def start_of(variant: Variant, key: str, run: Weights) -> Tensor | float:
    """Return what the tensor *key* of *run* was before its edit, if that was recorded; else the pristine weight, or nothing."""
    group, _, rest = key.partition(".")
    kind, _, name = rest.partition(".")
    if kind in ("new_weight", "memory_weight0", "memory_weight1"):
        start = test_wise.replay_start(variant).float()
        return start.t() if test_wise.config(variant).matrix == "in" else start
    if not name:
        return 0.0
    before = f"edit{int(group.removeprefix('edit')) - 1}.{rest}" if group.startswith("edit") else ""
    return run[before] if before in variant.tensors else variant.lm.weight(name).detach().float()


def distance(variant: Variant, first: Weights, second: Weights) -> float:
    """Return the largest relative error of *first* against *second* over the recorded tensors both have."""
    worst = 0.0
    for key in variant.tensors:
        if key in first and key in second:
            ours, theirs = (side[key] - start_of(variant, key, side) for side in (first, second))
            size = float(theirs.norm())
            worst = max(worst, float((ours - theirs).norm()) / size if size else 0.0)
    return worst


def line(name: str) -> dict[str, Any]:
    """Return one row of the table."""
    variant = Variant(name)
    ours, fix = run(variant, published=True), run(variant, published=False)
    truth = run(Exact(name), published=False)
    theirs = variant.tensors
    return {
        "run": name,
        "ours–published": distance(variant, ours, theirs),
        "fix–published": distance(variant, fix, theirs),
        "truth–published": distance(variant, truth, theirs),
        "truth–ours": distance(variant, ours, truth),
        "truth–fix": distance(variant, fix, truth),
    }


def main(prefixes: list[str]) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    chosen = variants("ft", "rome", "memit", "alphaedit", "prune", "mend", "grace", "wise")
    rows = [line(n) for n in chosen if not prefixes or n.startswith(tuple(prefixes))]
    names = list(rows[0])
    print(f"| {' | '.join(names)} | within |")
    print("|---" * (len(names) + 1) + "|")
    for row in rows:
        within = "1e-4" if row["ours–published"] <= LIMIT else "3 × noise"
        cells = [row["run"], *(f"{row[n]:.0e}" for n in names[1:])]
        print(f"| {' | '.join(cells)} | {within} |")
    for n in names[1:]:
        print(f"\n{n}: largest {max(r[n] for r in rows):.1e}, of {len(rows)} runs", end="")
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
