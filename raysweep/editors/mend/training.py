"""Training of MEND's hypernetwork: batched, resumable to the step, deterministic (docs/methods/mend.md).

The loss of one record, with the update that the network makes of its own gradient (Mitchell et al. 2022, their training loss)::

    L = cedit · NLL_edited(target | question)  +  cloc · KL(p_base ‖ p_edited on a text that must stay)

All records of a step are edited and measured in one forward pass, each row with its own update: the sum the published code
accumulates record by record. Nothing is drawn from a stream, so step t is the same however often training was interrupted.

Shape legend: ``B`` records of a step, ``k`` labels of all texts, ``V`` size of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor, nn

from raysweep.artifacts import ArtifactRequest
from raysweep.editors.mend import factors, network
from raysweep.editors.mend.editor import Mend, MendConfig, locality_probes, matrices
from raysweep.errors import DataError
from raysweep.hashing import digest
from raysweep.models.forward import blocks
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord, ProbeKind
from raysweep.seeds import derive

if TYPE_CHECKING:
    from raysweep.artifacts import Built

Progress = Callable[[Mapping[str, float]], None]
# records validated at once
_ROWS = 32


class TrainingMeta(TypedDict):
    """What goes beside the tensors of an interrupted training.

    Attributes:
        recipe: digest of model, recipe and fold.
        step: optimiser steps taken.
        skipped: steps whose gradient was not finite.
        scores: of the best network so far.
        history: what each validation measured.
    """

    recipe: str
    step: int
    skipped: int
    scores: dict[str, float]
    history: list[dict[str, float]]


State = tuple[dict[str, Tensor], TrainingMeta]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One record as it is used once.

    Attributes:
        edit: whose gradient the network gets.
        question: whose labels the edited model should predict.
        locality: whose predictions must stay.
    """

    edit: factors.LabelledText
    question: factors.LabelledText
    locality: factors.LabelledText


@dataclass(frozen=True, slots=True)
class Losses:
    """One value per record, ``[B]``: edit loss, locality loss, all labels right, share of kept predictions unchanged."""

    edit: Tensor
    locality: Tensor
    right: Tensor
    same: Tensor


