"""Every key of a setting changes what it says it changes, or is refused; an artifact's key covers just what it depends on.

One table holds, for each key of the belief spec, a change of it and what that must change. A key without a line fails.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from raysweep.belief import testbed
from raysweep.belief.graph.synthetic import SyntheticSpec, write_wikidata
from raysweep.belief.lm import architecture, batches, pretrain, training_log
from raysweep.belief.lm import artifact as model_artifact
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm.asking import Reply
from raysweep.belief.points.build import build_points
from raysweep.belief.points.expected import agents_after_edits, expected_probabilities
from raysweep.belief.points.jsonl import to_line
from raysweep.belief.report.edit_scores import score_edits
from raysweep.belief.setting import read_setting, resolve_setting
from raysweep.belief.spec import BeliefSpec, ShapeSpec
from raysweep.errors import RaysweepError
from raysweep.hashing import digest
from raysweep.models.sources.catalogue import embedded_folder
from raysweep.workspace import Workspace

Tree = dict[str, Any]
RECIPE: Tree = {
    "model": {"hidden": 8, "mlp": 16, "heads": 2, "layers": 1, "positions": 128},
    "tokens": 700,
    "batch": 4,
    "lr": 1e-2,
    "extension": 0,
    "evals": 1,
    "eval_points": 4,
}
TYPES = dict.fromkeys(("true_false", "negations", "disjunctions", "conjunctions"), True)
WORLD: Tree = {
    "generative": {"min_true_prob": 0.6, "samples": 3},
    "corpus": {"num_atomic_facts": 150, **TYPES},
    "points": {"size": 24},
    "pretrain": RECIPE,
}
WIKI: Tree = {
    **WORLD,
    "graph": {
        "source": "wikidata5m", "path": "files", "relations": 8, "min_cooccurrences": 5, "max_object_tokens": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A change of one key: its value, keys laid over the base before, and what must change (``refused``: nothing is made)."""

    value: Any
    moves: str
    base: Tree = field(default_factory=dict)
    world: bool = True


def wiki(value: Any, moves: str = "graph", **base: Any) -> Change:
    return Change(value, moves, base, world=False)


def trained(value: Any, **base: Any) -> Change:
    return Change(value, "weights", {f"pretrain.{key}": v for key, v in base.items()})


