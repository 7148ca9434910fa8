"""Fine-tuning of one matrix per edit: FT-L (``prompt_last``) and FT-M (``target_new``) (editors.md §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from raysweep.config.schema import Blocks, Count, NonNegative, Positive
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, Dense, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models import hooks, ledger, tokens
    from raysweep.models.forward import blocks, head, prefix_tree, resume
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    hooks = lazy("raysweep.models.hooks")
    head = lazy("raysweep.models.forward.head")
    prefix_tree = lazy("raysweep.models.forward.prefix_tree")
    blocks = lazy("raysweep.models.forward.blocks")
    resume = lazy("raysweep.models.forward.resume")
    ledger = lazy("raysweep.models.ledger")
    tokens = lazy("raysweep.models.tokens")


class FineTuneConfig(EditorConfig):
    """Hyper-parameters of FT.

    Attributes:
        layers: blocks whose value matrix is trained.
        objective: ``prompt_last`` (FT-L) asks every target token at the prompt's last token; ``target_new`` (FT-M) teaches
            the target token by token.
        steps (updates): at most this many updates per edit.
        lr: of Adam, fresh for each edit.
        weight_decay: of Adam.
        stop_loss (nats): stop below this loss.
        norm_constraint: each entry stays within ± this of its value before the edit; None = free.
        train_bias: train the matrix's bias too (quirk Q14; the published GPT-2-XL setting does).
        ask_special: FT-L also asks for the tokenizer's special tokens, BOS say (quirk Q13; published).
        strip_dummy_piece: FT-L does not ask for SentencePiece's stand-alone space piece (quirk Q6; off = published).
        batch (records): train this many records at once, each with weights of its own, where edits do not see each
            other (SimIE in ``init`` mode with ``closed64``; one layer, no bias).
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"kl_factor"})

    layers: Blocks
    objective: Literal["prompt_last", "target_new"] = "prompt_last"
    steps: Count = 25
    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.0
    stop_loss: NonNegative = 1e-2
    norm_constraint: Positive | None = None
    train_bias: bool = False
    ask_special: bool = True
    strip_dummy_piece: bool = False
    batch: Count = 1


