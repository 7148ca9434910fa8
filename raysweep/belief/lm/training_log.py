"""The log of a training run: what the model answered on the way is kept, what that comes to is computed when it is read.

So the log's numbers follow the setting that reads it (its agent, its parity switches), while the training depends on nothing but
the documents, the tokenizer and the recipe. The points of the log are its own: drawn from the corpus by the recipe's seed, without
edits (a seeded subset, ruling F5).

Shapes: Q questions, three numbers of each: probability of the target, whether the output contains it, whether it is the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.graph.artifact import graph_identity
from raysweep.belief.lm.asking import Reply, ask_points, sequence_loss
from raysweep.belief.lm.scoring import evaluation_summary
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


def log_points(corpus: Corpus, agent: Agent, recipe: PretrainSpec) -> list[EvalPoint]:
    """Return the points that the log is about; only their targets depend on the agent.

    Args:
        corpus: what is asked about.
        agent: who has read it.
        recipe: how many points, and the seed.
    """
    spec = PointSpec(size=recipe.eval_points, editing=False)
    return list(build_points(corpus, agent, spec, derive(recipe.seed, "pretrain", "eval")))


def log_inputs(spec: BeliefSpec) -> dict[str, object]:
    """Return what the questions of the log depend on, and how often they are asked; *spec* is resolved and has a recipe."""
    recipe = spec.pretrain
    assert recipe is not None
    sources = spec.model_dump(mode="json", include={"seed", "generative", "corpus"})
    # How often the log asks, about how many points, and about which.
    frequency = {"evals": recipe.evals, "eval_points": recipe.eval_points, "seed": recipe.seed}
    output = {"max_object_tokens": spec.graph.max_object_tokens}
    return {**sources, "graph": graph_identity(spec.graph), "recipe": frequency, **output, "version": VERSION}


def measure_log_points(
    lm: LanguageModel, points: Sequence[EvalPoint], recipe: PretrainSpec, new_tokens: int
) -> dict[str, float | Tensor]:
    """Return what *lm* makes of the log's questions: ``replies``, fp64 [3, Q], and the loss on sentences, nats per token.

    Args:
        lm: in eval mode.
        points: of :func:`log_points`.
        recipe: whose seed chooses a sentence of each point.
        new_tokens: how many tokens are written as an answer.
    """
    names = frozenset(name for point in points for name in _question_names(point))
    replies = ask_points(lm, points, new_tokens=new_tokens, names=names)
    rows = [reply[n] for point, reply in zip(points, replies, strict=True) for n in _question_names(point)]
    numbers = torch.tensor([[r.probability, r.correct, r.exact] for r in rows], dtype=torch.float64)
    # The same sentences each time, so that the losses compare.
    rng = np.random.default_rng(derive(recipe.seed, "pretrain", "sentences"))
    sentences = [p.sentences[rng.integers(len(p.sentences))] for p in points if p.sentences]
    loss = {"eval_loss": sequence_loss(lm, sentences)} if sentences else {}
    # [Q, 3] → [3, Q]; the reshape keeps two dimensions where nothing was asked.
    return {REPLIES: numbers.reshape(-1, 3).T.contiguous(), **loss}


def log_rows(
    rows: Sequence[Mapping[str, float]], replies: Sequence[Tensor], points: Sequence[EvalPoint], parity: ParitySpec
) -> list[dict[str, float]]:
    """Return the log: *rows*, each with what its *replies* (fp64 [3, Q]) come to, against the targets of *points*.

    Args:
        rows: progress and losses, as they were logged.
        replies: fp64 [3, Q] of each row.
        points: of :func:`log_points`.
        parity: ``mult_label_prob`` counts.
    """
    log = []
    for row, tensor in zip(rows, replies, strict=True):
        # In the order in which the questions were asked: point by point, names sorted.
        numbers = iter(tensor.T.tolist())
        by_point: list[dict[str, Reply]] = []
        for point in points:
            answers = {}
            for name in _question_names(point):
                probability, correct, exact = next(numbers)
                answers[name] = Reply(probability, "", bool(correct), bool(exact))
            by_point.append(answers)
        log.append({**row, **evaluation_summary(points, by_point, parity=parity)})
    return log


def _question_names(point: EvalPoint) -> list[str]:
    """Return the names of the point's questions that the log asks, in order."""
    names = [n for n, q in point.questions.items() if (q.scored and n != "paraphrase_case") or n == "A_sentence"]
    return sorted(names)