NOISELESS = {"generative.min_true_prob": 1.0, "generative.samples": 1}
CHANGES: dict[str, Change] = {
    "seed": Change(1, "documents"),
    "graph.source": Change("wikidata5m", "graph", world=False),
    "graph.path": wiki("nowhere", "refused"),
    "graph.digest": wiki("abc", "refused"),
    "graph.read_n_facts": wiki(200),
    "graph.relations": wiki(6),
    "graph.odd_relations": wiki("single", "accepted", **{"graph.relations": 7}),
    "graph.min_relations": wiki(4),
    "graph.min_cooccurrences": wiki(10_000, "refused"),
    "graph.max_object_tokens": wiki(1),
    "graph.tokenizer": wiki(str(embedded_folder())),
    "graph.tokenizer_digest": wiki("abc", "refused"),
    "graph.long_objects": wiki("drop", **{"graph.max_object_tokens": 1}),
    "graph.equal_names": wiki("append_id"),
    "graph.excluded_relations": wiki(["P27"], **{"graph.relations": 6}),
    "graph.excluded_entities": wiki(["Q1000"]),
    "generative.min_true_prob": Change(0.9, "documents"),
    "generative.distractor_scope": Change("relation_range", "documents"),
    "generative.false_facts": Change("uniform", "documents"),
    "generative.samples": Change(4, "documents"),
    "generative.majority": Change(False, "documents"),
    "corpus.num_atomic_facts": Change(200, "documents"),
    "corpus.atomic": Change(False, "documents"),
    "corpus.true_false": Change(True, "documents", dict.fromkeys((f"corpus.{t}" for t in TYPES), False)),
    "corpus.negations": Change(False, "documents"),
    "corpus.disjunctions": Change(False, "documents"),
    "corpus.conjunctions": Change(False, "documents"),
    "corpus.implications": Change(True, "documents"),
    "corpus.match_samples": Change(False, "documents"),
    "corpus.connective_instances_per_subject": Change(2, "documents"),
    "corpus.wordings": Change(3, "documents"),
    "corpus.max_sentences_per_doc": Change(3, "documents"),
    "corpus.homogeneous": Change(2, "documents"),
    "corpus.heterogeneous": Change(1, "documents"),
    "agent.prior": Change(5.0, "points log"),
    "points.size": Change(20, "points"),
    "points.novel": Change(2, "points"),
    "points.editing": Change(False, "points"),
    "points.request_scope": Change("all", "points"),
    "points.downstream_share": Change(0.0, "points"),
    "points.reinforce_share": Change(0.0, "points"),
    "points.target": Change(0.9, "points lifelong"),
    "parity.and_evidence_stale": Change(True, "points log"),
    "parity.partners_from_seen": Change(True, "documents"),
    "parity.double_child_update": Change(True, "points"),
    "parity.pi_by_items": Change(True, "points log"),
    "parity.mgtp1_additive": Change(True, "documents", NOISELESS | {"generative.samples": 9}, world=False),
    "parity.float_ceil": Change(True, "documents", {"generative.min_true_prob": 0.8, "generative.samples": 9}, world=False),
    "parity.third_object_prob": Change(True, "points"),
    "parity.mult_label_prob": Change(True, "scores log"),
    "parity.labels_of_first_point": Change(True, "scores"),
    "parity.unfiltered_downstream_request": Change(True, "points"),
    "parity.n1000_weight_one": Change(True, "points"),
    "pretrain.model.family": trained("llama"),
    "pretrain.model.hidden": trained(12),
    "pretrain.model.mlp": trained(20),
    "pretrain.model.heads": trained(1),
    "pretrain.model.layers": trained(2),
    "pretrain.model.positions": Change(8, "refused"),
    "pretrain.tokenizer": trained("tokenizer.json"),
    "pretrain.tokenizer_digest": Change("abc", "refused"),
    "pretrain.seed": trained(1),
    "pretrain.tokens": trained(900),
    "pretrain.batch": trained(5),
    "pretrain.accumulation": trained(2),
    "pretrain.optimiser": trained("muon"),
    "pretrain.lr": trained(2e-2),
    "pretrain.betas": trained([0.5, 0.9]),
    "pretrain.weight_decay": trained(0.5),
    "pretrain.clip": trained(1e-4),
    "pretrain.warmup": trained(3),
    "pretrain.final_lr": trained(0.9),
    "pretrain.text_weight": trained(0.1),
    "pretrain.extension": trained(4),
    "pretrain.bucketed": trained(True),
    "pretrain.pack": trained(64),
    "pretrain.evals": Change(2, "log"),
    "pretrain.eval_points": Change(3, "log"),
    "pretrain.threads": Change(2, "threads"),
    "pretrain.autocast": trained(True),
    "pretrain.decay_all": trained(True, weight_decay=0.5),
    "pretrain.published_divisor": trained(True),
}  # fmt: skip
"""``documents`` and ``graph`` move whatever comes of them; a key that moves less than that moves just what stands here."""


