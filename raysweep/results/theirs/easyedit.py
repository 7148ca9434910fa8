"""Results of EasyEdit and SimIE: a list of ``{case_id, requested_rewrite, pre, post}``, values by section.

How a value was measured is told by ``post.metric_meta.<section>.comparable_group``; files from before 11 June 2026 have none, and
it follows from the method and from which values there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raysweep.jsontypes import Json, mapping_of
from raysweep.results.theirs.cases import (
    EFFICACY,
    LOCALITY,
    PARAPHRASE,
    PORTABILITY,
    Case,
    Notes,
    Value,
    entries,
    question,
)

_SECTIONS = {"rewrite": EFFICACY, "rephrase": PARAPHRASE}
_GROUPS = {LOCALITY: "agreement", PORTABILITY: "token_match"}
# GRACE alone was scored by what it generated, as many tokens as the target has.
_GENERATED = "GRACE"


def read(path: Path, editor: str, notes: Notes) -> list[Case]:
    """Return the records of one file, having noted what is wrong with it.

    Args:
        path: of the file.
        editor: the method, by which an older file's protocol is told.
        notes: keeps the mistakes.
    """
    cases = []
    for where, entry in entries(path, notes):
        post = entry.get("post")
        if "case_id" not in entry or not isinstance(post, dict):
            lacks = "case_id" if "case_id" not in entry else "post"
            notes.say(where, f"lacks '{lacks}'", "is it a file of EasyEdit? it is a list of what edit() returned")
            continue
        after = _values(post, f"{where}.post", notes)
        if not after:
            notes.say(f"{where}.post", "holds no value of a rewrite, a rephrase, locality or portability")
        before = _values(mapping_of(entry.get("pre")), f"{where}.pre", notes)
        agreement = _outputs(mapping_of(entry.get("pre")), post, f"{where}.post", notes)
        protocol = protocol_of(post, editor)
        cases.append(Case(str(entry["case_id"]), question(entry), before, (*after, *agreement), protocol))
    return cases


def is_immediate(path: Path) -> bool:
    """Tell whether the records of a file were measured right after each edit, as since 11 June 2026, when ``metric_meta`` came."""
    return any("metric_meta" in mapping_of(entry.get("post")) for _, entry in entries(path, Notes("")))


def protocol_of(post: Mapping[str, Json], editor: str) -> str:
    """Return the comparable group of a record's rewrite, and after a ``+`` that of its locality.

    >>> protocol_of({"rewrite_acc": [1.0]}, "GRACE")
    'lm.vanilla_generation.token_match+locality.lm.pre_post_generated_token_match'
    """
    meta = mapping_of(post.get("metric_meta"))
    groups = [str(mapping_of(one).get("comparable_group", "unknown")) for one in meta.values()]
    if groups:
        return "+".join(dict.fromkeys(sorted(groups, key=lambda g: (g.startswith("locality."), g))))
    if "rewrite_gen_content" in post:
        # With a key for a judge, or without: the older file does not say.
        told = "lm.free_generation.unknown_scorer" if "rewrite_acc" in post else "lm.free_generation.raw_text"
        return f"{told}+locality.lm.pre_post_free_generation_output_match"
    if "rewrite_ppl" in post:
        return "lm.teacher_forcing.perplexity+locality.lm.pre_post_argmax_token_match"
    if editor.upper() == _GENERATED:
        return "lm.vanilla_generation.token_match+locality.lm.pre_post_generated_token_match"
    return "lm.decoder_only_teacher_forcing.token_accuracy+locality.lm.pre_post_argmax_token_match"


def _values(section: Mapping[str, Json], where: str, notes: Notes) -> tuple[Value, ...]:
    """Return what *section*, ``pre`` or ``post``, holds: numbers, each with the text that it is of, and texts that have none."""
    found = []
    for prefix, kind in _SECTIONS.items():
        texts = _texts(section.get(f"{prefix}_gen_content"))
        for suffix, metric in (("acc", "token_match"), ("ppl", "ppl")):
            key = f"{prefix}_{suffix}"
            numbers = notes.numbers(section.get(key, []), f"{where}.{key}")
            found += _scored(kind, "", metric, numbers, texts)
            texts = () if numbers else texts
        found += _unscored(kind, "", texts)
    for kind, metric in _GROUPS.items():
        group = mapping_of(section.get(kind))
        for name in dict.fromkeys(_name(key) for key in group):
            value = group.get(f"{name}_acc", [])
            # Older files of what nobody judged have the text itself where the number stands else.
            bare = _texts(value) if "rewrite_gen_content" in section else ()
            numbers = [] if bare else notes.numbers(value, f"{where}.{kind}.{name}_acc")
            texts = _texts(group.get(f"{name}_gen_content")) or bare
            found += _scored(kind, name, metric, numbers, texts) if numbers else _unscored(kind, name, texts)
    return tuple(found)


def _name(key: str) -> str:
    """Return the name of a question in ``<name>_acc``, ``<name>_gen_content``, ``<name>_output``."""
    return next((key.removesuffix(end) for end in ("_acc", "_gen_content", "_output") if key.endswith(end)), key)


def _texts(value: Json) -> tuple[str, ...]:
    """Return *value* as texts if it is one, or a list of nothing else."""
    listed = value if isinstance(value, list) else [value]
    texts = tuple(one for one in listed if isinstance(one, str))
    return texts if len(texts) == len(listed) else ()


def _scored(kind: str, name: str, metric: str, numbers: Sequence[float], texts: Sequence[str]) -> list[Value]:
    # Of two lists of unequal length nothing says which text a number is of.
    of = texts if len(texts) == len(numbers) else [""] * len(numbers)
    return [Value(kind, name, i, metric, *both) for i, both in enumerate(zip(numbers, of, strict=True))]


def _unscored(kind: str, name: str, texts: Sequence[str]) -> list[Value]:
    return [Value(kind, name, i, "generated", None, text) for i, text in enumerate(texts)]


def _outputs(pre: Mapping[str, Json], post: Mapping[str, Json], where: str, notes: Notes) -> tuple[Value, ...]:
    """Return the agreement of what an older file has as tokens before and after, where it has no share of equal ones."""
    found = []
    before, after = mapping_of(pre.get(LOCALITY)), mapping_of(post.get(LOCALITY))
    for key, value in after.items():
        name = key.removesuffix("_output")
        if name == key or f"{name}_acc" in after or key not in before:
            continue
        # What was generated is one answer to one question, not a row of tokens.
        if _texts(before[key]) and _texts(value):
            pairs = enumerate(zip(_texts(before[key]), _texts(value), strict=False))
            found += [Value(LOCALITY, name, i, "agreement", float(old == new), new) for i, (old, new) in pairs]
            continue
        for i, (old, new) in enumerate(zip(_rows(before[key]), _rows(value), strict=False)):
            if len(old) != len(new) or not old:
                notes.say(f"{where}.{LOCALITY}.{key}[{i}]", f"{len(new)} tokens, {len(old)} before the edit")
                continue
            share = sum(a == b for a, b in zip(old, new, strict=True)) / len(old)
            found.append(Value(LOCALITY, name, i, "agreement", share))
    return tuple(found)


def _rows(value: Json) -> list[list[Json]]:
    listed = value if isinstance(value, list) else []
    return (
        [one for one in listed if isinstance(one, list)] if any(isinstance(one, list) for one in listed) else [listed]
    )
