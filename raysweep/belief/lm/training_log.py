"""The log of a training run (§7.6): what the model answered on the way is kept, what that comes to is computed when it is read.

So the log's numbers follow the setting that reads it (its agent, its parity switches), while the training depends on nothing but
the documents, the tokenizer and the recipe. The points of the log are its own: drawn from the corpus by the recipe's seed, without
edits (a seeded subset, ruling F5).

Shapes: Q questions, three numbers of each: probability of the target, whether the output contains it, whether it is the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.belief.basis import Basis
from raysweep.belief.graph.artifact import identity
from raysweep.belief.lm.asking import Reply, ask_points, sequence_loss, summary
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.build import build_points
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.spec import BeliefSpec, PointSpec, PretrainSpec
from raysweep.lazy import lazy
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")

VERSION = 1  # of what is asked; part of the log's key
REPLIES = "replies"


def log_points(basis: Basis, recipe: PretrainSpec) -> list[EvalPoint]:
    """Return the points that the log is about; only their targets depend on the agent."""
    spec = PointSpec(size=recipe.eval_points, editing=False)
    return list(build_points(basis.corpus, basis.agent, spec, derive(recipe.seed, "pretrain", "eval")))


def log_inputs(spec: BeliefSpec) -> dict[str, Any]:
    """Return what the questions of the log depend on, and how often they are asked; *spec* is resolved and has a recipe."""
    recipe = spec.pretrain
    assert recipe is not None
    made_of = spec.model_dump(mode="json", include={"seed", "generative", "corpus"})
    often = {"evals": recipe.evals, "eval_points": recipe.eval_points, "seed": recipe.seed}
    writes = {"max_object_tokens": spec.graph.max_object_tokens}
    return {**made_of, "graph": identity(spec.graph), "recipe": often, **writes, "version": VERSION}


def measure(lm: LanguageModel, points: Sequence[EvalPoint], recipe: PretrainSpec, new_tokens: int) -> dict[str, Any]:
    """Return what *lm* makes of the log's questions: ``replies``, fp64 [3, Q], and the loss on sentences, nats per token.

    Args:
        lm: in eval mode.
        points: of :func:`log_points`.
        recipe: whose seed chooses a sentence of each point.
        new_tokens: how many tokens are written as an answer.
    """
    replies = ask_points(lm, points, new_tokens=new_tokens, names=frozenset(n for p in points for n in _asked(p)))
    rows = [own[n] for point, own in zip(points, replies, strict=True) for n in _asked(point)]
    found = torch.tensor([[r.probability, r.correct, r.exact] for r in rows], dtype=torch.float64)
    rng = np.random.default_rng(derive(recipe.seed, "pretrain", "sentences"))
    sentences = [p.sentences[rng.integers(len(p.sentences))] for p in points if p.sentences]
    loss = {"eval_loss": sequence_loss(lm, sentences)} if sentences else {}
    return {REPLIES: found.reshape(-1, 3).T.contiguous(), **loss}


def log_rows(
    rows: Sequence[Mapping[str, float]], replies: Sequence[Tensor], points: Sequence[EvalPoint], parity: ParitySpec
) -> list[dict[str, float]]:
    """Return the log: *rows*, each with what its *replies* (fp64 [3, Q]) come to, against the targets of *points*."""
    found = []
    for row, own in zip(rows, replies, strict=True):
        numbers = iter(own.T.tolist())
        read: list[dict[str, Reply]] = []
        for point in points:
            answers = {}
            for name in _asked(point):
                probability, correct, exact = next(numbers)
                answers[name] = Reply(probability, "", bool(correct), bool(exact))
            read.append(answers)
        found.append({**row, **summary(points, read, parity=parity)})
    return found


def _asked(point: EvalPoint) -> list[str]:
    """Return the names of the point's questions that the log asks, in order."""
    scored = [n for n, q in point.questions.items() if (q.scored and n != "paraphrase_case") or n == "A_sentence"]
    return sorted(scored)