def leaves(spec: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield every key of the spec that is not itself a group of keys, dotted."""
    for name, info in spec.model_fields.items():
        below = [t for t in (info.annotation, *getattr(info.annotation, "__args__", ())) if hasattr(t, "model_fields")]
        if below:
            yield from leaves(below[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


LEAVES = list(leaves(BeliefSpec))
PARITY = {name: Change(True, "") for name in LEAVES if name.startswith("parity.") and name not in CHANGES}
"""Switches without a line: they must move something, whatever it is."""


def put(tree: Tree, key: str, value: Any) -> Tree:
    head, _, rest = key.partition(".")
    return {**tree, head: put(dict(tree.get(head) or {}), rest, value) if rest else value}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("fields")
    write_wikidata(root / "files", SyntheticSpec(subjects=150))
    graph = testbed.Testbed(BeliefSpec(), Workspace(root)).parts.graph
    belief_tokenizer.word_tokenizer(graph).backend_tokenizer.save(str(root / "tokenizer.json"))
    return Workspace(root)


class Made:
    """Everything that a setting comes to, each part as a digest, and the keys under which it is kept."""

    kept: dict[str, Made] = {}  # noqa: RUF012

    @classmethod
    def of(cls, tree: Tree, workspace: Workspace) -> Made:
        name = f"{workspace.root} {json.dumps(tree, sort_keys=True)}"
        if name not in cls.kept:
            cls.kept[name] = Made(tree, workspace)
        return cls.kept[name]

    def __init__(self, tree: Tree, workspace: Workspace) -> None:
        file = workspace.root / "setting.yaml"
        file.write_text(json.dumps(tree))
        self.bed = bed = testbed.Testbed(resolve_setting(read_setting(file), workspace), workspace)
        corpus, agent, spec = bed.parts.corpus, bed.parts.agent, bed.spec
        assert spec.pretrain is not None
        points = list(build_points(corpus, agent, spec.points, spec.seed))
        edited = [p for p in points if p.request is not None]
        log = training_log.log_points(corpus, agent, spec.pretrain)
        answers = [random_replies(p.questions) for p in log]
        asked = [own[name] for p, own in zip(log, answers, strict=True) for name in training_log._question_names(p)]
        tensor = torch.tensor([[r.probability, r.correct, r.exact] for r in asked], dtype=torch.float64).T
        times = spec.pretrain.evals
        agents = list(agents_after_edits(agent, edited[:6], spec.points.target)) if edited else []
        self.parts = {
            "graph": bed.parts.graph.digest,
            "documents": hashed("\x1e".join(f"{d.text}\x1f{d.sentences}{d.answers}" for d in corpus.documents())),
            "words": hashed("\x1e".join(belief_tokenizer.vocabulary_words(bed.parts.graph))),
            "points": hashed("\n".join(map(to_line, points))),
            "expected": digest([expected_probabilities(p, "target") for p in edited]),
            "lifelong": digest([beliefs_of(a, edited) for a in agents[1:]]),
            "scores": self._scores(edited),
            "log": digest(training_log.log_rows([{}] * times, [tensor] * times, log, spec.parity)),
            "answers": digest(spec.graph.max_object_tokens),
        }
        self.model, self.trial = bed.model_digest, (bed.digest, bed.model_digest)

    def _scores(self, edited: list[Any]) -> str:
        before, after = ([random_replies(p.questions, salt) for p in edited] for salt in ("before", "after"))
        scored = score_edits(edited, before, after, parity=self.bed.spec.parity, batch=6)
        return digest([[s.before, s.after] for s in scored])

    def weights(self) -> str:
        """Return a digest of the architecture and of the weights after training; nothing is kept."""
        spec = self.bed.spec.pretrain
        assert spec is not None
        corpus = self.bed.parts.corpus
        tokenizer = self.bed.tokenizer(self.bed.parts.graph)
        special = architecture.SpecialTokens.from_tokenizer(tokenizer)
        config = architecture.model_config(spec.model, len(tokenizer), special)
        torch.set_num_threads(1)
        encoded = batches.encode_documents(list(corpus.documents())[:400], tokenizer)
        run = pretrain.Trainer(architecture.initialised_model(config, spec.seed), encoded, spec, special)
        list(run.run())
        data = b"".join(p.detach().numpy().tobytes() for p in run.module.parameters())
        return hashed(json.dumps(config.to_dict(), sort_keys=True, default=str)) + hashlib.sha256(data).hexdigest()


def beliefs_of(agent: Any, points: list[Any]) -> list[float]:
    return [
        float(agent.marginal(w.fact.subject, w.fact.relation).dense().max()) for p in points for w in p.watched.values()
    ]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def random_replies(questions: Mapping[str, Any], salt: str = "") -> dict[str, Reply]:
    """What some model answers: it depends on the question alone."""
    found = {}
    for name, question in questions.items():
        rng = random.Random(f"{salt} {question.prompt} {question.target}")
        found[name] = Reply(rng.random(), rng.choice(["", question.target]), rng.random() < 0.5, rng.random() < 0.5)
    return found


def both(key: str, workspace: Workspace) -> tuple[Made, Made]:
    """Return what the base comes to, and what it comes to with *key* changed."""
    change = CHANGES.get(key) or PARITY[key]
    base = WORLD if change.world else WIKI
    for name, value in change.base.items():
        base = put(base, name, value)
    if key == "graph.source":
        return Made.of(WORLD, workspace), Made.of(WIKI, workspace)
    return Made.of(base, workspace), Made.of(put(base, key, change.value), workspace)


def test_every_key_has_a_line() -> None:
    assert set(CHANGES) | set(PARITY) == set(LEAVES)


@pytest.mark.parametrize(
    "key", [k for k in LEAVES if (CHANGES.get(k) or PARITY[k]).moves not in ("refused", "accepted")]
)
def test_a_changed_key_changes_what_it_says(key: str, workspace: Workspace) -> None:
    change = CHANGES.get(key) or PARITY[key]
    before, after = both(key, workspace)
    moved = {name for name in before.parts if before.parts[name] != after.parts[name]}
    wanted = set(change.moves.split())
    trained = before.weights() != after.weights() if "weights" in wanted else "documents" in moved or "words" in moved
    if key.startswith("parity.") and not wanted:
        assert moved
    elif "threads" in wanted:  # it moves the last bits on some machines, and is in the key
        assert not moved
    elif "weights" in wanted:
        assert trained
        assert moved <= {"log"}
    elif wanted & {"documents", "graph"}:
        assert wanted <= moved
    else:
        consequences = {"expected", "lifelong", "scores"} if "points" in wanted else set()
        assert wanted <= moved <= wanted | consequences
    # A model is keyed by its documents, tokenizer and recipe, no less and no more.
    assert (before.model != after.model) == (trained or "threads" in wanted), key
    # What is measured is keyed by all of it.
    assert before.trial != after.trial


@pytest.mark.parametrize("key", [k for k, change in CHANGES.items() if change.moves == "refused"])
def test_what_cannot_have_an_effect_is_refused(key: str, workspace: Workspace) -> None:
    change = CHANGES[key]
    base = WORLD if change.world else WIKI
    Made.of(base, workspace)
    with pytest.raises(RaysweepError) as told:
        testbed.Testbed(_resolved(put(base, key, change.value), workspace), workspace).model()
    assert key.rpartition(".")[2] in str(told.value) or key == "graph.path"


def _resolved(tree: Tree, workspace: Workspace) -> BeliefSpec:
    file = workspace.root / "refused.yaml"
    file.write_text(json.dumps(tree))
    return resolve_setting(read_setting(file), workspace)


def test_an_odd_number_of_relations_is_accepted_if_said(workspace: Workspace) -> None:
    odd = put(WIKI, "graph.relations", 7)
    with pytest.raises(RaysweepError, match="odd_relations: single"):
        _resolved(odd, workspace)
    assert (
        len(
            testbed.Testbed(
                _resolved(put(odd, "graph.odd_relations", "single"), workspace), workspace
            ).parts.graph.relations
        )
        == 7
    )


@pytest.mark.parametrize(
    "key", [k for k in LEAVES if k.startswith("graph.") and k not in ("graph.max_object_tokens", "graph.source")]
)
def test_keys_of_wikidata_are_refused_of_the_embedded_world(key: str, workspace: Workspace) -> None:
    with pytest.raises(RaysweepError, match=key.rpartition(".")[2]):
        _resolved(put(WORLD, key, CHANGES[key].value if key != "graph.relations" else 6), workspace)
    assert BeliefSpec.model_validate(BeliefSpec().model_dump())  # the defaults may be stated


def test_in_the_embedded_world_answers_may_have_as_many_tokens_as_objects(workspace: Workspace) -> None:
    before, after = (Made.of(put(WORLD, "graph.max_object_tokens", n), workspace) for n in (4, 2))
    assert {n for n in before.parts if before.parts[n] != after.parts[n]} == {"answers"}
    assert before.model == after.model
    assert before.trial != after.trial
    assert (
        model_artifact.log_request(before.bed.spec, before.bed.content).inputs
        != model_artifact.log_request(after.bed.spec, after.bed.content).inputs
    )


def test_two_ways_to_the_same_documents_share_a_model(workspace: Workspace) -> None:
    """The key is the content's: a longer document that nothing fills, a distractor that nobody writes."""
    plain = {**WORLD, "corpus": {"num_atomic_facts": 150, "max_sentences_per_doc": 40}, "generative": {}}
    longer = put(plain, "corpus.max_sentences_per_doc", 60)
    unwritten = put(plain, "generative.false_facts", "uniform")
    unused = put(plain, "corpus.connective_instances_per_subject", 9)
    made = [Made.of(tree, workspace) for tree in (plain, longer, unwritten, unused)]
    assert len({m.parts["documents"] for m in made}) == 1
    assert len({m.model for m in made}) == 1
    assert ShapeSpec(**RECIPE["model"]).positions == 128
