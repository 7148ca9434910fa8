"""Fine-tuning of one matrix per edit: FT-L (``prompt_last``) and FT-M (``target_new``) (editors.md §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raysweep.config.schema import Count, NonNegative, Positive
from raysweep.editors.base import ArtifactRequest, Delta, Dense, EditorConfig, EditStep, WeightDelta
from raysweep.lazy import lazy
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models import hooks, partial, patching, tokens
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    hooks, partial, patching, tokens = (
        lazy(f"raysweep.models.{n}") for n in ("hooks", "partial", "patching", "tokens")
    )


class FineTuneConfig(EditorConfig):
    """Hyper-parameters of FT.

    Attributes:
        layers: blocks whose value matrix is trained.
        objective: ``prompt_last`` (FT-L) asks every target token at the prompt's last token; ``target_new`` (FT-M) teaches
            the target token by token.
        steps: at most this many updates per edit.
        lr: of Adam, fresh for each edit.
        weight_decay: of Adam.
        stop_loss: stop below this loss.
        norm_constraint: each entry stays within ± this of its value before the edit; None = free.
        train_bias: train the matrix's bias too (quirk Q14; the published GPT-2-XL setting does).
        ask_special: FT-L also asks for the tokenizer's special tokens, BOS say (quirk Q13; published).
        strip_dummy_piece: FT-L does not ask for SentencePiece's stand-alone space piece (quirk Q6; off = published).
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"kl_factor"})

    layers: tuple[int, ...] = Field(min_length=1)
    objective: Literal["prompt_last", "target_new"] = "prompt_last"
    steps: Count = 25
    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.0
    stop_loss: NonNegative = 1e-2
    norm_constraint: Positive | None = None
    train_bias: bool = False
    ask_special: bool = True
    strip_dummy_piece: bool = False


class FineTune:
    """Adam on one value matrix until the record is learnt, then hand back the difference."""

    name: ClassVar[str] = "ft"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = FineTuneConfig
    patch_kind: ClassVar[Literal["weights", "modules"]] = "weights"
    memoryless: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhu et al. 2020, arXiv 2012.00363 (FT-L); Zhang et al. 2024, arXiv 2401.01286 (FT-M)"

    def __init__(self, config: FineTuneConfig) -> None:
        self.config = config

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the trained parameters."""
        modules = [lm.layout.mlp_out.format(layer) for layer in self.config.layers]
        names = [f"{m}.weight" for m in modules]
        if self.config.train_bias:
            names += [f"{m}.bias" for m in modules if getattr(lm.part(m), "bias", None) is not None]
        return tuple(names)

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for nothing."""
        return {}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> None:
        """Remember nothing: FT has no memory."""

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[None]:
        """Train on the whole batch (mean of the records' losses)."""
        ask = _prompt_last(lm, batch, special=self.config.ask_special, strip=self.config.strip_dummy_piece)
        if self.config.objective == "target_new":
            ask = _target_new(lm, batch)
        names = self.edited(lm)
        start = {n: lm.weight(n).detach() for n in names}
        master = {n: w.float().clone() for n, w in start.items()}
        first_block = min(self.config.layers)
        ids, mask = tokens.pad(ask.rows, lm.device)
        entry = lm.layout.block.format(first_block)
        with torch.no_grad(), hooks.capture(lm, [(entry, "input")]) as seen:
            partial.run(lm, ids=ids, mask=mask, last=first_block)
            states = seen[entry, "input"]
        adam = torch.optim.Adam(list(master.values()), lr=self.config.lr, weight_decay=self.config.weight_decay)
        losses: list[float] = []
        with patching.substituted(lm, {n: w.clone() for n, w in start.items()}) as live:
            for _ in range(self.config.steps):
                for parameter in live.values():
                    parameter.requires_grad_(True)
                with torch.enable_grad():
                    loss = ask.loss(lm, partial.run(lm, states=states, mask=mask, first=first_block))
                losses.append(float(loss.detach()))
                if losses[-1] < self.config.stop_loss:
                    break
                gradients = torch.autograd.grad(loss, list(live.values()))
                for (name, value), gradient in zip(master.items(), gradients, strict=True):
                    value.grad = gradient.float()
                    live[name].requires_grad_(False)
                adam.step()
                self._write(live, master, start)
        deltas: dict[str, Delta] = {n: Dense(_logical(lm, n, master[n] - start[n].float())) for n in names}
        stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(len(losses))}
        return EditStep(WeightDelta(deltas), state, stats)

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


class _Ask:
    """Rows of ids and the predictions demanded of them: (row, position, id, weight)."""

    def __init__(self, rows: list[list[int]], asks: list[tuple[int, int, int, float]]) -> None:
        self.rows, self.asks = rows, asks

    def loss(self, lm: LanguageModel, hidden: Tensor) -> Tensor:
        """Return ``Σ weight · (−log p(id))``."""
        row, position, wanted, weight = (torch.tensor(c, device=hidden.device) for c in zip(*self.asks, strict=True))
        spots, inverse = torch.unique(torch.stack([row, position]), dim=1, return_inverse=True)
        logp = partial.logits(lm, hidden[spots[0], spots[1]]).log_softmax(-1)
        return -(logp[inverse, wanted] * weight).sum()


def _prompt_last(lm: LanguageModel, batch: Sequence[EditRecord], *, special: bool, strip: bool) -> _Ask:
    """Demand every target token at the prompt's last token; unk is left out (and everything counts if there is none)."""
    rows, asks = [], []
    for i, record in enumerate(batch):
        prompt = tokens.encode(lm, record.prompt)
        text = tokens.always_spaced(record.target)
        wanted = lm.tokenizer(text)["input_ids"] if special else tokens.bare(lm, text)
        if strip and tokens.dummies(lm, record.prompt + text, tokens.bare(lm, text)):
            wanted.remove(tokens.bare(lm, text)[0])
        kept = [t for t in wanted if t != lm.tokenizer.unk_token_id]
        rows.append(prompt)
        asks += [(i, len(prompt) - 1, t, 1.0 / (len(kept) * len(batch))) for t in kept]
    return _Ask(rows, asks)


def _target_new(lm: LanguageModel, batch: Sequence[EditRecord]) -> _Ask:
    """Demand each target token given the prompt and the earlier ones."""
    rows, asks = [], []
    for i, record in enumerate(batch):
        s = tokens.scored(lm, record.prompt, record.prompt + tokens.always_spaced(record.target))
        rows.append(list(s.ids))
        weight = 1.0 / (len(s.labels) * len(batch))
        asks += [(i, s.start - 1 + j, t, weight) for j, t in enumerate(s.labels)]
    return _Ask(rows, asks)