class FineTune(BaseEditor[FineTuneConfig, None]):
    """Adam on one value matrix until the record is learnt, then hand back the difference."""

    name = "ft"
    version = 2
    config_type = FineTuneConfig
    is_stateless = True
    paper = "Zhu et al. 2020, arXiv 2012.00363 (FT-L); Zhang et al. 2024, arXiv 2401.01286 (FT-M)"

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the trained parameters."""
        modules = [lm.layout.mlp_out.format(layer) for layer in self.config.layers]
        names = [f"{m}.weight" for m in modules]
        if self.config.train_bias:
            names += [f"{m}.bias" for m in modules if getattr(lm.part(m), "bias", None) is not None]
        return tuple(names)

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[None]:
        """Train on the whole batch (mean of the records' losses).

        What enters the first trained matrix never changes, so each update starts from there: its product, the residual stream
        beside it, and the blocks above.
        """
        ask = self._ask(lm, batch)
        names = self.edited_parameters(lm)
        start = {n: lm.weight(n).detach() for n in names}
        master = {n: w.float().clone() for n, w in start.items()}
        below = min(self.config.layers)
        block, matrix = lm.layout.block.format(below), lm.layout.mlp_out.format(below)
        packs = prefix_tree.pack_rows(lm, ask.rows)
        sides: list[tuple[str, hooks.Side]] = [(matrix, "input"), (matrix, "output"), (block, "output")]
        with torch.no_grad(), hooks.capture(lm, sides) as seen:
            blocks.run_packs(lm, packs, last=below)
            keys, beside = seen[matrix, "input"], seen[block, "output"] - seen[matrix, "output"]
        adam = torch.optim.Adam(
            list(master.values()), lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        demand = ask.on(packs)
        losses: list[float] = []
        with ledger.substituted(lm, {n: w.clone() for n, w in start.items()}) as live:
            for parameter in live.values():
                parameter.requires_grad_(True)
            upper = resume.UpperBlocks.prepare(lm, below + 1, packs.positions, packs.visible).read_at(
                demand.pack, demand.column
            )
            for _ in range(self.config.steps):
                with torch.enable_grad():
                    loss = demand.loss(lm, upper.hidden(lm, beside + lm.part(matrix)(keys)))
                losses.append(float(loss.detach()))
                if losses[-1] < self.config.stop_loss:
                    break
                gradients = torch.autograd.grad(loss, list(live.values()))
                for value, gradient in zip(master.values(), gradients, strict=True):
                    value.grad = gradient.float()
                adam.step()
                self._write(live, master, start)
        deltas: dict[str, Delta] = {n: Dense(_logical(lm, n, master[n] - start[n].float())) for n in names}
        stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(len(losses))}
        return EditStep(WeightDelta(deltas), state, stats)

    @property
    def group_size(self) -> int:
        """``batch`` where one matrix alone is trained."""
        return self.config.batch if len(self.config.layers) == 1 and not self.config.train_bias else 1

    def edit_many(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[EditStep[None]]:
        """Train a copy of the matrix for each of *batches*, of one record each; the blocks above run for all at once."""
        if self.group_size == 1 or any(len(batch) != 1 for batch in batches):
            return [self.edit(lm, b, None, artifacts=artifacts, rng=r) for b, r in zip(batches, rngs, strict=True)]
        (layer,), (name,) = self.config.layers, self.edited_parameters(lm)
        asks = [self._ask(lm, batch) for batch in batches]
        together = _Together.of(lm, layer, asks)
        start = lm.logical(name).detach().float()
        master = start.repeat(len(batches), 1, 1)
        adam = torch.optim.Adam([master], lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True)
        done: dict[int, Tensor] = {}
        losses: list[list[float]] = [[] for _ in batches]
        for _ in range(self.config.steps):
            live = master.to(lm.dtype, copy=True).requires_grad_(True)
            with torch.enable_grad():
                loss = together.losses(lm, live)
            for i, value in enumerate(loss.detach().tolist()):
                if i not in done:
                    losses[i].append(value)
                    if value < self.config.stop_loss:
                        done[i] = master[i].clone()
            if len(done) == len(batches):
                break
            (gradient,) = torch.autograd.grad(loss.sum(), live)
            master.grad = gradient.float().contiguous()  # fused Adam pairs entries by place in memory
            adam.step()
            if self.config.norm_constraint is not None:
                width = self.config.norm_constraint
                master.copy_(torch.maximum(torch.minimum(master, start + width), start - width))
        return [
            EditStep(
                WeightDelta({name: Dense(done.get(i, master[i]) - start)}),
                None,
                {"loss": found[-1], "first_loss": found[0], "steps": float(len(found))},
            )
            for i, found in enumerate(losses)
        ]

    def _ask(self, lm: LanguageModel, batch: Sequence[EditRecord]) -> _Ask:
        if self.config.objective == "target_new":
            return _target_new(lm, batch)
        return _prompt_last(lm, batch, special=self.config.ask_special, strip=self.config.strip_dummy_piece)

    def _write(self, live: Mapping[str, Tensor], master: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
        """Clamp the trained values around their start and copy them into the model's stand-ins."""
        with torch.no_grad():
            for name, value in master.items():
                if self.config.norm_constraint is not None:
                    middle, width = start[name].float(), self.config.norm_constraint
                    value.copy_(torch.maximum(torch.minimum(value, middle + width), middle - width))
                live[name].copy_(value)


def _logical(lm: LanguageModel, name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 and lm.transposed(name) else tensor


@dataclass(frozen=True, slots=True)
class _Ask:
    """Rows of ids and the predictions demanded of them: (row, position, id, weight)."""

    rows: list[list[int]]
    asks: list[tuple[int, int, int, float]]

    def on(self, packs: prefix_tree.PackedRows) -> _Demand:
        """Find the demanded positions in *packs*."""
        places = [
            (packs.row_positions[row][0], packs.row_positions[row][1][position]) for row, position, _, _ in self.asks
        ]
        spots = list(dict.fromkeys(places))
        device = packs.ids.device
        pack, column = torch.tensor(spots, device=device).T
        which = torch.tensor([spots.index(place) for place in places], device=device)
        wanted, weight = (torch.tensor(c, device=device) for c in zip(*(ask[2:] for ask in self.asks), strict=True))
        return _Demand(pack, column, which, wanted, weight)


@dataclass(frozen=True, slots=True)
class _Demand:
    """Where something is demanded (``pack``, ``column``), and per demanded id: which of the places, the id, its weight."""

    pack: Tensor
    column: Tensor
    which: Tensor
    wanted: Tensor
    weight: Tensor

    def each(self, lm: LanguageModel, hidden: Tensor) -> Tensor:
        """Return ``weight · (−log p(id))`` of each demanded id, given the normed states at the places ``[k, d]``."""
        return -head.target_logprobs(lm, hidden, self.which, self.wanted) * self.weight

    def loss(self, lm: LanguageModel, hidden: Tensor) -> Tensor:
        """Return their sum."""
        return self.each(lm, hidden).sum()


@dataclass(frozen=True, slots=True)
class _Together:
    """Several records, a pack each, and what does not change while each trains a matrix of its own.

    Attributes:
        keys: ``[n, T, d_in]`` what enters the matrix; ``beside [n, T, d]`` the residual stream beside it, with the bias.
        spots: the blocks above.
        demand: what is demanded of all of them.
        record: ``[k]`` of which record each demanded id is.
    """

    keys: Tensor
    beside: Tensor
    spots: resume.ReadPositions
    demand: _Demand
    record: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, layer: int, asks: Sequence[_Ask]) -> _Together:
        """Run the records up to block *layer*."""
        trees, places = [prefix_tree.PrefixTree() for _ in asks], []
        for i, (tree, ask) in enumerate(zip(trees, asks, strict=True)):
            places += [(i, tree.add(row)) for row in ask.rows]
        packs = prefix_tree.lay_out(lm, trees, places)
        block, matrix = lm.layout.block.format(layer), lm.layout.mlp_out.format(layer)
        sides: list[tuple[str, hooks.Side]] = [(matrix, "input"), (matrix, "output"), (block, "output")]
        with torch.no_grad(), hooks.capture(lm, sides) as seen:
            blocks.run_packs(lm, packs, last=layer)
        bias = getattr(lm.part(matrix), "bias", None)
        beside = seen[block, "output"] - seen[matrix, "output"] + (0 if bias is None else bias.detach())
        demand = _joined(asks).on(packs)
        record = [i for i, ask in enumerate(asks) for _ in ask.asks]
        sizes = torch.tensor([len(tree.ids) for tree in trees], device=lm.device)
        real = torch.arange(packs.ids.shape[1], device=lm.device) < sizes[:, None]
        upper = resume.UpperBlocks.prepare(lm, layer + 1, packs.positions, packs.visible, real=real)
        keys, spots = seen[matrix, "input"], upper.read_at(demand.pack, demand.column)
        return cls(keys, beside, spots, demand, torch.tensor(record, device=lm.device))

    def losses(self, lm: LanguageModel, weights: Tensor) -> Tensor:
        """Return the loss of each record ``[n]`` with its matrix in ``weights [n, d_out, d_in]``."""
        hidden = self.spots.hidden(lm, torch.baddbmm(self.beside, self.keys, weights.mT))
        return torch.zeros(len(weights), device=hidden.device).index_add(0, self.record, self.demand.each(lm, hidden))


def _joined(asks: Sequence[_Ask]) -> _Ask:
    """Return all *asks* as one, weights unchanged."""
    rows: list[list[int]] = []
    joined = []
    for ask in asks:
        joined += [(len(rows) + row, position, wanted, weight) for row, position, wanted, weight in ask.asks]
        rows += ask.rows
    return _Ask(rows, joined)


def _prompt_last(lm: LanguageModel, batch: Sequence[EditRecord], *, special: bool, strip: bool) -> _Ask:
    """Demand every target token at the prompt's last token; unk is left out (and everything counts if there is none)."""
    rows, asks = [], []
    for i, record in enumerate(batch):
        prompt = tokens.encode(lm, record.prompt)
        text = tokens.always_spaced(record.target)
        alone = tokens.target(lm, record.prompt, text, strip_dummy_piece=strip)
        wanted = list(alone.demanded)
        if special:  # those of the tokenizer's template around them
            around, n = lm.tokenizer(text)["input_ids"], len(alone.alone)
            begin = next(i for i in range(len(around)) if tuple(around[i : i + n]) == alone.alone)
            wanted = [*around[:begin], *wanted, *around[begin + n :]]
        kept = [t for t in wanted if t != lm.tokenizer.unk_token_id]
        rows.append(prompt)
        asks += [(i, len(prompt) - 1, t, 1.0 / (len(kept) * len(batch))) for t in kept]
    return _Ask(rows, asks)


def _target_new(lm: LanguageModel, batch: Sequence[EditRecord]) -> _Ask:
    """Demand each target token given the prompt and the earlier ones."""
    rows, asks = [], []
    for i, record in enumerate(batch):
        s = tokens.scored(lm, record.prompt, record.prompt + tokens.always_spaced(record.target))
        rows.append(list(s.ids[:-1]))
        weight = 1.0 / (len(s.labels) * len(batch))
        asks += [(i, s.start - 1 + j, t, weight) for j, t in enumerate(s.labels)]
    return _Ask(rows, asks)
