"""Fine-tuning of one matrix per edit: FT-L (``prompt_last``) and FT-M (``target_new``).

Adam minimises the negative log-likelihood of the target over the value matrix ``W`` of one or more blocks (docs/methods/ft.md)::

    prompt_last:  L(W) = −(1/m) Σ_j log p_W(y_j | x)                    every target token at the prompt's last token
    target_new:   L(W) = −(1/m) Σ_j log p_W(y_j | x, y_1 … y_{j−1})     token by token

until ``L < stop_loss``; with ``norm_constraint`` ε, each entry is clamped to ``[w_0 − ε, w_0 + ε]`` after every update, ``w_0`` its
value before the edit. The patch is ``ΔW = W − W_0``, fp32.

What enters the lowest trained matrix never changes, so an update starts from there: its product, the residual stream beside it,
and the blocks above. :func:`_train` is the one loop; it trains ``n`` edits at once, each with weights of its own.

Shape legend: ``n`` edits trained together, ``T`` tokens of a pack, ``k`` demanded tokens, ``m`` of one record, ``d`` stream width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

from raysweep.config.schema import Blocks, Count, NonNegative, Positive
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import BaseEditor, EditInputs, EditorConfig, EditStep, JointInputs
from raysweep.editors.stopping import steps_between_reads
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import Delta, Dense, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.editors import ft_targets
    from raysweep.models import hooks, ledger
    from raysweep.models.forward import blocks, prefix_tree, resume
    from raysweep.models.lm import LanguageModel
    from raysweep.models.sizes import ModelSize
else:
    torch, ft_targets = lazy("torch"), lazy("raysweep.editors.ft_targets")
    hooks, ledger = lazy("raysweep.models.hooks"), lazy("raysweep.models.ledger")
    blocks, resume = lazy("raysweep.models.forward.blocks"), lazy("raysweep.models.forward.resume")
    prefix_tree = lazy("raysweep.models.forward.prefix_tree")


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
    theirs: ClassVar[Table] = tables.FT

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
    """Adam on one value matrix until the record is learnt; the patch is the difference (Zhu et al. 2020; Zhang et al. 2024)."""

    name = "ft"
    version = 2
    spans_devices = True
    config_type = FineTuneConfig
    is_stateless = True
    paper = "Zhu et al. 2020, arXiv 2012.00363 (FT-L); Zhang et al. 2024, arXiv 2401.01286 (FT-M)"

    @classmethod
    def working_bytes(cls, config: FineTuneConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what training takes: each edit has matrices of its own, with Adam's, and the blocks above are kept."""
        trained = config.batch * len(config.layers) * shape.hidden * shape.mlp_width
        blocks = max(shape.layers - 1 - min(config.layers), 0)
        kept = activations.kept_for_gradients(shape, size, blocks=blocks, packs=config.batch, tokens=activations.ROW)
        head = activations.of_the_head(shape, size, predictions=config.batch * activations.TARGET)
        # In fp32: the weights, what takes their place, its gradient and that in fp32, Adam's two means, the change.
        return {"trained copies": 7 * 4 * trained, "activations": kept + head}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the trained parameters."""
        modules = [lm.layout.mlp_out.format(layer) for layer in self.config.layers]
        names = [f"{m}.weight" for m in modules]
        if self.config.train_bias:
            names += [f"{m}.bias" for m in modules if getattr(lm.part(m), "bias", None) is not None]
        return tuple(names)

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **given: Unpack[EditInputs]
    ) -> EditStep[None]:
        """Train one copy of the matrices on the whole batch, by the mean of the records' losses."""
        targets = self._targets(lm, batch)
        names = self.edited_parameters(lm)
        start = [lm.weight(n).detach() for n in names]
        below = min(self.config.layers)
        block, matrix = lm.layout.block.format(below), lm.layout.mlp_out.format(below)
        packs = prefix_tree.pack_rows(lm, targets.rows)
        sides: list[tuple[str, hooks.Side]] = [(matrix, "input"), (matrix, "output"), (block, "output")]
        with torch.no_grad(), hooks.capture(lm, sides) as seen:
            blocks.run_packs(lm, packs, last=below)
            # The block's output without the matrix's: residual stream and attention, which no update moves.
            keys = seen[matrix, "input"]
            beside = seen[block, "output"] - lm.to_stream(below, seen[matrix, "output"])
            # Where the matrix is, which of a model over several devices may be another one than the model's.
            keys = keys.to(lm.weight(f"{matrix}.weight").device)
        located = targets.locate(packs)
        with ledger.substituted(lm, {n: w.clone() for n, w in zip(names, start, strict=True)}) as live:
            for parameter in live.values():
                parameter.requires_grad_(True)
            # Higher trained matrices are in the model's stand-ins, so the blocks above see them.
            upper = resume.UpperBlocks.prepare(lm, below + 1, packs.positions, packs.visible).read_at(
                located.pack, located.column
            )

            def losses(masters: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
                with torch.no_grad():
                    # Masters are fp32; the model computes with them rounded to its own dtype.
                    for parameter, master in zip(live.values(), masters, strict=True):
                        parameter.copy_(master[0])
                output = lm.part(matrix)(keys).to(beside.device)
                loss = located.nll(lm, upper.hidden(lm, beside + lm.to_stream(below, output))).sum()
                return loss[None], list(live.values())

            # One edit: a first axis of length 1 for the loop below.
            masters = [w.float().clone(memory_format=torch.contiguous_format)[None] for w in start]
            (trained,) = _train(self.config, masters, [w.float() for w in start], losses)
        changes = ((w - s.float()).to(lm.device) for w, s in zip(trained.weights, start, strict=True))
        deltas: dict[str, Delta] = {n: Dense(_logical(lm, n, c)) for n, c in zip(names, changes, strict=True)}
        return EditStep(WeightDelta(deltas), state, trained.stats())

    @property
    def group_size(self) -> int:
        """``batch`` where one matrix alone is trained."""
        return self.config.batch if len(self.config.layers) == 1 and not self.config.train_bias else 1

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[None]]:
        """Train a copy of the matrix for each of *batches*, of one record each; the blocks above run for all at once."""
        if self.group_size == 1 or any(len(batch) != 1 for batch in batches):
            return super().edit_many(lm, batches, **given)
        (layer,), (name,) = self.config.layers, self.edited_parameters(lm)
        joint = _JointForward.prepare(lm, layer, [self._targets(lm, batch) for batch in batches])
        # Logical orientation here, since baddbmm takes the place of the module.
        start = lm.logical(name).detach().float().to(lm.device)

        def losses(masters: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            # A fresh leaf per step, rounded from the masters [n, d_out, d_in].
            weights = masters[0].to(lm.dtype, copy=True).requires_grad_(True)
            return joint.losses(lm, weights), [weights]

        trained = _train(self.config, [start.repeat(len(batches), 1, 1)], [start], losses)
        return [EditStep(WeightDelta({name: Dense(t.weights[0] - start)}), None, t.stats()) for t in trained]

    def _targets(self, lm: LanguageModel, batch: Sequence[EditRecord]) -> ft_targets.Targets:
        if self.config.objective == "target_new":
            return ft_targets.target_new(lm, batch)
        return ft_targets.prompt_last(lm, batch, special=self.config.ask_special, strip=self.config.strip_dummy_piece)


@dataclass(frozen=True, slots=True)
class _Trained:
    """One edit's weights when its training ended, fp32, and its losses, update by update."""

    weights: Sequence[Tensor]
    losses: Sequence[float]

    def stats(self) -> dict[str, float]:
        return {"loss": self.losses[-1], "first_loss": self.losses[0], "steps": float(len(self.losses))}


def _train(
    config: FineTuneConfig,
    masters: Sequence[Tensor],
    start: Sequence[Tensor],
    losses: Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]],
) -> list[_Trained]:
    """Train ``n`` edits by Adam until each is below ``stop_loss``; an edit that has stopped keeps its weights of then.

    Args:
        config: of the editor.
        masters: the trained tensors in fp32, ``[n, …]`` each; changed in place.
        start: their values before the edit, without the first axis.
        losses: returns, with gradients enabled, the loss of each edit ``[n]`` given *masters*, and the tensors in the model's dtype
            that take their place, whose gradients are asked for.
    """
    # One optimiser for all edits: Adam is elementwise, so they do not meet in it.
    adam = torch.optim.Adam(list(masters), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    every, record = steps_between_reads(masters[0]), []
    # The edits that go on, [n], where their losses are; and the weights of each when it stopped, which mean nothing before.
    running: Tensor | None = None
    final: list[Tensor] = []
    for step in range(config.steps):
        with torch.enable_grad():
            loss, live = losses(masters)
        record.append(loss.detach().double())
        running = torch.ones_like(record[-1], dtype=torch.bool) if running is None else running
        ends = running & (record[-1] < config.stop_loss)
        running = running & ~ends
        # An edit that has stopped is still computed and moved, but neither recorded nor read any more. Whoever reads only now
        # and then keeps the weights in every step, as one of the edits may have stopped in it.
        if every > 1 or bool(ends.any()):
            final = final or [master.clone() for master in masters]
            _replace_rows(final, masters, ends)
        if (step + 1) % every == 0 and not bool(running.any()):
            break
        # The edits share no weights, so the gradient of the sum holds each edit's own.
        gradients = torch.autograd.grad(loss.sum(), list(live))
        for master, gradient in zip(masters, gradients, strict=True):
            # fused Adam pairs entries by place in memory
            master.grad = gradient.float().contiguous().view_as(master)
        adam.step()
        if config.norm_constraint is not None:
            # The ball is around the weights before this edit, not around the pristine ones.
            width = config.norm_constraint
            for master, middle in zip(masters, start, strict=True):
                master.copy_(torch.maximum(torch.minimum(master, middle + width), middle - width))
    if final and running is not None:
        _replace_rows(final, masters, running)
    weights = final or masters
    histories = torch.stack(record, dim=1).tolist()
    return [_Trained([w[i] for w in weights], _until(history, config.stop_loss)) for i, history in enumerate(histories)]


def _replace_rows(old: Sequence[Tensor], new: Sequence[Tensor], flags: Tensor) -> None:
    """Copy the rows at ``flags [n]`` of the tensors *new*, ``[n, …]`` each, into *old*."""
    for into, source in zip(old, new, strict=True):
        here = flags.to(source.device).view(-1, *[1] * (source.dim() - 1))
        torch.where(here, source, into, out=into)


def _until(history: list[float], stop_loss: float) -> list[float]:
    """Return the losses up to the first one below *stop_loss*."""
    end = next((i for i, loss in enumerate(history) if loss < stop_loss), len(history))
    return history[: end + 1]


def _logical(lm: LanguageModel, name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 and lm.transposed(name) else tensor


@dataclass(frozen=True, slots=True)
class _JointForward:
    """Several edits, a pack each, and what does not change while each trains a matrix of its own.

    Attributes:
        keys: ``[n, T, d_in]`` what enters the matrix.
        beside: ``[n, T, d]`` the residual stream beside it, with the bias where the matrix's output is added to it as it is.
        layer: of the matrix.
        readout: the blocks above, read where something is demanded.
        targets: what is demanded of all of them.
        edit: ``[k]`` of which edit each demanded token is.
    """

    keys: Tensor
    beside: Tensor
    layer: int
    readout: resume.ReadPositions
    targets: ft_targets.LocatedTargets
    edit: Tensor

    @classmethod
    def prepare(cls, lm: LanguageModel, layer: int, targets: Sequence[ft_targets.Targets]) -> _JointForward:
        """Run the edits' rows up to block *layer*."""
        trees, places = [prefix_tree.PrefixTree() for _ in targets], []
        for i, (tree, one) in enumerate(zip(trees, targets, strict=True)):
            places += [(i, tree.add(row)) for row in one.rows]
        packs = prefix_tree.lay_out(lm, trees, places)
        block, matrix = lm.layout.block.format(layer), lm.layout.mlp_out.format(layer)
        sides: list[tuple[str, hooks.Side]] = [(matrix, "input"), (matrix, "output"), (block, "output")]
        with torch.no_grad(), hooks.capture(lm, sides) as seen:
            blocks.run_packs(lm, packs, last=layer)
        bias = getattr(lm.part(matrix), "bias", None) if lm.layout.mlp_out_norm is None else None
        beside = seen[block, "output"] - lm.to_stream(layer, seen[matrix, "output"])
        beside = beside + (0 if bias is None else bias.detach())
        located = ft_targets.joined(targets).locate(packs)
        edit = [i for i, one in enumerate(targets) for _ in one.demanded]
        sizes = torch.tensor([len(tree.ids) for tree in trees], device=lm.device)
        real = torch.arange(packs.ids.shape[1], device=lm.device) < sizes[:, None]  # [n, T], False at padding
        upper = resume.UpperBlocks.prepare(lm, layer + 1, packs.positions, packs.visible, real=real)
        keys, readout = seen[matrix, "input"], upper.read_at(located.pack, located.column)
        return cls(keys, beside, layer, readout, located, torch.tensor(edit, device=lm.device))

    def losses(self, lm: LanguageModel, weights: Tensor) -> Tensor:
        """Return the loss of each edit ``[n]`` with its matrix in ``weights [n, d_out, d_in]``."""
        if lm.layout.mlp_out_norm is None:
            # one product for all edits: beside + keys Wᵀ, [n, T, d]
            states = torch.baddbmm(self.beside, self.keys, weights.mT)
        else:
            bias = getattr(lm.part(lm.layout.mlp_out.format(self.layer)), "bias", None)
            output = torch.bmm(self.keys, weights.mT) + (0 if bias is None else bias.detach())
            states = self.beside + lm.to_stream(self.layer, output)
        hidden = self.readout.hidden(lm, states)
        return torch.zeros(len(weights), device=hidden.device).index_add(0, self.edit, self.targets.nll(lm, hidden))
