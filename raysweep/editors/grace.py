"""GRACE: a codebook of keys, values and radii around one linear map (Hartvigsen et al. 2023; docs/methods/grace.md).

The map's output at the query's token (the prompt's last one) is replaced by the value of the nearest key, if it is near enough::

    h(x) = ν_i   if ‖x − κ_i‖₂ ≤ ε_i, i = argmin_j ‖x − κ_j‖₂,      else W x + b

An edit with query ``x`` makes an entry ``(x, ν, ε_init)``, or uses the nearest one, or splits the space between two
(:func:`place`); then ``ν`` alone is trained by Adam on the mean cross-entropy of the target. The weights never change.

Shape legend: ``n`` entries; ``κ [n, d_in]``, ``ν [n, d_out]``, ``ε [n]``; ``T`` tokens of the one pack, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, Unpack

from raysweep.config.schema import Block, Count, Positive
from raysweep.editors.base import KEYS_PER_EDIT, BaseEditor, EditInputs, EditorConfig, EditStep
from raysweep.lazy import lazy
from raysweep.models import activations
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
    from raysweep.models.sizes import ModelSize
else:
    torch = lazy("torch")
    hooks, tokens = lazy("raysweep.models.hooks"), lazy("raysweep.models.tokens")
    head, resume = lazy("raysweep.models.forward.head"), lazy("raysweep.models.forward.resume")
    prefix_tree = lazy("raysweep.models.forward.prefix_tree")
    codebook, replacement = lazy("raysweep.models.modules.codebook"), lazy("raysweep.models.modules.replacement")

# the older of two neighbours gives way by this much more than half their distance
_SHRINK = 1e-5
# relative distance below which two queries are the same key but for rounding
_SAME_KEY = 1e-4
# relative to a query and its distance: by how much another batch may round the same query otherwise
_ROUNDING = 1e-5


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


class GraceState(TypedDict):
    """The codebook.

    Attributes:
        keys: ``κ [n, d_in]``, fp32.
        values: ``ν [n, d_out]``, fp32.
        radii: ``ε [n]``, fp32.
        labels: per entry the target's ids.
        masked: per entry the number of prompt tokens before them.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: list[list[int]]
    masked: list[int]


