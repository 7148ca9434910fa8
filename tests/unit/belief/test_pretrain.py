"""Pretraining: the budget, the loss, resuming to the bit, the artifact, and a folder that any model loader reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.artifacts import ArtifactStore
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.lm import architecture, batches, checkpoint
from raysweep.belief.lm import artifact as model_artifact
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm.architecture import SpecialTokens
from raysweep.belief.lm.pretrain import Trainer
from raysweep.belief.spec import BeliefSpec, PretrainSpec, ShapeSpec
from raysweep.config.schema import ModelSpec
from raysweep.errors import ArtifactError, DataError, SpecError
from raysweep.models.sources.load import load
from raysweep.workspace import Workspace
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people

CONTENT = model_artifact.ContentDigests("documents", "words")
TINY = ShapeSpec(hidden=16, mlp=24, heads=2, layers=1, positions=128)


@pytest.fixture(scope="module")
def made() -> Corpus:
    return corpus(generative(people()), **(HEADLINE | {"max_sentences_per_doc": 1, "homogeneous": 1}))


def recipe(**changes: Any) -> PretrainSpec:
    return PretrainSpec(
        **({"model": TINY, "tokens": 900, "batch": 8, "lr": 1e-2, "evals": 2, "extension": 3, "warmup": 2} | changes)
    )


def trainer(made: Corpus, spec: PretrainSpec) -> Trainer:
    tokenizer = belief_tokenizer.word_tokenizer(made.model.graph)
    special = SpecialTokens.from_tokenizer(tokenizer)
    module = architecture.initialised_model(architecture.model_config(spec.model, len(tokenizer), special), spec.seed)
    return Trainer(module, batches.encode_documents(made.documents(), tokenizer), spec, special)


def test_published_sizes():
    counts = {name: round(architecture.named_shape(name).parameters(32_000) / 1e6, 1) for name in architecture.SHAPES}
    assert counts["mistral-83m"] == 83.1
    assert counts["mistral-162m"] == 162.4
    assert counts["mistral-334m"] == 334.0
    assert counts["mistral-1b"] == 984.5
    assert architecture.named_shape("belief-small").parameters(222) == 1_106_560
    module = architecture.empty_model(architecture.model_config(TINY, 40, SpecialTokens(0, 1, 2)))
    assert sum(p.numel() for p in module.parameters()) == TINY.parameters(40)
    with pytest.raises(SpecError, match="mistral-83"):
        architecture.named_shape("mistral-83")


def test_words_become_tokens_and_come_back(made: Corpus):
    tokenizer = belief_tokenizer.word_tokenizer(made.model.graph)
    texts = [d.text for d in made.documents()]
    for text in texts[:50]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 1
        assert tokenizer.unk_token_id not in ids
    again = belief_tokenizer.tokenizer_from_json(tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token)
    assert again(texts[0])["input_ids"] == tokenizer(texts[0])["input_ids"]
    with pytest.raises(DataError, match="does not exist"):
        belief_tokenizer.file_tokenizer(Path("nowhere.json"))


@pytest.mark.parametrize("bucketed", [False, True])
def test_every_epoch_reads_every_document_once_and_the_budget_ends_it(bucketed: bool):
    lengths = np.arange(1, 31)
    steps = list(batches.epoch_steps(0, lengths, batch=4, accumulation=2, bucketed=bucketed, seed=3))
    assert sorted(np.concatenate([b for s in steps for b in s.batches]).tolist()) == list(range(30))
    taken = list(batches.training_steps(lengths, 600, batch=4, accumulation=2, bucketed=bucketed, seed=3))
    assert taken[-1][1] >= 600 > taken[-2][1]
    assert {s.epoch for s, _ in taken} == {0, 1}
    if bucketed:
        full = [b for s in steps for b in s.batches if len(b) == 4]
        assert max(int(np.ptp(lengths[b])) for b in full) < 8


def test_the_loss_counts_tokens_and_ends_or_divides_as_published(made: Corpus):
    ours, theirs = (trainer(made, recipe(published_divisor=p)) for p in (False, True))
    rows = batches.token_rows(ours.encoded, [0, 3], 1, 2)
    chosen = np.array([0, 3])
    total = torch.tensor(0.0)
    for row in rows:
        ids = torch.from_numpy(row.astype(np.int64))[None]
        logits = ours.module(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    tokens = sum(len(r) - 2 for r in rows)
    assert float(ours._loss(chosen, 0, 0).detach()) == pytest.approx(float(total.detach()) / (tokens + 2), rel=1e-5)
    published = float(theirs._loss(chosen, 0, 0).detach()) * tokens
    assert published > float(total.detach())  # it also predicts the begin of a padded row
    behind = trainer(made, recipe(extension=0))
    assert float(behind._loss(chosen, 0, 0).detach()) == pytest.approx(
        float(ours._loss(chosen, 0, 0).detach()), rel=1e-4
    )


@pytest.mark.parametrize("text_weight", [1.0, 0.25])
def test_documents_laid_in_one_row_do_not_see_each_other(made: Corpus, text_weight: float):
    """Loss and gradients of packed rows are those of a row per document."""
    chosen = np.array([0, 3, 5, 1, 8, 2, 9])
    apart = trainer(made, recipe(text_weight=text_weight, extension=0))
    packed = trainer(made, recipe(text_weight=text_weight, extension=0, pack=40))
    found = []
    for run in (apart, packed):
        run.module.zero_grad(set_to_none=True)
        loss = run._loss(chosen, 0, 0)
        torch.autograd.backward(loss)
        found.append(
            (float(loss.detach()), {n: p.grad for n, p in run.module.named_parameters() if p.grad is not None})
        )
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-6)


def test_rows_are_filled_in_order():
    rows = [np.full(n, n, dtype=np.int32) for n in (3, 4, 5, 2)]
    laid = batches.pack_rows(rows, [np.ones(len(r), dtype=np.float32) for r in rows], 0, 8)
    assert laid.ids.tolist() == [[3, 3, 3, 4, 4, 4, 4, 0], [5, 5, 5, 5, 5, 2, 2, 0]]
    assert laid.segments.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 3, 3, 3, 4, 4, 0]]
    assert laid.positions[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 0]
    assert laid.weights.sum() == 14
    assert batches.pack_rows(rows, [np.ones(len(r), dtype=np.float32) for r in rows], 0, 1).ids.shape == (4, 5)
    with pytest.raises(ValueError, match="pack needs extension: 0"):
        recipe(pack=64, extension=8)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(made: Corpus, tmp_path: Path, optimiser: str):
    spec = recipe(optimiser=optimiser, accumulation=2, bucketed=True)
    straight = trainer(made, spec)
    losses = lambda: {"eval_loss": 1.5, "replies": torch.arange(6.0).reshape(3, 2)}  # noqa: E731
    list(straight.run(evaluate=losses))
    assert straight.done
    assert len(straight.counters.log) == 2
    assert straight.counters.log[-1]["train_loss"] < straight.counters.log[0]["train_loss"]

    first = trainer(made, spec)
    list(first.run(3, evaluate=losses))
    checkpoint.write_snapshot(tmp_path / "s", first)
    checkpoint.write_snapshot(tmp_path / "s", first)
    saved = checkpoint.read_snapshot(tmp_path / "s")
    assert saved is not None
    fresh = trainer(made, spec)
    second = Trainer.resume(fresh.module, fresh.encoded, spec, fresh.special, *saved)
    list(second.run(evaluate=losses))
    assert second.counters == straight.counters
    assert "replies" not in second.counters.log[0]
    assert [t.tolist() for t in second.log_tensors["replies"]] == [t.tolist() for t in straight.log_tensors["replies"]]
    assert len(second.log_tensors["replies"]) == 2
    one, two = straight.snapshot()[0], second.snapshot()[0]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    with pytest.raises(ArtifactError, match="another training run"):
        Trainer.resume(fresh.module, fresh.encoded, recipe(seed=9), fresh.special, *saved)


def test_answers_are_objects_and_labels_and_may_count_more(made: Corpus):
    run = trainer(made, recipe(text_weight=0.25, extension=0))
    tokenizer = belief_tokenizer.word_tokenizer(made.model.graph)
    written = list(made.documents())
    for number in range(0, len(written), 7):
        document = written[number]
        (weights,) = batches.token_weights(run.encoded, [number], 0.25)
        (row,) = batches.token_rows(run.encoded, [number], 1, 2)
        answer = [tokenizer.decode([t]) for t, w in zip(row.tolist(), weights.tolist(), strict=True) if w == 1][:-1]
        (span,) = document.answers
        assert " ".join(answer).split() == document.text[slice(*span)].split()
        assert document.text.endswith(document.text[slice(*span)])
        assert (weights[0], weights[-1]) == (0, 1)
    many = corpus(generative(people()), **(HEADLINE | {"max_sentences_per_doc": 3, "homogeneous": 1}))
    for document in many.documents():
        said = document.text.split(". ")
        assert [s.endswith(document.text[a:b]) for s, (a, b) in zip(said, document.answers, strict=True)] == [
            True
        ] * len(said)
    chosen = np.array([0, 3])
    ids = [torch.from_numpy(r.astype(np.int64)) for r in batches.token_rows(run.encoded, chosen, 1, 2)]
    weights = [torch.from_numpy(w) for w in batches.token_weights(run.encoded, chosen, 0.25)]
    total = torch.tensor(0.0)
    for row, weight in zip(ids, weights, strict=True):
        logp = torch.nn.functional.cross_entropy(
            run.module(input_ids=row[None]).logits[0, :-1], row[1:], reduction="none"
        )
        total = total + (logp * weight[1:]).sum()
    wanted = float(total.detach()) / float(sum(w.sum() for w in weights))
    assert float(run._loss(chosen, 0, 0).detach()) == pytest.approx(wanted, rel=1e-5)
    left = trainer(made, recipe(text_weight=0.25))
    assert float(left._loss(chosen, 0, 0).detach()) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="text_weight"):
        recipe(text_weight=0.5, published_divisor=True)


def test_the_rate_falls_to_a_tenth(made: Corpus):
    run = trainer(made, recipe(warmup=0, lr=1.0))
    assert run.rate(0) == 1.0
    assert run.rate(run.total) == pytest.approx(0.1)
    warm = trainer(made, recipe(warmup=4, lr=1.0))
    assert [warm.rate(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_artifact_is_trained_once_and_its_folder_loads(made: Corpus, tmp_path: Path):
    store, spec = ArtifactStore(tmp_path / "artifacts"), recipe(evals=1)
    seen: list[int] = []
    before = torch.random.get_rng_state()

    def train(spec: PretrainSpec, **options: Any) -> model_artifact.PretrainedModel:
        return model_artifact.get_or_pretrain(
            lambda: made,
            BeliefSpec(pretrain=spec),
            CONTENT,
            store,
            tokenizer=lambda corpus: belief_tokenizer.word_tokenizer(corpus.model.graph),
            **options,
        )

    one, two = (train(spec, progress=lambda done, _: seen.append(done), snapshot_every=2) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert seen == list(range(1, max(seen) + 1))
    assert one.log == two.log
    assert (
        one.lm.digest
        == two.lm.digest
        == store.folder(model_artifact.model_request(BeliefSpec(pretrain=spec), CONTENT)).name
    )
    assert not list((tmp_path / "artifacts").rglob("*.training*"))
    other = train(recipe(evals=1, seed=1))
    assert other.lm.digest != one.lm.digest
    with pytest.raises(SpecError, match="trains no model"):
        model_artifact.model_request(BeliefSpec(), CONTENT)
    checkpoint.write_model_folder(one.lm, tmp_path / "folder")
    loaded = load(ModelSpec(name="made", path=str(tmp_path / "folder")), Workspace(tmp_path))
    text = next(iter(made.documents())).text
    assert loaded.tokenizer(text)["input_ids"] == one.lm.tokenizer(text)["input_ids"]
    ids = torch.tensor([one.lm.tokenizer(text)["input_ids"]])
    assert torch.equal(loaded.module(input_ids=ids).logits, two.lm.module(input_ids=ids).logits)


def test_a_model_is_not_trained_again_for_another_log(made: Corpus, tmp_path: Path):
    """The kind: what changes no weight trains no model; the log that nobody made is absent, never another one's."""
    store = ArtifactStore(tmp_path / "artifacts")
    asked: list[int] = []

    def train(spec: PretrainSpec) -> model_artifact.PretrainedModel:
        steps: list[int] = []
        found = model_artifact.get_or_pretrain(
            lambda: made,
            BeliefSpec(pretrain=spec),
            CONTENT,
            store,
            tokenizer=lambda corpus: belief_tokenizer.word_tokenizer(corpus.model.graph),
            evaluate=lambda lm: {"eval_loss": 1.0, "replies": torch.ones(3, 2)},
            progress=lambda done, _: steps.append(done),
        )
        asked.append(len(steps))
        return found

    first = train(recipe(evals=2))
    often, more, none = train(recipe(evals=1)), train(recipe(evals=2, eval_points=5)), train(recipe(evals=0))
    again = train(recipe(evals=2))
    assert asked[0] > 0
    assert asked[1:] == [0, 0, 0, 0]
    assert {m.lm.digest for m in (often, more, none, again)} == {first.lm.digest}
    assert often.log is more.log is none.log is None
    assert first.log is not None
    assert again.log is not None
    assert len(again.log.rows) == len(again.log.tensors["replies"]) == 2
    assert again.log.rows == first.log.rows


def test_documents_longer_than_the_model_reads_are_refused(made: Corpus, tmp_path: Path):
    short = TINY.model_copy(update={"positions": 8})
    with pytest.raises(
        SpecError, match=r"a document has \d+ tokens with begin and end, but pretrain.model.positions = 8"
    ):
        model_artifact.get_or_pretrain(
            lambda: made,
            BeliefSpec(pretrain=recipe(model=short)),
            CONTENT,
            ArtifactStore(tmp_path),
            tokenizer=lambda corpus: belief_tokenizer.word_tokenizer(corpus.model.graph),
        )
