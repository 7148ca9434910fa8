"""Results of MEMIT and of what came of it: ``run_000/100_edits-case_7.json``; NAS: ``checkpoint_evals/after_100/results.jsonl``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from raysweep.jsontypes import Json
from raysweep.results.theirs.cases import EFFICACY, LOCALITY, PARAPHRASE, Case, Notes, Value, entries, question

_SECTIONS = {"rewrite_prompts": EFFICACY, "paraphrase_prompts": PARAPHRASE, "neighborhood_prompts": LOCALITY}
_AFTER = re.compile(r"after_(\d+)")


def read(path: Path, editor: str, notes: Notes) -> list[Case]:
    """Return the records of one file, having noted what is wrong with it; *editor* tells nothing here."""
    cases = []
    after = _AFTER.fullmatch(path.parent.name)
    for where, entry in entries(path, notes):
        post, edits = entry.get("post"), entry.get("num_edits")
        if "case_id" not in entry or not isinstance(post, dict):
            lacks = "case_id" if "case_id" not in entry else "post"
            notes.say(where, f"lacks '{lacks}'", "is it a file of MEMIT's experiments/evaluate.py, or of NAS's?")
            continue
        step = int(after[1]) if after else edits if isinstance(edits, int) else 0
        if not step:
            notes.say(where, "does not say after how many edits it was measured (num_edits, or the folder after_N)")
            continue
        values = _values(post, f"{where}.post", notes)
        if not values:
            notes.say(f"{where}.post", "holds no …_correct and no …_probs")
        facts = "counterfact.all_tokens" if "rewrite_prompts_probs" in post else "zsre.token_accuracy"
        protocol = f"memit.{facts}{'' if after else f'.batches_of_{step}'}"
        cases.append(Case(str(entry["case_id"]), question(entry), (), values, protocol, step))
    return cases


def _values(post: Mapping[str, Json], where: str, notes: Notes) -> tuple[Value, ...]:
    found = []
    tokens = 1
    for prefix, kind in _SECTIONS.items():
        correct = notes.numbers(post.get(f"{prefix}_correct", []), f"{where}.{prefix}_correct")
        if kind == EFFICACY and "rewrite_prompts_probs" not in post:
            tokens = max(len(correct), 1)  # ZsRE: a value for each token of the target; there is one prompt
        size = tokens if kind != LOCALITY else 1
        metric = "agreement" if kind == LOCALITY else "token_match"
        for i in range(0, len(correct), size):
            part = correct[i : i + size]
            found.append(Value(kind, "", i // size, metric, sum(part) / len(part)))
        probs = post.get(f"{prefix}_probs", [])
        for i, one in enumerate(probs if isinstance(probs, list) else []):
            new, true = (one.get(k) if isinstance(one, dict) else None for k in ("target_new", "target_true"))
            if not isinstance(new, int | float) or not isinstance(true, int | float):
                notes.say(
                    f"{where}.{prefix}_probs[{i}]", "must hold target_new and target_true, negative log-probabilities"
                )
                continue
            preferred = true < new if kind == LOCALITY else new < true
            found.append(Value(kind, "", i, "preferred", float(preferred)))
    return tuple(found)
