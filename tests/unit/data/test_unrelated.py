"""The text that a row lends another: from half-way round the file, passing over rows without one, in a time that is linear."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from raysweep.data.zsre import Zsre
from raysweep.records import ProbeKind


def rows(count: int, lenders: set[int], same: set[int]) -> list[dict[str, str]]:
    """Return *count* rows, of which *lenders* have a locality question, those of *same* one and the same."""
    out = []
    for i in range(count):
        row = {"subject": f"s{i}", "src": f"The pet of s{i} is", "alt": f"a{i}"}
        if i in lenders:
            row |= {"loc": "nq question: who" if i in same else f"nq question: who {i}", "loc_ans": "me"}
        out.append(row)
    return out


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_first_other_text_from_half_way_round(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([1, 2, 7, 20])
    lenders = set(rng.sample(range(count), rng.randrange(count + 1)))
    same = {i for i in lenders if rng.random() < 0.5}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows(count, lenders, same)))
    records = Zsre().read(file).records
    texts = [next((f"{p.prompt} {p.target}" for p in r.probes if p.kind is ProbeKind.LOCALITY), "") for r in records]
    for i, record in enumerate(records):
        own = {f"{p.prompt} {p.target}" for p in record.probes}
        turns = [texts[(i + count // 2 + k) % count] for k in range(count)]
        assert record.unrelated == next((t for t in turns if t and t not in own), "")
