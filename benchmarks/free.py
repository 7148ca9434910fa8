"""Free generation: keys and values kept, beside whole rows computed anew at each step (the older ``generate``).

    python -m benchmarks.free                     # the embedded model
    python -m benchmarks.free --model smollm2-135m --prompts 16

Both sides write as many tokens to the same prompts, in turn; no full stop ends one. *equal* counts rows with the same ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from raysweep.config.schema import ModelSpec
from raysweep.evals.free import Asked, write
from raysweep.evals.generation import generate
from raysweep.models import tokens
from raysweep.models.sources.load import load
from raysweep.workspace import Workspace
from raysweep.world import WorldSpec, build_world, edit_records

TITLE = "free generation: keys and values kept, beside whole rows"
COLUMNS = ("model", "prompts", "tokens", "batch", "s", "cpu s", "whole cpu s", "x cpu", "equal")
ENDLESS = 10**6  # full stops that end no answer


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    lm = load(ModelSpec(name=options.model), Workspace(options.root))
    prompts = [record.prompt for record in edit_records(build_world(WorldSpec()))[: options.prompts]]
    asked = [Asked(tuple(tokens.encode(lm, prompt)), ENDLESS) for prompt in prompts]
    about, ours, whole = measure.machine(), measure.Clock(), measure.Clock()
    for _ in range(options.repeat):
        with ours.timed():
            written = write(lm, asked, most=options.tokens, batch=options.batch)
        with whole.timed():
            rows = generate(lm, prompts, [options.tokens] * len(prompts), batch=options.batch)
    # a newline ends ours, which the older way does not know
    equal = sum(list(w.ids) == row[: len(w.ids)] for w, row in zip(written, rows, strict=True))
    (wall, cpu), (_, whole_cpu) = ours.median(), whole.median()
    row = {
        "model": options.model, "prompts": len(prompts), "tokens": options.tokens, "batch": options.batch, "s": wall,
        "cpu s": cpu, "whole cpu s": whole_cpu, "x cpu": whole_cpu / cpu, "equal": f"{equal}/{len(prompts)}",
    }  # fmt: skip
    measure.report(options, TITLE, about, COLUMNS, [row])
    return [row]


if __name__ == "__main__":
    main()
