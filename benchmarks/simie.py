"""One SimIE update per back end: seconds, ratio to the published solve, and the error after several updates.

    python -m benchmarks.simie --threads 2
    python -m benchmarks.simie --threads 2 --large

Each update gets a rank-one change (as ROME proposes) and ``k`` new keys. The first key is the same in all updates and long,
as the first token of every prompt is; without it the systems would be better conditioned than real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from raysweep.editors import leastsq
from raysweep.editors.base import LowRank
from raysweep.editors.null import Null, NullConfig
from raysweep.editors.wrappers.simie import SimIE, SimIEConfig, _kept
from raysweep.runtime import device

TITLE = "one SimIE update"
BACKENDS = ("woodbury64", "chol64", "svd", "ref_fp32_lu")
REFERENCE = "ref_fp32_lu"
SIZES = ("1536x576", "4096x4096")
LARGE = ("8192x4096",)
SVD_LIMIT = 2048  # d_in beyond which `svd` takes minutes per update
COLUMNS = ("d_in", "d_out", "k", "backend", "update s", "update cpu s", "x LU wall", "x LU cpu", "stats s", "error")


@dataclass(frozen=True)
class Case:
    """Which updates to make: sizes, keys per update, updates, λ, and how many times longer the shared key is."""

    d_in: int
    d_out: int
    keys: int
    updates: int
    lam: float
    shared: float


def edits(case: Case) -> Iterator[tuple[LowRank, Tensor]]:
    """Yield changes and keys ``[d_in, k]`` (fp32, as a model gives them), the same for every back end."""
    d_in, d_out = case.d_in, case.d_out
    rng = torch.Generator().manual_seed(0)
    shared = torch.randn(d_in, 1, generator=rng) * case.shared
    for _ in range(case.updates):
        keys = torch.cat([shared, torch.randn(d_in, case.keys - 1, generator=rng)], dim=1)
        left = torch.randn(d_out, 1, generator=rng, dtype=torch.float64)
        right = torch.randn(1, d_in, generator=rng, dtype=torch.float64)
        yield LowRank(left.to(device()), right.to(device()) / d_in**0.5), keys.to(device())


def run(backend: str, case: Case) -> tuple[Tensor, measure.Clock, float]:
    """Make the updates; return the weight's change (fp32), the clock, and seconds of one ``simie_kept`` statistic."""
    simie = SimIE(SimIEConfig.model_validate({"lam": case.lam, "backend": backend}), Null(NullConfig()))
    dtype = torch.float32 if backend == REFERENCE else torch.float64
    ridge = leastsq.ridge_begin(case.d_in, case.lam, inverse=backend == "woodbury64", dtype=dtype, device=device())
    memory: dict[str, Any] = {"lam": ridge.lam, "gram": ridge.gram, "age": 0}
    if ridge.inverse is not None:
        memory["inverse"] = ridge.inverse
    weight = torch.zeros(case.d_out, case.d_in, device=device())
    clock, statistic = measure.Clock(), measure.Clock()
    for proposed, keys in edits(case):
        with clock.timed():
            memory, (columns, gain, _) = simie._absorb(memory, keys)
            change = simie._correct({}, proposed, columns, gain)
            weight += change.dense().float()
        with statistic.timed():
            _kept(change, proposed)
    return weight, clock, statistic.best()


def truth(case: Case) -> Tensor:
    """Return the change after all updates by a direct fp64 solve for each (editors.md §13.1)."""
    gram = case.lam * torch.eye(case.d_in, dtype=torch.float64, device=device())
    weight = torch.zeros(case.d_out, case.d_in, dtype=torch.float64, device=device())
    for proposed, keys in edits(case):
        keys = keys.double()
        gram += keys @ keys.T
        weight += proposed.times(keys) @ torch.linalg.solve(gram, keys).T
    return weight


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.simie", description=TITLE)
    parser.add_argument("--size", action="append", metavar="D_INxD_OUT", help=f"default: {', '.join(SIZES)}")
    parser.add_argument("--large", action="store_true", help=f"also {', '.join(LARGE)}")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated; default: all")
    parser.add_argument("--svd-limit", type=int, default=SVD_LIMIT, help="leave svd out beyond this d_in")
    parser.add_argument("--keys", type=int, default=20, help="k, keys per update")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--lam", type=float, default=10.0)
    parser.add_argument("--shared", type=float, default=30.0, help="how many times longer the shared key is")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = measure.machine()
    rows = []
    for text in (*(options.size or SIZES), *(LARGE if options.large else ())):
        d_in, _, d_out = text.partition("x")
        case = Case(int(d_in), int(d_out or d_in), options.keys, options.updates, options.lam, options.shared)
        rows += measured(case, options.backend or BACKENDS, options.svd_limit)
    what = f"λ {options.lam:g}, {options.updates} updates, shared key x {options.shared:g}"
    measure.show(f"{TITLE} ({what})", about, COLUMNS, rows)
    measure.write_json(options.json, TITLE, about, vars(options), rows)
    return rows


def measured(case: Case, backends: Sequence[str], svd_limit: int) -> list[dict[str, Any]]:
    """Return one row per back end; seconds are medians over the updates."""
    exact = truth(case)
    rows = []
    for backend in backends:
        if backend == "svd" and case.d_in > svd_limit:
            continue
        weight, clock, statistic = run(backend, case)
        row: dict[str, Any] = {"d_in": case.d_in, "d_out": case.d_out, "k": case.keys, "backend": backend}
        row |= dict(zip(("update s", "update cpu s"), clock.median(), strict=True))
        row |= {"stats s": statistic, "wall": clock.wall, "cpu": clock.cpu}
        row["error"] = float((weight - exact).norm() / exact.norm())
        rows.append(row)
        print(f"{case.d_in}x{case.d_out} {backend}: {row['update s']:.4f} s", flush=True)
    for slow in (r for r in rows if r["backend"] == REFERENCE):
        for row in rows:
            row["x LU wall"] = slow["update s"] / row["update s"]
            row["x LU cpu"] = slow["update cpu s"] / row["update cpu s"]
    return rows


if __name__ == "__main__":
    main()
