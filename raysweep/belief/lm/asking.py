"""Asking a language model the questions of many points at once: probabilities, greedy answers, and what they come to (§7.4, §9).

Equal questions are asked once; rows of like length share a forward pass, padded behind (the models are causal, so what follows a
row does not reach it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysweep.belief.graph.graph import Floats
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.report.metrics import (
    contains_answer,
    is_exact_answer,
    logical_errors,
    mean_absolute_error,
    parse_labels,
    probabilistic_errors,
)
from raysweep.errors import BeliefError
from raysweep.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.models import attention, tokens
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    attention, tokens = lazy("raysweep.models.attention"), lazy("raysweep.models.tokens")

Select = Callable[["Tensor"], None]
"""Called before each forward pass with the owner of each row, int64 [B]: for models that answer differently by owner."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with a continuation, asked of owner number ``owner`` (a point; 0 where all are alike)."""

    owner: int
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model makes of a question.

    Attributes:
        probability: product of the target's token probabilities after the prompt (§9.2).
        output: what it writes after the prompt, greedily, up to its end token.
        correct: the output contains the target (the published, lenient accuracy, §9.1).
        exact: the output up to its first stop is the target (ruling C3).
    """

    probability: float
    output: str
    correct: bool
    exact: bool


def ask(
    lm: LanguageModel, asked: Sequence[Asked], *, new_tokens: int, batch: int = 256, select: Select | None = None
) -> list[Reply]:
    """Return a reply to each question.

    Args:
        lm: in eval mode.
        asked: the questions.
        new_tokens: how many tokens are written (published: ``max_object_tokens``).
        batch: rows per forward pass.
        select: told the owners of each pass's rows.

    Raises:
        BeliefError: a target has no token, or nothing is to be written.
    """
    if new_tokens < 1:
        raise BeliefError(f"new_tokens = {new_tokens} writes nothing", hint="new_tokens ≥ 1")
    probability = _probabilities(lm, list(dict.fromkeys(asked)), batch, select)
    prompts = list(dict.fromkeys((a.owner, a.prompt) for a in asked))
    output = _greedy(lm, prompts, new_tokens, batch, select)
    spoken = {t: tokens.decode(lm, tokens.bare(lm, t)).strip() for t in dict.fromkeys(a.target for a in asked)}
    replies = []
    for one in asked:
        said, label = output[one.owner, one.prompt], spoken[one.target]
        replies.append(Reply(probability[one], said, contains_answer(said, label), is_exact_answer(said, label)))
    return replies


def ask_points(
    lm: LanguageModel,
    points: Sequence[EvalPoint],
    *,
    new_tokens: int,
    batch: int = 256,
    names: frozenset[str] | None = None,
    select: Select | None = None,
) -> list[dict[str, Reply]]:
    """Return, for each point, the replies to its questions by name; *names* restricts them.

    With *select*, point number i of *points* owns its rows; without, equal questions of different points are asked once.
    """
    asked = [
        (i, name, Asked(i if select else 0, q.prompt, q.target))
        for i, point in enumerate(points)
        for name, q in point.questions.items()
        if names is None or name in names
    ]
    found: list[dict[str, Reply]] = [{} for _ in points]
    replies = ask(lm, [a for _, _, a in asked], new_tokens=new_tokens, batch=batch, select=select)
    for (i, name, _), reply in zip(asked, replies, strict=True):
        found[i][name] = reply
    return found


def _probabilities(lm: LanguageModel, asked: Sequence[Asked], batch: int, select: Select | None) -> dict[Asked, float]:
    rows = [tokens.scored(lm, a.prompt, tokens.join(a.prompt, a.target)) for a in asked]
    for question, row in zip(asked, rows, strict=True):
        if not row.labels:
            raise BeliefError(f"the target {question.target!r} of {question.prompt!r} has no token")
    order = sorted(range(len(asked)), key=lambda i: len(rows[i].ids))
    found: dict[Asked, float] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        logits = _forward(lm, [rows[i].ids for i in part], [asked[i].owner for i in part], select)
        logp = logits.float().log_softmax(-1)
        for at, i in enumerate(part):
            where = torch.arange(rows[i].start - 1, len(rows[i].ids) - 1)
            own = logp[at, where, torch.tensor(rows[i].labels)]
            found[asked[i]] = float(own.double().sum().exp())
    return found


def _greedy(
    lm: LanguageModel, prompts: Sequence[tuple[int, str]], new_tokens: int, batch: int, select: Select | None
) -> dict[tuple[int, str], str]:
    heads = [tokens.encode(lm, prompt) for _, prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(heads[i]))
    found: dict[tuple[int, str], str] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        said: dict[int, list[int]] = {i: [] for i in part}
        open_ = list(part)
        for _ in range(new_tokens):
            if not open_:
                break
            rows = [[*heads[i], *said[i]] for i in open_]
            logits = _forward(lm, rows, [prompts[i][0] for i in open_], select)
            last = torch.tensor([len(row) - 1 for row in rows])
            written = logits[torch.arange(len(rows)), last].argmax(-1).tolist()
            going = [(i, token) for i, token in zip(open_, written, strict=True) if token != lm.tokenizer.eos_token_id]
            for i, token in going:
                said[i].append(token)
            open_ = [i for i, _ in going]
        for i in part:
            found[prompts[i]] = tokens.decode(lm, said[i])
    return found


def _forward(lm: LanguageModel, rows: Sequence[Sequence[int]], owners: Sequence[int], select: Select | None) -> Tensor:
    """Return the logits of *rows*, [B, T, V]."""
    ids, _ = tokens.pad(rows, lm.device)
    attention.check_row(lm.module.config, ids.shape[1])
    if select is not None:
        select(torch.tensor(owners, dtype=torch.int64, device=lm.device))
    with torch.no_grad():
        logits: Tensor = lm.module(input_ids=ids, use_cache=False).logits
    return logits


# ------------------------------------------------------------------------------------------------- what it comes to


def sequence_loss(lm: LanguageModel, sentences: Sequence[str], *, batch: int = 256) -> float:
    """Return the mean loss per token of *sentences* and their ends, nats.

    Raises:
        BeliefError: there is no sentence.
    """
    if not sentences:
        raise BeliefError("no sentence to measure the loss on")
    total, count = 0.0, 0
    rows = sorted(([*tokens.encode(lm, s), int(lm.tokenizer.eos_token_id)] for s in sentences), key=len)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        logp = _forward(lm, part, [0] * len(part), None).float().log_softmax(-1)
        for at, row in enumerate(part):
            own = logp[at, torch.arange(len(row) - 1), torch.tensor(row[1:])]
            total -= float(own.double().sum())
            count += len(row) - 1
    return total / count


_TF = ("A_TF_case", "B_TF_case", "not_A_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "if_A_then_B_case")
"""The cases that are answered ``true`` or ``false``."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the logical coherence of one point is scored.

    Attributes:
        labels: the label that each case is taken to have: the point's, or (C2) that of the first point of its batch.
        label_prob: (C1) the multiplication check takes A's label probability.
    """

    labels: Mapping[str, str]
    label_prob: bool = False


def scorings(points: Sequence[EvalPoint], parity: ParitySpec | None = None, batch: int = 0) -> list[Scoring]:
    """Return how each of *points* is scored.

    Args:
        points: in the order in which they are asked.
        parity: ``mult_label_prob`` and ``labels_of_first_point`` score as published (§9.3).
        batch: points per batch; needed for ``labels_of_first_point`` only.

    Raises:
        BeliefError: parity needs a batch size.
    """
    parity = parity or ParitySpec()
    if parity.labels_of_first_point and batch < 1:
        raise BeliefError("labels_of_first_point needs the batch size")
    own = [{name: p.questions[name].target for name in _TF if name in p.questions} for p in points]
    first = [i // batch * batch if parity.labels_of_first_point else i for i in range(len(points))]
    return [Scoring(mine | own[at], parity.mult_label_prob) for mine, at in zip(own, first, strict=True)]


def coherence(
    points: Sequence[EvalPoint],
    replies: Sequence[Mapping[str, Reply]],
    *,
    parity: ParitySpec | None = None,
    batch: int = 0,
    scoring: Sequence[Scoring] | None = None,
) -> dict[str, Floats]:
    """Return the errors of logical coherence of the points that have true/false questions, [n] each (§9.3); none without.

    *scoring* says how each point is scored; without it, what *parity* and *batch* say of *points* (:func:`scorings`).
    """
    rows = [i for i, own in enumerate(replies) if {"A_TF_case", "B_TF_case", "A_sentence"} <= own.keys()]
    if not rows:
        return {}
    how = scorings(points, parity, batch) if scoring is None else scoring
    cases = [n for n in _TF if all(n in replies[i] for i in rows)]
    given = (
        np.array([replies[i]["A_sentence"].probability for i in rows]),
        {n: np.array([replies[i][n].probability for i in rows]) for n in cases},
        {n: parse_labels([how[i].labels[n] for i in rows]) for n in cases},
    )
    found = logical_errors(*given)
    published = np.array([how[i].label_prob for i in rows])
    if published.any() and "multiplication" in found:
        theirs = logical_errors(*given, parity=ParitySpec(mult_label_prob=True))["multiplication"]
        found["multiplication"] = np.where(published, theirs, found["multiplication"])
    return found


def summary(
    points: Sequence[EvalPoint],
    replies: Sequence[Mapping[str, Reply]],
    *,
    parity: ParitySpec | None = None,
) -> dict[str, float]:
    """Return the numbers of a log row (§7.6): accuracies, mean \\|errors\\| against each target, logical errors.

    A number that is not defined for any point is left out. ``o_given_s_r_loss`` is the mean −log p(true object). Of *parity*
    ``mult_label_prob`` counts; the published evaluation of a model that is not edited gives each point its own labels.
    """
    own_labels = (parity or ParitySpec()).model_copy(update={"labels_of_first_point": False})
    found: dict[str, float] = {}
    scored = dict.fromkeys(n for p in points for n, q in p.questions.items() if q.scored)
    for name in scored:
        own = [r[name] for r in replies if name in r]
        if own:
            found[f"{name}_acc"] = float(np.mean([r.correct for r in own]))
            found[f"{name}_acc_exact"] = float(np.mean([r.exact for r in own]))
    asked = [i for i, own in enumerate(replies) if "o_given_s_r" in own]
    if asked:
        p = np.array([replies[i]["o_given_s_r"].probability for i in asked])
        found["eval_acc"] = found.get("o_given_s_r_acc", 0.0)
        found["o_given_s_r_prob"] = float(p.mean())
        found["o_given_s_r_loss"] = float(-np.log(np.maximum(p, 1e-300)).mean())
        for name, errors in probabilistic_errors(p, [points[i].targets for i in asked]).items():
            if (mean := mean_absolute_error(errors)) is not None:
                found[f"{name}_error"] = mean
    logical = coherence(points, replies, parity=own_labels)
    return found | {f"{name}_loss": float(errors.mean()) for name, errors in logical.items()}
