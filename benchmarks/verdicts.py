"""How often verdicts are wrong where there is no difference, and right where there is one, over simulated sweeps.

    python -m benchmarks.verdicts                    # the table of docs/results.md; some minutes
    python -m benchmarks.verdicts --sweeps 200

A simulated sweep has a reference and one or four other arms on the same records; its family is their differences to it. Values
are made as ``benchmarks/coverage.py`` makes them: 0/1, or shares of tokens, alike between arms by .5 on the normal scale. Where
nothing is planted all arms have the reference's true mean; a planted effect moves the mean of the last half of the arms by so
much on the normal scale.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from benchmarks.coverage import Generator, shares
from raysweep.intervals import Array
from raysweep.verdicts import ALPHA, Word, verdicts


@dataclass(frozen=True, slots=True)
class Population:
    """What simulated sweeps are made of.

    Attributes:
        arms: beside the reference.
        records: of each sweep.
        seeds: of each sweep.
        sd: standard deviation of the seeds' means.
        tokens: shares of tokens instead of 0/1 values.
        effect: by how much the last two arms differ, on the normal scale of a 0/1 value.
    """

    arms: int
    records: int
    seeds: int
    sd: float
    tokens: bool = False
    effect: float = 0.0


def family(rng: Generator, p: float, population: Population) -> list[Array]:
    """Return the differences of the arms to the reference, each of shape (records, seeds)."""
    record = rng.standard_normal((1, population.records, 1))
    arms = []
    for i in range(population.arms + 1):
        moved = population.effect if i > population.arms // 2 else 0.0
        mean = np.array([ndtr(ndtri(p) + moved)])
        arms.append(
            shares(
                rng,
                mean,
                population.records,
                population.seeds,
                sd=population.sd,
                tokens=population.tokens,
                record=record,
            )[0]
        )
    return [arm - arms[0] for arm in arms[1:]]


@dataclass(frozen=True, slots=True)
class Rates:
    """Over simulated sweeps: the share with any false verdict, and the share of planted differences that were shown."""

    false: float
    shown: float


def rates(rng: Generator, population: Population, sweeps: int) -> Rates:
    """Return the rates over *sweeps* simulated ones; each has its own true mean between .1 and .9."""
    false = shown = 0
    for _ in range(sweeps):
        words = [v.word if v else Word.NOT_SHOWN for v in verdicts(family(rng, rng.uniform(0.1, 0.9), population))]
        equal, moved = (
            (words, []) if not population.effect else (words[: population.arms // 2], words[population.arms // 2 :])
        )
        # A difference shown on the wrong side is a false verdict, too.
        false += any(w is not Word.NOT_SHOWN for w in equal) or Word.WORSE in moved
        shown += sum(w is Word.BETTER for w in moved)
    return Rates(
        false / sweeps, shown / sweeps / (population.arms - population.arms // 2) if population.effect else float("nan")
    )


POPULATIONS = (
    *(Population(arms, 20, 1, 0.0) for arms in (1, 4)),
    *(Population(arms, 100, 1, 0.0) for arms in (1, 4)),
    *(Population(arms, 100, 1, 0.0, tokens=True) for arms in (1, 4)),
    *(Population(arms, 1000, 1, 0.0) for arms in (1, 4)),
    *(Population(arms, 100, 3, sd) for arms in (1, 4) for sd in (0.0, 0.05)),
    *(Population(arms, 100, 10, 0.05) for arms in (1, 4)),
    Population(1, 100, 1, 0.0, effect=0.5),
    Population(4, 100, 1, 0.0, effect=0.5),
    Population(1, 1000, 1, 0.0, effect=0.2),
    Population(4, 100, 3, 0.05, effect=0.5),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000)
    sweeps = parser.parse_args().sweeps
    error = 2.0 * (ALPHA * (1.0 - ALPHA) / sweeps) ** 0.5
    print(f"{sweeps} sweeps each; .05 ± {error:.3f} is chance alone (two binomial standard errors)\n")
    print(
        "| arms | values | records | seeds | seeds' sd | planted | any false verdict | planted ones shown |\n|"
        + " --- |" * 8
    )
    for i, population in enumerate(POPULATIONS):
        found = rates(np.random.default_rng(i), population, sweeps)
        values = "tokens" if population.tokens else "0/1"
        shown = f"{found.shown:.3f}" if population.effect else "–"
        cells = (
            population.arms, values, population.records, population.seeds, f"{population.sd:g}", population.effect or "–",
            f"{found.false:.3f}", shown,
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
