"""GRACE: a codebook of keys, values and radii around one linear map (editors.md §10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raysweep.config.schema import Block, Count, Positive
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep
from raysweep.lazy import lazy
from raysweep.models.patches import ModulePatch
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models import hooks, tokens
    from raysweep.models.forward import head, prefix_tree, resume
    from raysweep.models.lm import LanguageModel
    from raysweep.models.modules import codebook, replacement
else:
    torch = lazy("torch")
    codebook = lazy("raysweep.models.modules.codebook")
    hooks = lazy("raysweep.models.hooks")
    head = lazy("raysweep.models.forward.head")
    prefix_tree = lazy("raysweep.models.forward.prefix_tree")
    resume = lazy("raysweep.models.forward.resume")
    tokens = lazy("raysweep.models.tokens")
    replacement = lazy("raysweep.models.modules.replacement")

_SHRINK = 1e-5  # the older of two neighbours gives way by this much more than half their distance
_SAME_KEY = 1e-4  # relative distance below which two queries are the same key but for rounding
_ROUNDING = 1e-5  # relative to a query and its distance: by how much another batch may round the same query otherwise


class GraceConfig(EditorConfig):
    """Hyper-parameters of GRACE.

    Attributes:
        layer: the block that gets the codebook.
        matrix: its first linear map (``in``: c_fc, gate_proj) or its value matrix (``out``).
        steps (updates): Adam updates of the value, per edit.
        lr: of Adam, fresh for each edit.
        radius (distance of hidden states): of a new key.
        start: a value starts from uniform random numbers (``cold``) or from the map's present output (``warm``).
        expand: what an edit with a neighbour's own target does to it: ``coverage`` widens its radius, ``moving_average``
            also moves its key half-way.
        replace: where a hit replaces the output: at the prompt's ``last`` token, at all tokens before it (``prompt``), at
            ``all`` tokens.
        ref: targets are "the same" by the published rule (mean of a label vector that includes the prompt's masked positions,
            and that of the entry mirrored in the table; quirk Q18), and a query that meets a key exactly is a neighbour like
            any other. Off: targets are compared id by id, an edit of a known key with another target takes its entry over, and what
            was just written lies inside the radius of its entry, rounding included.
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"num_pert", "reg", "val_reg", "dropout", "dist_fn"})

    layer: Block
    matrix: Literal["in", "out"] = "out"
    steps: Count = 50
    lr: Positive = 1.0
    radius: Positive = 1.0
    start: Literal["cold", "warm"] = "cold"
    expand: Literal["coverage", "moving_average"] = "coverage"
    replace: Literal["last", "prompt", "all"] = "last"
    ref: bool = False


