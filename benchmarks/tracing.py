"""Where a model keeps who a question is about: swap states between two subjects, block by block, and see whose answer comes.

    python -m benchmarks.tracing                                    # the embedded model
    python -m benchmarks.tracing --model belief-small --data belief --data-path hparams/belief/belief-small.yaml

Records that share a wording are paired. The residual stream after a block (0: the embeddings) of one prompt is
overwritten, at the subject's last token, at all of the subject's tokens or at the prompt's last token, with that of the
other; each column is the share of pairs whose answer (arg-max of the next token) becomes the other subject's. Editors
that write at the subject's last token (ROME, MEMIT, AlphaEdit) can do nothing in a block after which that share is 0
(interchange variant of Meng et al. 2022, §2).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from raysweep.config.plan import plan
from raysweep.config.sweep import parse_search_space
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

TITLE = "whose answer comes when states are swapped"
PLACES = ("subject's last token", "whole subject", "prompt's last token")
COLUMNS = ("after block", "pairs", *PLACES)


def pairs(lm: LanguageModel, records: Sequence[EditRecord]) -> list[tuple[EditRecord, EditRecord]]:
    """Return neighbours among the records of one wording whose subjects differ and have equally many tokens."""
    by_template: dict[str, list[EditRecord]] = {}
    for record in records:
        by_template.setdefault(record.template, []).append(record)
    both = [p for same in by_template.values() for p in pairwise(same) if p[0].subject != p[1].subject]
    return [p for p in both if len(tokens.encode(lm, p[0].prompt)) == len(tokens.encode(lm, p[1].prompt))]


def answer(lm: LanguageModel, ids: Sequence[int], block: int, swapped: dict[int, Tensor]) -> int:
    """Return the arg-max after *ids* with the states after *block* blocks overwritten at some positions."""
    module = lm.part(lm.layout.embed if block == 0 else lm.layout.block.format(block - 1))

    def hook(_: Any, __: Any, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        for position, state in swapped.items():
            states[0, position] = state
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return int(lm.module(input_ids=torch.tensor([ids], device=lm.device)).logits[0, -1].argmax())
    finally:
        handle.remove()


def traced(lm: LanguageModel, records: Sequence[EditRecord]) -> list[dict[str, Any]]:
    """Return a row per block."""
    moved: Counter[tuple[int, str]] = Counter()
    blocks, count = int(lm.module.config.num_hidden_layers), 0
    for one, other in pairs(lm, records):
        mine, theirs = (tokens.encode(lm, r.prompt) for r in (one, other))
        if answer(lm, mine, 0, {}) == answer(lm, theirs, 0, {}):
            continue
        with torch.no_grad():
            states = lm.module(
                input_ids=torch.tensor([theirs], device=lm.device), output_hidden_states=True
            ).hidden_states
        wanted, last = answer(lm, theirs, 0, {}), tokens.subject_last(lm, one.template, one.subject)
        places = ([last], [i for i in range(last + 1) if mine[i] != theirs[i]], [len(mine) - 1])
        count += 1
        for block in range(blocks):  # after the last one the states are normed
            for name, positions in zip(PLACES, places, strict=True):
                found = answer(lm, mine, block, {p: states[block][0, p] for p in positions})
                moved[block, name] += found == wanted
    return [
        {"after block": b, "pairs": count, **{n: moved[b, n] / count if count else float("nan") for n in PLACES}}
        for b in range(blocks)
    ]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.tracing", description=TITLE)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="world")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path(), help="workspace of artifacts, data and models")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    workspace = Workspace(options.root.resolve())
    data = {"name": options.data, "size": options.records, **({"path": options.data_path} if options.data_path else {})}
    base = {"model": options.model, "data": data, "protocol": {"rounds": [options.records]}}
    tree = {"sweep": "tracing", "base": base, "arms": {"one": {"editor": "null"}}}
    trial = plan(parse_search_space(tree, file="flags"), workspace).trials[0].trial
    deps = make_deps(workspace)
    about, lm = measure.machine(), deps.load_model(trial.model)
    rows = traced(lm, list(deps.open_dataset(trial.data))[: options.records])
    measure.show(f"{TITLE}: {options.model}", about, COLUMNS, rows)
    measure.write_json(options.json, TITLE, about, vars(options), rows)
    return rows


if __name__ == "__main__":
    main()
