"""One SimIE update per back end: seconds, ratio to the published solve, and the error after several updates.

    python -m benchmarks.simie --threads 2
    python -m benchmarks.simie --threads 2 --large --held 0 --held 2

Each update gets a rank-one change (as ROME proposes) and ``k`` new keys. The first key is the same in all updates and long,
as the first token of every prompt is; without it the systems would be better conditioned than real ones. ``--held h``: the
memory has ``h d_in`` keys already. Seconds are means, so that what is done now and then (summing keys) has its share: the fast
back end makes ``--updates`` of them, the others a few. ``apply`` is what the ledger does with the change.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from raysweep.editors.null import Null, NullConfig
from raysweep.editors.wrappers.simie.config import SimIEConfig
from raysweep.editors.wrappers.simie.recursive import advance_total, read_numbers
from raysweep.editors.wrappers.simie.wrapper import SimIE
from raysweep.models.ledger import add_delta_logical_
from raysweep.models.patches import LowRank
from raysweep.runtime import device

TITLE = "one SimIE update"
BACKENDS = ("woodbury64", "chol64", "svd", "ref_fp32_lu")
FAST = "woodbury64"
REFERENCE = "ref_fp32_lu"
SIZES = ("1536x576", "4096x4096")
LARGE = ("8192x4096",)
SVD_LIMIT = 2048  # d_in beyond which `svd` takes minutes per update
COLUMNS = ("d_in", "d_out", "k", "held", "mode", "backend", "update s", "update cpu s", "x LU wall", "x LU cpu")
COLUMNS = (*COLUMNS, "apply s", "stats s", "state MB", "error")


@dataclass(frozen=True)
class Case:
    """Which updates to make.

    Attributes:
        d_in, d_out: size of the matrix.
        keys: k, keys per update.
        updates: how many updates the fast back end makes.
        slow: how many the others make; the error is taken after so many.
        lam: λ.
        shared: how many times longer than the others the shared key is.
        held: keys in the memory before the first update.
        mode: of SimIE.
    """

    d_in: int
    d_out: int
    keys: int
    updates: int
    slow: int
    lam: float
    shared: float
    held: int
    mode: str

    def memory(self) -> Tensor:
        """Return the keys held before the first update ``[d_in, held]`` (fp32)."""
        rng = torch.Generator().manual_seed(1)
        return torch.randn(self.d_in, self.held, generator=rng).to(device())


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


def run(backend: str, case: Case) -> tuple[Tensor, dict[str, Any]]:
    """Make the updates; return the weight's change (fp32) after the first few, and the row."""
    config = {"lam": case.lam, "backend": backend, "mode": case.mode}
    simie = SimIE.around(SimIEConfig.model_validate(config), Null(NullConfig()))
    weight = torch.zeros(case.d_out, case.d_in, device=device())
    memory = simie.initial_memory(case.lam, weight)
    if case.held:
        memory = held(simie, memory, case.memory())
    part: dict[str, Any] = {}
    if case.mode == "init":
        part = {"left": [], "right": []} if backend == FAST else {"total": torch.zeros_like(weight)}
    clock, applying, statistic = measure.Clock(), measure.Clock(), measure.Clock()
    found = weight
    for number, (proposed, keys) in enumerate(islice(edits(case), case.updates if backend == FAST else case.slow), 1):
        with clock.timed():
            memory, absorbed = simie.absorb_keys(memory, keys)
            change = simie.correct(part, proposed, absorbed)
            part = advance_total(part, change)
        with applying.timed():
            add_delta_logical_(weight, change)
        with statistic.timed():
            read_numbers({"": (memory, absorbed)}, {"": change}, {"": proposed})
        if number == case.slow:
            found = weight.clone()
    size = sum(
        t.nbytes
        for kept in (memory, part)
        for v in kept.values()
        for t in (v if isinstance(v, list) else [v])
        if isinstance(t, Tensor)
    )
    row = {
        "d_in": case.d_in,
        "d_out": case.d_out,
        "k": case.keys,
        "held": case.held,
        "mode": case.mode,
        "backend": backend,
    }
    row |= dict(zip(("update s", "update cpu s"), clock.mean(), strict=True))
    row |= {"apply s": applying.mean()[0], "stats s": statistic.best(), "state MB": size / 1e6}
    return found, row | {"wall": clock.wall, "cpu": clock.cpu}


def held(simie: SimIE, memory: dict[str, Any], keys: Tensor) -> dict[str, Any]:
    """Return *memory* with *keys* in it."""
    if simie.config.backend != FAST:
        keys = keys.to(memory["gram"].dtype)
        return {**memory, "gram": memory["gram"] + keys @ keys.T}
    for columns in keys.split(256, dim=1):
        memory, _ = simie.absorb_keys(memory, columns)
    return memory


def truth(case: Case) -> Tensor:
    """Return the change after the first few updates by a direct fp64 solve for each (docs/methods/simie.md)."""
    gram = case.lam * torch.eye(case.d_in, dtype=torch.float64, device=device())
    if case.held:
        gram += case.memory().double() @ case.memory().double().T
    weight = torch.zeros(case.d_out, case.d_in, dtype=torch.float64, device=device())
    for proposed, keys in islice(edits(case), case.slow):
        keys = keys.double()
        gram += keys @ keys.T
        values = proposed.times(keys) - (weight @ keys if case.mode == "init" else 0)
        weight += values @ torch.linalg.solve(gram, keys).T
    return weight


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.simie", description=TITLE)
    parser.add_argument("--size", action="append", metavar="D_INxD_OUT", help=f"default: {', '.join(SIZES)}")
    parser.add_argument("--large", action="store_true", help=f"also {', '.join(LARGE)}")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated; default: all")
    parser.add_argument("--svd-limit", type=int, default=SVD_LIMIT, help="leave svd out beyond this d_in")
    parser.add_argument("--keys", type=int, default=20, help="k, keys per update")
    parser.add_argument("--updates", type=int, default=60, help="of the fast back end")
    parser.add_argument(
        "--slow", type=int, default=3, help="updates of the other back ends, and before the error is taken"
    )
    parser.add_argument(
        "--held", type=float, action="append", help="keys in the memory, in units of d_in; default: 0, 2"
    )
    parser.add_argument("--mode", choices=("sequential", "init"), default="sequential")
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
        for multiple in [0.0, 2.0] if options.held is None else options.held:
            case = Case(
                d_in=int(d_in),
                d_out=int(d_out or d_in),
                keys=options.keys,
                updates=options.updates,
                slow=min(options.slow, options.updates),
                lam=options.lam,
                shared=options.shared,
                held=round(multiple * int(d_in)),
                mode=options.mode,
            )
            rows += measured(case, options.backend or BACKENDS, options.svd_limit)
    what = f"λ {options.lam:g}, {options.updates} or {options.slow} updates, shared key x {options.shared:g}"
    measure.show(f"{TITLE} ({what})", about, COLUMNS, rows)
    measure.write_json(options.json, TITLE, about, vars(options), rows)
    return rows


def measured(case: Case, backends: Sequence[str], svd_limit: int) -> list[dict[str, Any]]:
    """Return one row per back end."""
    exact = truth(case)
    rows = []
    for backend in backends:
        if backend == "svd" and case.d_in > svd_limit:
            continue
        weight, row = run(backend, case)
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