class Trainer:
    """Trains one hypernetwork on one fold of records.

    Promises: the model is left as it was; equal arguments give equal networks; ``load(state())`` goes on bit for bit.
    """

    def __init__(self, lm: LanguageModel, config: MendConfig, records: Sequence[EditRecord]) -> None:
        assert config.train is not None
        self.lm, self.config, self.recipe = lm, config, config.train
        error = Mend.train_split_error(records)
        if error is not None:
            raise error
        # The last quarter at most is held out; a record without anything that must stay teaches nothing.
        usable = [r for r in records if locality_probes(r)]
        last = len(usable) - min(self.recipe.validation, max(1, len(usable) // 4))
        self.records, self.validation = usable[:last], usable[last:]
        self.matrices = matrices(lm, config)
        self.modules = [m.name.rpartition(".")[0] for m in self.matrices]
        self.net = network.Hypernetwork(
            self.matrices,
            rank=config.rank,
            edit_lr=config.edit_lr,
            shared=config.shared,
            seed=derive(self.recipe.seed, "net"),
        ).to(lm.device)
        networks = [p for n, p in self.net.named_parameters() if n != "edit_lrs"]
        rates = [self.net.edit_lrs]
        lr_lr = self.recipe.lr if self.recipe.ref_lr else self.recipe.lr_lr
        self.adam = torch.optim.Adam([{"params": networks, "lr": self.recipe.lr}, {"params": rates, "lr": lr_lr}])
        self.step = self.skipped = 0
        self.best: dict[str, Tensor] = {}
        self.scores: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def run(self, until: int | None = None, progress: Progress | None = None) -> None:
        """Train up to step *until* (None = the end); validate on the way and at the end."""
        end = self.recipe.steps if until is None else min(until, self.recipe.steps)
        if self.step == 0 and not self.history:
            self._warm_up()
        while self.step < end:
            row = self.advance()
            if self.step % self.recipe.every == 0 or self.step == self.recipe.steps:
                row |= self.validate()
            if progress is not None:
                progress(row)

    def _warm_up(self) -> None:
        """Fill the statistics from a first batch, and measure the untrained network."""
        self.net.train()
        with torch.no_grad():
            self._updates([example.edit for example in self._examples(0)])
        self.validate()

    def advance(self) -> dict[str, float]:
        """Make one optimiser step and return its losses; a step whose gradient is not finite is skipped and counted."""
        self.net.train()
        losses = self._losses(self._examples(self.step))
        total = (self.recipe.cedit * losses.edit + self.recipe.cloc * losses.locality).mean()
        self.adam.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        # A record can blow up; the step is left out, as published, and counted.
        if bool(torch.isfinite(norm)):
            self.adam.step()
        else:
            self.skipped += 1
        self.step += 1
        return {"step": self.step, "loss": float(total.detach()), **_means(losses), "skipped": self.skipped}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure single edits of the held-out records and keep the network if none was better."""
        self.net.eval()
        parts = [self.validation[i : i + _ROWS] for i in range(0, len(self.validation), _ROWS)]
        measured = [self._losses([self._example(r, Random(0), plain=True) for r in part]) for part in parts]
        each = [torch.cat([getattr(m, n) for m in measured]) for n in ("edit", "locality", "right", "same")]
        losses = Losses(*each)
        score = {f"val_{n}": v for n, v in _means(losses).items()}
        score["val_loss"] = float((self.recipe.cedit * losses.edit + self.recipe.cloc * losses.locality).mean())
        # The untrained network was measured too, so a training that only harms returns it.
        if not self.scores or self.recipe.select == "last" or self._rank(score) > self._rank(self.scores):
            self.best = {n: t.detach().clone() for n, t in self.net.state_dict().items()}
            self.scores = {"step": self.step, **score}
        self.history.append({"step": self.step, **score})
        return score

    def state(self) -> State:
        """Return everything needed to go on: network, best network, moments of Adam, counters."""
        tensors = {f"net/{n}": t.detach().clone() for n, t in self.net.state_dict().items()}
        tensors |= {f"best/{n}": t.clone() for n, t in self.best.items()}
        # Moments of Adam by parameter number: flat names, since an archive is one level deep.
        for number, slot in self.adam.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{n}": t.clone() for n, t in slot.items()}
        return tensors, {
            "recipe": self._recipe_digest(),
            "step": self.step,
            "skipped": self.skipped,
            "scores": self.scores,
            "history": self.history,
        }

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
        """Go on from :meth:`state`.

        Raises:
            DataError: it belongs to another model, recipe or fold.
        """
        # JSON that state() gave away; of another training it is refused before anything of it is used
        known = cast("TrainingMeta", meta)
        if known["recipe"] != self._recipe_digest():
            raise DataError("the interrupted training had another model, recipe or fold", hint="give another --out")
        self.net.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("net/")})
        self.best = {n[5:]: t.to(self.lm.device) for n, t in tensors.items() if n.startswith("best/")}
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                _, number, part = name.split("/")
                slots.setdefault(int(number), {})[part] = tensor
        self.adam.load_state_dict({"state": slots, "param_groups": self.adam.state_dict()["param_groups"]})
        self.step, self.skipped = known["step"], known["skipped"]
        self.scores, self.history = dict(known["scores"]), [dict(row) for row in known["history"]]

    def result(self) -> Built:
        """Return the best network so far and what is known of it."""
        if not self.best:
            self._warm_up()
        meta = {
            "model": self.lm.digest,
            "matrices": [m.name for m in self.matrices],
            "config": self.config.model_dump(mode="json", exclude={"weights"}),
            "records": digest([r.id for r in self.records]),
            "scores": self.scores,
        }
        return self.best, meta

    def _rank(self, score: Mapping[str, float]) -> tuple[float, float]:
        """Order networks: by accuracy, then by loss."""
        first = score["val_right"] + (score["val_same"] if self.recipe.select == "both" else 0.0)
        return first, -score["val_loss"]

    def _recipe_digest(self) -> str:
        fold = [[r.id, r.prompt, r.target] for r in (*self.records, *self.validation)]
        return digest(
            [self.lm.identity, torch.get_num_threads(), self.config.model_dump(mode="json", exclude={"weights"}), fold]
        )

    def _examples(self, step: int) -> list[TrainingExample]:
        """Return the examples of one step: records without replacement, epoch by epoch."""
        size, count = self.recipe.batch, len(self.records)
        examples = []
        for number in range(step * size, (step + 1) * size):
            # The order of an epoch is drawn from its number, not from a stream: step t needs no history.
            order = list(range(count))
            Random(derive(self.recipe.seed, "epoch", number // count)).shuffle(order)
            rng = Random(derive(self.recipe.seed, "lesson", number))
            examples.append(self._example(self.records[order[number % count]], rng))
        return examples

    def _example(self, record: EditRecord, rng: Random, *, plain: bool = False) -> TrainingExample:
        """Return *record* as a example; *plain* = as it is edited later, without swapped targets or paraphrases."""
        target, prompt = record.target, record.prompt
        # Targets that belong to their records could be learnt by heart; a stranger's cannot.
        if not plain and rng.random() < self.recipe.swap:
            target = rng.choice(self.records).target
        paraphrases = [p for p in record.probes if p.kind is ProbeKind.PARAPHRASE]
        if not plain and paraphrases and rng.random() < self.recipe.paraphrase:
            prompt = rng.choice(paraphrases).prompt
        stays = rng.choice(locality_probes(record))
        special = self.config.ref_labels
        edit = factors.label_text(self.lm, record.prompt, target, special=special)
        question = edit if prompt == record.prompt else factors.label_text(self.lm, prompt, target, special=special)
        return TrainingExample(edit, question, factors.label_text(self.lm, stays.prompt, stays.target, special=special))

    def _updates(self, texts: Sequence[factors.LabelledText]) -> factors.RowUpdates:
        """Return the update of each record, as the network stands."""
        rows = factors.batch_texts(self.lm, texts, min(self.config.layers))
        pairs = factors.gradient_factors(self.lm, rows, self.modules).pairs
        return {m: self.net(f"{m}.weight", *pairs[m]) for m in self.modules}

    def _losses(self, examples: Sequence[TrainingExample]) -> Losses:
        """Edit with every example by itself and measure all of them in one forward pass."""
        count = len(examples)
        updates = self._updates([example.edit for example in examples])
        first = min(self.config.layers)
        rows = factors.batch_texts(self.lm, [x.question for x in examples] + [x.locality for x in examples], first)
        if self.recipe.ref_kl:
            rows = _one_later(rows, count)
        with torch.no_grad():
            base = blocks.logits(self.lm, rows.hidden(self.lm))  # [k, V]
        # Each row is computed with the update of its record: B questions and B texts, 2B rows.
        with factors.row_updates_applied(self.lm, factors.repeat_updates(updates, [*range(count)] * 2)):
            logits = blocks.logits(self.lm, rows.hidden(self.lm))
        # rows 0 … B−1 are questions, B … 2B−1 the texts that must stay; both halves get the B updates
        kl = nn.functional.kl_div(logits.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True).sum(
            -1
        )
        right, same = (rows.mean((logits.argmax(-1) == x).float()) for x in (rows.label, base.argmax(-1)))
        return Losses(rows.nll(logits)[:count], rows.mean(kl)[count:], (right[:count] > 1 - 1e-6).float(), same[count:])


def build(lm: LanguageModel, requests: Sequence[ArtifactRequest], records: Sequence[EditRecord]) -> list[Built]:
    """Train the hypernetwork of each request on *records* (the artifact builder)."""
    made = []
    for request in requests:
        trainer = Trainer(lm, MendConfig.model_validate(request.inputs["config"]), records)
        trainer.run()
        made.append(trainer.result())
    return made


@dataclass(slots=True)
class PeriodicSaver:
    """Calls *save* with the trainer's state at most every *seconds*."""

    trainer: Trainer
    save: Callable[[State], None]
    seconds: float = 20.0
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, row: Mapping[str, float]) -> None:
        """Save if it is time."""
        if time.monotonic() - self._last >= self.seconds:
            self.save(self.trainer.state())
            self._last = time.monotonic()


def _one_later(rows: factors.TextBatch, count: int) -> factors.TextBatch:
    """Return *rows* whose second half is compared one position later, at the end of the text (quirk Q34)."""
    column = rows.column + (rows.row >= count).to(rows.column.dtype)
    return factors.TextBatch(rows.mask, rows.states, rows.first, rows.row, column, rows.label, rows.share)


def _means(losses: Losses) -> dict[str, float]:
    return {n: float(getattr(losses, n).detach().mean()) for n in ("edit", "locality", "right", "same")}