class Grace(BaseEditor[GraceConfig, dict[str, Any]]):
    """Writes each record into a codebook; the model's weights stay as they are.

    State: ``keys [n, d_in]``, ``values [n, d_out]``, ``radii [n]`` (fp32) and per entry the target's ids (``labels``) and the
    number of prompt tokens before them (``masked``).
    """

    name = "grace"
    version = 2
    config_type = GraceConfig
    patch_kind = "modules"
    paper = "Hartvigsen et al. 2023, arXiv 2211.11031"

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Return an empty codebook."""
        d_out, d_in = replacement.weight_and_bias(replacement.unwrap(lm.part(self._name(lm))))[0].shape
        empty = torch.zeros(0, device=lm.device)
        return {
            "keys": empty.reshape(0, d_in),
            "values": empty.reshape(0, d_out),
            "radii": empty,
            "labels": [],
            "masked": [],
        }

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: dict[str, Any],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[dict[str, Any]]:
        """Write the records one after the other (the method knows no batches)."""
        stats: dict[str, float] = {}
        for record in batch:
            state, stats = self._write(lm, record, state, rng)
        return EditStep(self.module_patch(lm, state), state, stats)

    def module_patch(self, lm: LanguageModel, state: Mapping[str, Any]) -> ModulePatch:
        """Return the patch that *state* stands for."""
        name = self._name(lm)
        return ModulePatch({name: self._module(lm, state["keys"], state["values"], state["radii"])})

    def start_value(self, width: int, rng: torch.Generator) -> Tensor:
        """Draw the start of a cold value."""
        return torch.rand(width, generator=rng)

    def _name(self, lm: LanguageModel) -> str:
        return lm.layout.mlp_matrix(self.config.layer, self.config.matrix)

    def _module(self, lm: LanguageModel, keys: Tensor, values: Tensor, radii: Tensor) -> codebook.Codebook:
        bare = replacement.unwrap(lm.part(self._name(lm)))
        rounding = 0.0 if self.config.ref else _ROUNDING
        return codebook.Codebook(bare, keys, values, radii, replace=self.config.replace, rounding=rounding)

    def _write(
        self, lm: LanguageModel, record: EditRecord, state: Mapping[str, Any], rng: torch.Generator
    ) -> tuple[dict[str, Any], dict[str, float]]:
        name, config = self._name(lm), self.config
        asked = tokens.scored(lm, record.prompt, tokens.join(record.prompt, record.target))
        last, n = asked.start - 1, len(asked.ids) - 1  # nothing is asked after the last token
        packs = prefix_tree.pack_rows(lm, [asked.ids[:n]])
        bare, above = replacement.unwrap(lm.part(name)), config.matrix == "out"
        change = torch.arange(packs.ids.shape[1], device=lm.device)[None] >= (last if config.replace == "last" else 0)
        sides: list[tuple[str, hooks.Side]] = [(name, "input"), (name, "output")]
        with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}), hooks.capture(lm, sides) as seen:
            rest = resume.remainder_after(lm, packs, change, first=config.layer + 1)
        if not above:  # a value of the first map goes through its own block
            with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}):
                rest = resume.remainder_after(lm, packs, change, first=config.layer)
        query, output = (seen[name, side][0, last].float() for _, side in sides)
        value = output if config.start == "warm" else self.start_value(len(output), rng).to(lm.device)
        new, chosen, did = place(state, query, value, (list(asked.labels), asked.start), config)
        leaf = new["values"][chosen].clone().requires_grad_(True)
        adam = torch.optim.Adam([leaf], lr=config.lr, fused=True)
        module = self._module(lm, new["keys"][chosen, None], leaf[None], new["radii"][chosen, None])
        here, labels = int(rest.column_of[0, last]), torch.tensor(asked.labels, device=lm.device)
        where = {"last": rest.token_of == last, "prompt": rest.token_of < last, "all": rest.token_of >= 0}[
            config.replace
        ]
        replaced = where[..., None]
        beside = rest.states - rest.select(seen[name, "output"]) if above else rest.states
        ends = rest.column_of[0, last:n]
        spots = rest.upper.read_at(torch.zeros_like(ends), ends)
        losses: list[float] = []
        with (
            replacement.modules_replaced(lm, {} if above else {name: module}),
            replacement.row_context(lm, [here], torch.ones_like(rest.token_of)),
        ):
            for _ in range(config.steps):
                module.values = leaf[None]
                with torch.enable_grad():
                    moved = torch.where(replaced, beside + leaf.to(beside.dtype), rest.states) if above else rest.states
                    loss = -head.target_logprobs(
                        lm, spots.hidden(lm, moved), torch.arange(n - last, device=lm.device), labels
                    ).mean()
                (leaf.grad,) = torch.autograd.grad(loss, [leaf])
                adam.step()
                losses.append(float(loss.detach()))
        new["values"][chosen] = leaf.detach()
        stats = {"loss": losses[-1], "first_loss": losses[0], "entries": float(len(new["keys"]))}
        return new, stats | {event: float(event == did) for event in EVENTS}


EVENTS = ("added", "split", "expanded", "reused", "taken_over")


def place(
    state: Mapping[str, Any], query: Tensor, value: Tensor, target: tuple[list[int], int], config: GraceConfig
) -> tuple[dict[str, Any], int, str]:
    """Find or make the entry that *query* is written to (§10.2, step 3).

    Args:
        state: the codebook (not modified).
        query: ``[d_in]``.
        value: ``[d_out]`` start of a new entry's value.
        target: ids of the target and number of prompt tokens before them.
        config: rules and the radius of a new entry.

    Returns:
        The new codebook, the entry's index, and what happened, one of ``EVENTS``.
    """
    labels, masked = target
    new = {name: item.clone() for name, item in state.items() if hasattr(item, "clone")}
    new |= {"labels": [*state["labels"]], "masked": [*state["masked"]]}
    radii = new["radii"]
    if not len(radii):
        return _append(new, query, value, target, config.radius), 0, "added"
    nearest_distance, nearest = (t[0] for t in codebook.distances(query[None], new["keys"]).min(1))
    i, distance = int(nearest), float(nearest_distance)
    known = not config.ref and distance <= _SAME_KEY * float(query.norm())
    if distance > config.radius + float(radii[i]) and not known:
        return _append(new, query, value, target, config.radius), len(radii), "added"
    if _same_target(state, i, target, ref=config.ref):
        if distance > radii[i]:
            radii[i] = distance
            if config.expand == "moving_average":
                new["keys"][i] = (new["keys"][i] + query) / 2
            return new, i, "expanded"
        return new, i, "reused"
    if known:
        new["values"][i] = value
        new["labels"][i], new["masked"][i] = list(labels), masked
        radii[i] = max(float(radii[i]), distance)
        return new, i, "taken_over"
    radii[i] = distance / 2 - (_SHRINK if config.ref else min(_SHRINK, distance / 4))  # never below 0
    return _append(new, query, value, target, distance / 2), len(radii), "split"


def _append(
    book: dict[str, Any], query: Tensor, value: Tensor, target: tuple[list[int], int], radius: float
) -> dict[str, Any]:
    return {
        "keys": torch.cat([book["keys"], query[None]]),
        "values": torch.cat([book["values"], value[None]]),
        "radii": torch.cat([book["radii"], book["radii"].new_tensor([radius])]),
        "labels": [*book["labels"], list(target[0])],
        "masked": [*book["masked"], target[1]],
    }


def _same_target(state: Mapping[str, Any], i: int, target: tuple[list[int], int], *, ref: bool) -> bool:
    if not ref:
        return bool(state["labels"][i] == target[0])
    mirrored = len(state["labels"]) - 1 - i
    return _mean_label(state["labels"][mirrored], state["masked"][mirrored]) == _mean_label(*target)


def _mean_label(labels: Sequence[int], masked: int) -> float:
    return float(torch.tensor([-100] * masked + list(labels)).float().mean())