class Grace(BaseEditor[GraceConfig, GraceState]):
    """Writes each record into a codebook; the model's weights stay as they are."""

    name = "grace"
    version = 2
    config_type = GraceConfig
    patch_kind = "modules"
    paper = "Hartvigsen et al. 2023, arXiv 2211.11031"

    @classmethod
    def state_bytes(
        cls, config: GraceConfig, matrices: Sequence[tuple[int, int]], columns: int
    ) -> Mapping[str, int] | None:
        """Return the bytes of a codebook with an entry for each edit, which is the most it has: key, value and radius in fp32."""
        entries = columns // KEYS_PER_EDIT
        return {"codebook": 4 * entries * sum(d_out + d_in + 1 for d_out, d_in in matrices)}

    @classmethod
    def working_bytes(cls, config: GraceConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what the training of one value keeps of the blocks above."""
        blocks = max(shape.layers - 1 - config.layer, 0)
        kept = activations.kept_for_gradients(shape, size, blocks=blocks, packs=1, tokens=activations.ROW)
        return {"activations": kept + activations.of_the_head(shape, size, predictions=activations.TARGET)}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> GraceState:
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
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: GraceState, **given: Unpack[EditInputs]
    ) -> EditStep[GraceState]:
        """Write the records one after the other (the method knows no batches)."""
        stats: dict[str, float] = {}
        for record in batch:
            state, stats = self._write(lm, record, state, given["rng"])
        return EditStep(self.module_patch(lm, state), state, stats)

    def module_patch(self, lm: LanguageModel, state: GraceState) -> ModulePatch:
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
        self, lm: LanguageModel, record: EditRecord, state: GraceState, rng: torch.Generator
    ) -> tuple[GraceState, dict[str, float]]:
        """Return the codebook with *record* in it, and what to log."""
        name, config = self._name(lm), self.config
        scored = tokens.labelled_ids(lm, record.prompt, tokens.join(record.prompt, record.target))
        last, n = scored.start - 1, len(scored.ids) - 1  # nothing is predicted after the last token
        packs = prefix_tree.pack_rows(lm, [scored.ids[:n]])
        bare, above = replacement.unwrap(lm.part(name)), config.matrix == "out"
        # what the replacement changes, and so what has to be computed again in each step: [1, T]
        change = torch.arange(packs.ids.shape[1], device=lm.device)[None] >= (last if config.replace == "last" else 0)
        sides: list[tuple[str, hooks.Side]] = [(name, "input"), (name, "output")]
        # The query is read with the bare map in place: what earlier entries answer must not move it.
        with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}), hooks.capture(lm, sides) as seen:
            rest = resume.remainder_after(lm, packs, change, first=config.layer + 1)
        # A value of the first map runs through its own block, so that block is computed again too.
        if not above:
            with torch.no_grad(), replacement.modules_replaced(lm, {name: bare}):
                rest = resume.remainder_after(lm, packs, change, first=config.layer)
        # the map's input and output at the prompt's last token: [d_in], [d_out]
        query, output = (seen[name, side][0, last].float() for _, side in sides)
        value = output if config.start == "warm" else self.start_value(len(output), rng).to(lm.device)
        new, entry, event = place(state, query, value, (list(scored.labels), scored.start), config)
        # The chosen entry's value is the only leaf; other entries and all weights stay.
        leaf = new["values"][entry].clone().requires_grad_(True)
        adam = torch.optim.Adam([leaf], lr=config.lr, fused=True)
        # A codebook of this one entry: during training the query hits it by construction.
        module = self._module(lm, new["keys"][entry, None], leaf[None], new["radii"][entry, None])
        here, labels = int(rest.column_of[0, last]), torch.tensor(scored.labels, device=lm.device)
        where = {"last": rest.token_of == last, "prompt": rest.token_of < last, "all": rest.token_of >= 0}[
            config.replace
        ]
        replaced = where[..., None]
        # with the value matrix, the block's output is the map's output plus the stream beside it, which stays
        beside = rest.states - rest.select(seen[name, "output"]) if above else rest.states
        # The tokens from the prompt's last one on predict the m target tokens.
        ends = rest.column_of[0, last:n]
        spots = rest.upper.read_at(torch.zeros_like(ends), ends)
        losses: list[float] = []
        with (
            replacement.modules_replaced(lm, {} if above else {name: module}),
            # Tell the codebook where the prompt ends in what remains.
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
        new["values"][entry] = leaf.detach()
        stats = {"loss": losses[-1], "first_loss": losses[0], "entries": float(len(new["keys"]))}
        return new, stats | {name: float(name == event) for name in EVENTS}


EVENTS = ("added", "split", "expanded", "reused", "taken_over")


def place(
    state: GraceState, query: Tensor, value: Tensor, target: tuple[list[int], int], config: GraceConfig
) -> tuple[GraceState, int, str]:
    """Find or make the entry that *query* is written to (Hartvigsen et al. 2023, the upkeep of the codebook).

    With the nearest key at distance ``d`` and ``ε`` its radius: beyond ``ε_init + ε`` a new entry; else with the same target ``ε``
    grows to ``d``; else both get half the distance.

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
    new: GraceState = {
        "keys": state["keys"].clone(),
        "values": state["values"].clone(),
        "radii": state["radii"].clone(),
        "labels": [*state["labels"]],
        "masked": [*state["masked"]],
    }
    radii = new["radii"]
    if not len(radii):
        return _append(new, query, value, target, config.radius), 0, "added"
    nearest_distance, nearest = (t[0] for t in codebook.distances(query[None], new["keys"]).min(1))
    i, distance = int(nearest), float(nearest_distance)
    # Two queries of one prompt differ by rounding only; they must not split the space between them.
    known = not config.ref and distance <= _SAME_KEY * float(query.norm())
    # Balls of the nearest entry and of a new one would not touch: no conflict.
    if distance > config.radius + float(radii[i]) and not known:
        return _append(new, query, value, target, config.radius), len(radii), "added"
    if _same_target(state, i, target, ref=config.ref):
        if distance > radii[i]:
            radii[i] = distance
            # Half-way, as published; the radius is not measured from the moved key.
            if config.expand == "moving_average":
                new["keys"][i] = (new["keys"][i] + query) / 2
            return new, i, "expanded"
        return new, i, "reused"
    # An edit of the same prompt with another target: the newer one wins.
    if known:
        new["values"][i] = value
        new["labels"][i], new["masked"][i] = list(labels), masked
        radii[i] = max(float(radii[i]), distance)
        return new, i, "taken_over"
    # never below 0
    radii[i] = distance / 2 - (_SHRINK if config.ref else min(_SHRINK, distance / 4))
    return _append(new, query, value, target, distance / 2), len(radii), "split"


def _append(book: GraceState, query: Tensor, value: Tensor, target: tuple[list[int], int], radius: float) -> GraceState:
    """Return *book* with one more entry."""
    return {
        "keys": torch.cat([book["keys"], query[None]]),
        "values": torch.cat([book["values"], value[None]]),
        "radii": torch.cat([book["radii"], book["radii"].new_tensor([radius])]),
        "labels": [*book["labels"], list(target[0])],
        "masked": [*book["masked"], target[1]],
    }


def _same_target(state: GraceState, i: int, target: tuple[list[int], int], *, ref: bool) -> bool:
    """Return whether entry *i* has *target*; with *ref* by the published rule, which compares means (quirk Q18)."""
    if not ref:
        return state["labels"][i] == target[0]
    # The published code prepends labels and appends keys, so it compares with another entry's target.
    mirrored = len(state["labels"]) - 1 - i
    return _mean_label(state["labels"][mirrored], state["masked"][mirrored]) == _mean_label(*target)


def _mean_label(labels: Sequence[int], masked: int) -> float:
    # −100 marks prompt positions in the published label tensor; they count in its mean.
    return float(torch.tensor([-100] * masked + list(labels)).float().mean())
