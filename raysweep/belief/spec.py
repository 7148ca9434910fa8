"""What a belief study is made from: graph, generative model, corpus, agent and evaluation points, as closed specs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysweep.belief.parity import ParitySpec
from raysweep.config.schema import Count, NonNegative, Positive, Spec

Share = Annotated[float, Field(ge=0, le=1)]


class GraphSpec(Spec):
    """Which knowledge graph (published names and defaults in docs/methods/belief.md; ours where they differ).

    Attributes:
        source: ``world`` = the embedded world of the lifelong study; ``wikidata5m`` = three files in ``path``.
        path: folder of the Wikidata5m files; empty = ``data/wikidata5m``; not part of the key (``digest`` is).
        digest: hash of the three files, filled in when they are found.
        read_n_facts: lines of the train file to read; negative = all.
        relations: how many relations to keep (top-k by co-occurrence).
        odd_relations: ``refuse`` an odd number of them, or leave a ``single`` relation without a partner.
        min_relations: a subject needs this many of the kept relations.
        min_cooccurrences: a pair of relations must occur together this often for its members to count as frequent.
        max_object_tokens: longer object names of Wikidata5m are cut to this many tokens; a model writes as many when it is asked.
        tokenizer: ``words``, or a ``tokenizer.json`` (or a folder with one) that defines a token.
        tokenizer_digest: hash of that file, filled in when it is found.
        long_objects: ``shorten`` names beyond the cap, or ``drop`` their facts.
        equal_names: entities with one name: ``merge`` (the first value read is kept) or ``append_id`` to the later ones.
        excluded_relations: relations to leave out (given name, administrative location).
        excluded_entities: entities to leave out (human, taxon).

    All but ``source`` and ``max_object_tokens`` concern Wikidata5m only: of the embedded world a setting may not change them.
    """

    source: Literal["world", "wikidata5m"] = "world"
    path: str = ""
    digest: str = ""
    read_n_facts: int = 1_000_000
    relations: Annotated[int, Field(ge=2)] = 10
    odd_relations: Literal["refuse", "single"] = "refuse"
    min_relations: Count = 2
    min_cooccurrences: Count = 1000
    max_object_tokens: Count = 4
    tokenizer: str = "words"
    tokenizer_digest: str = ""
    long_objects: Literal["shorten", "drop"] = "shorten"
    equal_names: Literal["merge", "append_id"] = "merge"
    # P131: located in the administrative entity, P735: given name; Q5: human, Q16521: taxon.
    excluded_relations: tuple[Annotated[str, Field(pattern=r"^P\d+$")], ...] = ("P131", "P735")
    excluded_entities: tuple[Annotated[str, Field(pattern=r"^Q\d+$")], ...] = ("Q5", "Q16521")

    @model_validator(mode="after")
    def _pairs(self) -> GraphSpec:
        if self.source == "wikidata5m" and self.relations % 2 and self.odd_relations == "refuse":
            raise ValueError(
                f"relations = {self.relations} is odd, so one relation would have no partner; give an even number, "
                "or odd_relations: single"
            )
        if self.read_n_facts == 0:
            raise ValueError("read_n_facts = 0 reads nothing; give a number of lines, or -1 for all")
        return self


class GenerativeSpec(Spec):
    """How facts are turned into distributions over objects.

    Attributes:
        min_true_prob: least probability of the true object (published name: ``min_ground_truth_prob``).
        distractor_scope: a pair's distractor comes from ``all`` objects or from its ``relation_range``.
        false_facts: a false version of a parent-less fact has its pair's ``distractor``, or any object (``uniform``).
        samples: noisy samples drawn per true fact (published: ``n_base_fact_samples``).
        majority: redraw until more than half of a fact's samples are the true object.
    """

    min_true_prob: Annotated[float, Field(gt=0, le=1)] = 1.0
    distractor_scope: Literal["all", "relation_range"] = "all"
    false_facts: Literal["distractor", "uniform"] = "distractor"
    samples: Count = 1
    majority: bool = True


class CorpusSpec(Spec):
    """Which sentences are written.

    Attributes:
        num_atomic_facts: true facts to write; whole subjects only, so a few more may come.
        atomic: write the sampled facts themselves.
        true_false, negations, disjunctions, conjunctions, implications: sentence types.
        match_samples: one TF sentence per sample; else one true and one false sample per fact (noisy regime).
        connective_instances_per_subject: published name: ``n_complex_sentences_per_fact``; per subject and operation
            it caps how many base facts get an instance.
        wordings: how many names of a relation its atomic sentences use (1 = the first only, as published).
        max_sentences_per_doc: sentences joined to one document.
        homogeneous: how often each subject's sentences are shuffled into documents.
        heterogeneous: how often all sentences together are.
    """

    num_atomic_facts: Count = 1000
    atomic: bool = True
    true_false: bool = False
    negations: bool = False
    disjunctions: bool = False
    conjunctions: bool = False
    implications: bool = False
    match_samples: bool = True
    connective_instances_per_subject: Annotated[int, Field(ge=0)] = 5
    wordings: Count = 1
    max_sentences_per_doc: Count = 1
    homogeneous: Annotated[int, Field(ge=0)] = 1
    heterogeneous: Annotated[int, Field(ge=0)] = 0

    @property
    def connectives(self) -> bool:
        """Whether any sentence about sentences other than TF is written."""
        return self.negations or self.disjunctions or self.conjunctions or self.implications

    @model_validator(mode="after")
    def _coherent(self) -> CorpusSpec:
        if self.connectives and not self.true_false:
            raise ValueError("negations, disjunctions, conjunctions and implications need true_false: true")
        if not self.atomic and not self.true_false:
            raise ValueError("atomic: false and true_false: false leave nothing to write")
        if not self.homogeneous + self.heterogeneous:
            raise ValueError("homogeneous and heterogeneous are both 0, so no document would be written")
        return self


class AgentSpec(Spec):
    """The ideal Bayesian agent: a symmetric Dirichlet prior worth ``prior`` observations in total.

    Attributes:
        prior (observations): weight of the prior, over all objects together.
    """

    prior: Positive = 1.0


class PointSpec(Spec):
    """Which evaluation points are made.

    Attributes:
        size: points about training subjects.
        novel: points about subjects nobody has written about.
        editing: give every point a requested update and its targets.
        request_scope: a counterfactual request that is not meant to change a downstream answer asks for the fact's
            ``distractor``, an object of the ``relation_range``, or any of ``all`` objects.
        downstream_share: of upstream points, how many ask for an update that changes the downstream answer.
        reinforce_share: of the other points, how many ask for what is already true.
        target: posterior probability that the requested update must reach.
    """

    size: Count = 1000
    novel: Annotated[int, Field(ge=0)] = 0
    editing: bool = True
    request_scope: Literal["distractor", "relation_range", "all"] = "distractor"
    downstream_share: Share = 0.8
    reinforce_share: Share = 0.6
    # Below 1: with a prior on every object no finite evidence makes one of them certain.
    target: Annotated[float, Field(gt=0, lt=1)] = 0.95


class ShapeSpec(Spec):
    """Size of a decoder of Mistral's or Llama's kind; untied embeddings, no biases, as many key heads as heads.

    Attributes:
        family: ``mistral`` or ``llama``.
        hidden: width of the residual stream; a multiple of 2 × ``heads``.
        mlp: width of the MLP.
        heads: attention heads.
        layers: blocks.
        positions: longest row in tokens, begin and end included; a longer document is refused.
    """

    family: Literal["mistral", "llama"] = "mistral"
    hidden: Count
    mlp: Count
    heads: Count
    layers: Count
    positions: Count = 32_768

    @model_validator(mode="after")
    def _divides(self) -> ShapeSpec:
        # Rotary positions turn the dimensions of a head two by two.
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden = {self.hidden} is no multiple of 2 × heads = {2 * self.heads}")
        return self

    def parameters(self, vocabulary: int) -> int:
        """Return the number of parameters with a vocabulary of that size."""
        # Four attention matrices, three of the MLP, two norms; then embeddings, head and the last norm.
        block = 4 * self.hidden**2 + 3 * self.hidden * self.mlp + 2 * self.hidden
        return 2 * vocabulary * self.hidden + self.layers * block + self.hidden


class PretrainSpec(Spec):
    """How a model is trained (defaults: the published ones).

    Attributes:
        model: its size.
        tokenizer: ``words``, or a ``tokenizer.json`` with Llama's special tokens.
        tokenizer_digest: hash of that file, filled in when it is found.
        seed: of initial weights, order and padding.
        tokens: budget; counted without begin, end and padding. Training stops with the step that reaches it.
        batch: documents per batch.
        accumulation: batches per step.
        optimiser: ``adamw``; or ``muon`` for the blocks' matrices and AdamW for the rest.
        lr: peak rate.
        betas: of AdamW.
        weight_decay: of matrices; of everything with ``decay_all``.
        clip: norm to which a step's gradient is clipped.
        warmup: steps of linear warm-up (published: 0); then the rate falls linearly.
        final_lr: share of the peak that is reached after the last step.
        text_weight: weight in the loss of tokens that answer nothing (neither object nor label at a sentence's end); published: 1.
            What a sentence is about cannot be known beforehand, so a small model on few tokens learns answers sooner with less.
        extension: extra padding before each row is drawn from 0 … extension − 1 (published: 2 × object tokens); with 0 rows
            are padded behind instead, which is the same to rotary positions and needs no mask.
        bucketed: put documents of like length into a batch.
        pack: lay a batch's documents one after the other into rows of this many tokens (at least its longest document), each
            with positions of its own and blind to the others: the same loss, less padding. 0 (published): a row each.
        evals: how often to measure, evenly spaced in tokens; 0 = never. It changes the log, not the model.
        eval_points: on how many evaluation points, chosen by *seed*; as ``evals``.
        threads: CPU threads while training; they move the last bits.
        autocast: compute in bfloat16 where the device does.
        decay_all: (F2) decay norms too, as published.
        published_divisor: (F1) sum over ends and begins after padding, divide by the tokens that are neither, as published.
    """

    model: ShapeSpec
    tokenizer: str = "words"
    tokenizer_digest: str = ""
    seed: int = 0
    tokens: Count = 1_000_000
    batch: Count = 128
    accumulation: Count = 1
    optimiser: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 5e-5
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.1
    text_weight: Share = 1.0
    extension: Annotated[int, Field(ge=0)] = 8
    bucketed: bool = False
    pack: Annotated[int, Field(ge=0)] = 0
    evals: Annotated[int, Field(ge=0)] = 40
    eval_points: Count = 1000
    threads: Count = 1
    autocast: bool = False
    decay_all: bool = False
    published_divisor: bool = False

    @model_validator(mode="after")
    def _one_loss(self) -> PretrainSpec:
        # The published divisor counts tokens, each as one; it is no sum of weights.
        if self.published_divisor and self.text_weight != 1:
            raise ValueError("published_divisor: true is defined for text_weight: 1 only")
        if self.pack and (self.extension or self.published_divisor):
            raise ValueError(
                "pack needs extension: 0 and published_divisor: false; both count padding, of which it leaves none"
            )
        return self


# A field that is added to GraphSpec belongs here too, unless the embedded world reads it.
_WIKIDATA_ONLY = (
    "path", "digest", "read_n_facts", "relations", "odd_relations", "min_relations", "min_cooccurrences", "tokenizer",
    "tokenizer_digest", "long_objects", "equal_names", "excluded_relations", "excluded_entities",
)  # fmt: skip


class BeliefSpec(Spec):
    """Everything from the facts to the evaluation points, and how a model is trained; equal specs give equal bytes.

    Attributes:
        seed: from it come the facts that are written, the samples, the order of the documents and the points.
        graph: which knowledge graph.
        generative: how facts are turned into distributions over objects.
        corpus: which sentences are written.
        agent: the ideal Bayesian agent.
        points: which evaluation points are made.
        parity: what the published code does otherwise, switch by switch.
        pretrain: how a model is trained on the corpus; null = no model.
    """

    seed: int = 0
    graph: GraphSpec = GraphSpec()
    generative: GenerativeSpec = GenerativeSpec()
    corpus: CorpusSpec = CorpusSpec()
    agent: AgentSpec = AgentSpec()
    points: PointSpec = PointSpec()
    parity: ParitySpec = ParitySpec()
    pretrain: PretrainSpec | None = None

    @model_validator(mode="after")
    def _graph_has_an_effect(self) -> BeliefSpec:
        # A key that has no effect would still change the trial's key: it is refused, not ignored.
        changed = [n for n in _WIKIDATA_ONLY if getattr(self.graph, n) != GraphSpec.model_fields[n].default]
        if self.graph.source == "world" and changed:
            raise ValueError(
                f"{', '.join(f'graph.{n}' for n in changed)}: no effect on the embedded world; give graph.source: wikidata5m, "
                "or leave it out"
            )
        return self
