"""Asking in batches is asking one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysweep.belief.lm import architecture, asking
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm.architecture import SpecialTokens
from raysweep.belief.lm.asking import TargetQuery
from raysweep.belief.lm.scoring import evaluation_summary
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.spec import ShapeSpec
from raysweep.errors import BeliefError
from raysweep.models.lm import LanguageModel
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_points import points


@pytest.fixture(scope="module")
def made() -> tuple[LanguageModel, list[EvalPoint], tuple[str, ...]]:
    written = corpus(generative(people()), **HEADLINE)
    tokenizer = belief_tokenizer.word_tokenizer(written.model.graph)
    shape = ShapeSpec(hidden=16, mlp=24, heads=2, layers=2, positions=128)
    config = architecture.model_config(shape, len(tokenizer), SpecialTokens.from_tokenizer(tokenizer))
    config.initializer_range = 0.3  # so that answers differ
    lm = architecture.as_language_model(architecture.initialised_model(config, 0), tokenizer)
    return lm, points(written, size=6), written.model.graph.objects


def test_replies_are_those_of_single_questions(made):
    lm, asked_about, _ = made
    asked = [TargetQuery(0, q.prompt, q.target) for p in asked_about for q in p.questions.values()]
    replies = asking.ask_questions(lm, asked, new_tokens=2, batch=7)
    assert len(replies) == len(asked) > 100
    for question, reply in list(zip(asked, replies, strict=True))[::17]:
        ids = lm.tokenizer(question.prompt)["input_ids"]
        label = lm.tokenizer(question.target, add_special_tokens=False)["input_ids"]
        logp = lm.module(input_ids=torch.tensor([[*ids, *label]])).logits[0].log_softmax(-1)
        alone = sum(float(logp[len(ids) - 1 + i, t]) for i, t in enumerate(label))
        assert reply.probability == pytest.approx(np.exp(alone), rel=1e-4)
        for _ in range(2):
            ids.append(int(lm.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert reply.output == lm.tokenizer.decode(ids[-2:]).partition("</s>")[0].strip()
        assert reply.correct == (lm.tokenizer.decode(label) in reply.output)
    with pytest.raises(BeliefError, match="writes nothing"):
        asking.ask_questions(lm, asked, new_tokens=0)


def test_the_log_row_names_every_number(made):
    lm, asked_about, _ = made
    replies = asking.ask_points(lm, asked_about, new_tokens=2)
    row = evaluation_summary(asked_about, replies)
    wanted = {"eval_acc", "o_given_s_r_loss", "A_TF_case_acc", "B_TF_case_acc", "not_A_case_acc", "A_or_B_case_acc"}
    wanted |= {"A_and_B_case_acc", "B_and_A_case_acc", "generative_prob_error", "posterior_prob_marginalized_error"}
    wanted |= {f"{n}_loss" for n in ("TF_coherence", "negation", "commutation", "multiplication", "disjunction")}
    assert wanted <= row.keys()
    assert row["o_given_s_r_loss"] > 1
    sentences = [p.sentences[0] for p in asked_about]
    one = [asking.sequence_loss(lm, [s]) for s in sentences]
    lengths = [len(lm.tokenizer(s)["input_ids"]) for s in sentences]  # begin is no target, end is
    together = float(np.average(one, weights=lengths))
    assert asking.sequence_loss(lm, sentences, batch=4) == pytest.approx(together, rel=1e-5)
