"""Asking a language model the questions of many points at once: the probability of each target, and what the model writes.

With a prompt x and a target y of tokens y_1 … y_n the probability is the product

    p(y | x) = Π_i p(y_i | x, y_1 … y_{i−1})

of the target's tokens alone; no end symbol is asked for, so a name that begins another collects its mass too. Equal questions
are asked once; rows of like length share a forward pass, padded behind (the models are causal, so what follows a row does not
reach it).

Shapes: B rows of a forward pass, T tokens of the longest, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.belief.points.types import EvalPoint
from raysweep.belief.report.metrics import contains_answer, is_exact_answer
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

OwnerSelector = Callable[["Tensor"], None]
"""Called before each forward pass with the owner of each row, int64 [B]: for models that answer differently by owner."""


@dataclass(frozen=True, slots=True)
class TargetQuery:
    """A prompt with a continuation, asked of owner number ``owner`` (a point; 0 where all are alike)."""

    owner: int
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model makes of a question.

    Attributes:
        probability: product of the target's token probabilities after the prompt.
        output: what it writes after the prompt, greedily, up to its end token.
        correct: the output contains the target (the published, lenient accuracy).
        exact: the output up to its first stop is the target (ruling C3).
    """

    probability: float
    output: str
    correct: bool
    exact: bool


def ask_questions(
    lm: LanguageModel,
    queries: Sequence[TargetQuery],
    *,
    new_tokens: int,
    batch: int = 256,
    select: OwnerSelector | None = None,
) -> list[Reply]:
    """Return a reply to each query.

    Args:
        lm: in eval mode.
        queries: the questions.
        new_tokens: how many tokens are written (published: ``max_object_tokens``).
        batch: rows per forward pass.
        select: told the owners of each pass's rows.

    Raises:
        BeliefError: a target has no token, or nothing is to be written.
    """
    if new_tokens < 1:
        raise BeliefError(f"new_tokens = {new_tokens} writes nothing", hint="new_tokens ≥ 1")
    probabilities = _probabilities(lm, list(dict.fromkeys(queries)), batch, select)
    prompts = list(dict.fromkeys((q.owner, q.prompt) for q in queries))
    outputs = _greedy(lm, prompts, new_tokens, batch, select)
    # Compared with the target as the tokenizer would write it, since the output went through the tokenizer too.
    labels = {
        t: tokens.decode(lm, tokens.encode_alone(lm, t)).strip() for t in dict.fromkeys(q.target for q in queries)
    }
    replies = []
    for query in queries:
        output, label = outputs[query.owner, query.prompt], labels[query.target]
        correct, exact = contains_answer(output, label), is_exact_answer(output, label)
        replies.append(Reply(probabilities[query], output, correct, exact))
    return replies


def ask_points(
    lm: LanguageModel,
    points: Sequence[EvalPoint],
    *,
    new_tokens: int,
    batch: int = 256,
    names: frozenset[str] | None = None,
    select: OwnerSelector | None = None,
) -> list[dict[str, Reply]]:
    """Return, for each point, the replies to its questions by name.

    Args:
        lm: in eval mode.
        points: to ask about.
        new_tokens: how many tokens are written.
        batch: rows per forward pass.
        names: of the questions that are asked; None = all.
        select: told the owners of each pass's rows: point number i of *points* owns its rows. Without it, equal questions of
            different points are asked once.
    """
    # With one owner for all, equal questions of different points are equal queries, which are asked once.
    questions = [
        (i, name, TargetQuery(i if select else 0, q.prompt, q.target))
        for i, point in enumerate(points)
        for name, q in point.questions.items()
        if names is None or name in names
    ]
    by_point: list[dict[str, Reply]] = [{} for _ in points]
    replies = ask_questions(lm, [q for _, _, q in questions], new_tokens=new_tokens, batch=batch, select=select)
    for (i, name, _), reply in zip(questions, replies, strict=True):
        by_point[i][name] = reply
    return by_point


def sequence_loss(lm: LanguageModel, sentences: Sequence[str], *, batch: int = 256) -> float:
    """Return the mean loss per token of *sentences* and their ends, nats.

    Args:
        lm: in eval mode.
        sentences: without their ends.
        batch: rows per forward pass.

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
        # Summed in fp64, since losses over thousands of tokens are compared.
        for at, row in enumerate(part):
            # Position t predicts token t + 1.
            token_logp = logp[at, torch.arange(len(row) - 1), torch.tensor(row[1:])]
            total -= float(token_logp.double().sum())
            count += len(row) - 1
    return total / count


def _probabilities(
    lm: LanguageModel, queries: Sequence[TargetQuery], batch: int, select: OwnerSelector | None
) -> dict[TargetQuery, float]:
    """Return the probability of each query's target."""
    rows = [tokens.labelled_ids(lm, q.prompt, tokens.join(q.prompt, q.target)) for q in queries]
    for query, row in zip(queries, rows, strict=True):
        if not row.labels:
            raise BeliefError(f"the target {query.target!r} of {query.prompt!r} has no token")
    # Rows of like length together: little is padded.
    order = sorted(range(len(queries)), key=lambda i: len(rows[i].ids))
    probabilities: dict[TargetQuery, float] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        logits = _forward(lm, [rows[i].ids for i in part], [queries[i].owner for i in part], select)
        logp = logits.float().log_softmax(-1)
        for at, i in enumerate(part):
            positions = torch.arange(rows[i].start - 1, len(rows[i].ids) - 1)  # each predicts a token of the target
            token_logp = logp[at, positions, torch.tensor(rows[i].labels)]
            probabilities[queries[i]] = float(token_logp.double().sum().exp())
    return probabilities


def _greedy(
    lm: LanguageModel, prompts: Sequence[tuple[int, str]], new_tokens: int, batch: int, select: OwnerSelector | None
) -> dict[tuple[int, str], str]:
    """Return what the model writes after each prompt (owner and text), at most *new_tokens* tokens and up to its end token."""
    prompt_ids = [tokens.encode(lm, prompt) for _, prompt in prompts]
    # As above; prompts grow by one token per pass.
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))
    outputs: dict[tuple[int, str], str] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        answer_ids: dict[int, list[int]] = {i: [] for i in part}
        unfinished = list(part)
        for _ in range(new_tokens):
            if not unfinished:
                break
            rows = [[*prompt_ids[i], *answer_ids[i]] for i in unfinished]
            logits = _forward(lm, rows, [prompts[i][0] for i in unfinished], select)
            last = torch.tensor([len(row) - 1 for row in rows])  # rows are padded behind
            next_ids = logits[torch.arange(len(rows)), last].argmax(-1).tolist()
            eos = lm.tokenizer.eos_token_id
            going_on = [(i, token) for i, token in zip(unfinished, next_ids, strict=True) if token != eos]
            for i, token in going_on:
                answer_ids[i].append(token)
            unfinished = [i for i, _ in going_on]
        for i in part:
            outputs[prompts[i]] = tokens.decode(lm, answer_ids[i])
    return outputs


def _forward(
    lm: LanguageModel, rows: Sequence[Sequence[int]], owners: Sequence[int], select: OwnerSelector | None
) -> Tensor:
    """Return the logits of *rows*, [B, T, V]."""
    ids, _ = tokens.pad(rows, lm.device)
    attention.check_row(lm.module.config, ids.shape[1])
    if select is not None:
        select(torch.tensor(owners, dtype=torch.int64, device=lm.device))
    with torch.no_grad():
        logits: Tensor = lm.module(input_ids=ids, use_cache=False).logits
    return logits
