"""What no name tells of a family, measured on a small model: the rest of a proposed layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isclose
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from raysweep.errors import ModelError
from raysweep.models import attention, hooks
from raysweep.models.forward import blocks, prefix_tree
from raysweep.models.layout import Layout
from raysweep.models.lm import LanguageModel
from raysweep.testing.layout_parts import Parts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROW = 8
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
# From the plainest to what says most; the first that tells what was measured is proposed.
_RULES = (
    attention.no_windows,
    attention.equal_windows,
    attention.switched_windows,
    attention.full_or_linear,
    attention.patterned_windows,
    attention.typed_windows,
)


@dataclass(slots=True)
class Proposal:
    """What was found.

    Attributes:
        layout: to be saved and looked through.
        scale: how ``embed_scale`` follows from the configuration, as an expression in ``config``; empty: it is not needed.
        unsure: what was guessed or could not be found, a sentence each.
        broken: what the layout contract says is wrong; empty: the layout keeps all promises.
    """

    layout: Layout
    scale: str = ""
    unsure: list[str] = field(default_factory=list)
    broken: str = ""


def measure(lm: LanguageModel, parts: Parts, proposal: Proposal) -> None:
    """Complete the layout by what a small model does; *lm* has the layout so far."""
    for step in (_embedding, _positions, _activation, _norm_of_output, _overwrites, _windows, _sharing):
        proposal.layout = step(replace(lm, layout=proposal.layout), parts, proposal)


def _ids() -> Tensor:
    return torch.arange(2, 2 + ROW)[None]


def _entering(lm: LanguageModel, ids: Tensor) -> Tensor:
    name = lm.layout.block.format(0)
    with hooks.capture(lm, [(name, "input")]) as seen, torch.no_grad():
        lm.module(ids)
    return seen[name, "input"]


def _embedding(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Measure by how much embeddings are multiplied, and find the table of learnt positions."""
    layout, ids, config = lm.layout, _ids(), lm.module.config
    matrix = lm.weight(f"{layout.embed}.weight").detach()
    others = ids.flip(1)
    # learnt positions cancel in the difference of two texts
    moved, rows = _entering(lm, ids) - _entering(lm, others), matrix[ids] - matrix[others]
    scale = float((moved * rows).sum() / (rows * rows).sum())
    tables = [
        n for n, m in parts.module.named_modules() if isinstance(m, nn.Embedding) and n != layout.embed and "." in n
    ]
    if len(tables) == 1:
        layout = replace(layout, position_embed=tables[0])
    elif tables:
        proposal.unsure.append(f"position_embed: left out, since there are {', '.join(tables)}")
    # what the small model multiplies by may follow from its width, or stand in the configuration
    if isclose(scale, 1.0, rel_tol=1e-4):
        return layout
    root = float(config.hidden_size) ** 0.5
    keys = [k for k, v in config.to_dict().items() if isinstance(v, float) and isclose(v, scale, rel_tol=1e-4)]
    if isclose(scale, root, rel_tol=1e-4):
        proposal.scale = "sqrt(config.hidden_size)"
    elif keys:
        proposal.scale = f"float(config.{keys[0]})"
    else:
        proposal.unsure.append(
            f"embed_scale: embeddings are multiplied by {scale:.6g} here; how that follows is not known"
        )
    return replace(layout, embed_scale=lambda _: scale)


def _positions(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Tell whether positions end, by a row that is longer than the small model was made for."""
    ids = torch.full((1, int(lm.positions) + 1), 2)
    try:
        with torch.no_grad():
            lm.module(ids)
    except (IndexError, RuntimeError):
        return replace(lm.layout, positions_end=True)
    return lm.layout


def _activation(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Find the key of the configuration that names the activation."""
    # the key must hold a name that transformers knows: others hold an activation of another part
    keys = [k for k in _ACTIVATIONS if getattr(lm.module.config, k, None) in ACT2FN]
    if not keys:
        proposal.unsure.append("activation: no key of the configuration names it; WISE needs it")
        return lm.layout
    return replace(lm.layout, activation=keys[0])


def _shifted(lm: LanguageModel, name: str, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a block puts out with and without a *shift* of what its MLP does, and what the MLP puts out."""
    block = lm.layout.block.format(lm.n_blocks - 1)

    def leaving() -> tuple[Tensor, Tensor]:
        with hooks.capture(lm, [(block, "output"), (name, "output")]) as seen, torch.no_grad():
            lm.module(_ids())
        return seen[block, "output"], seen[name, "output"]

    plain, output = leaving()

    def add(_: nn.Module, __: object, found: Any) -> Any:
        return (found[0] + shift, *found[1:]) if isinstance(found, tuple) else found + shift

    handle = lm.part(name).register_forward_hook(add)
    try:
        return leaving()[0], plain, output
    finally:
        handle.remove()


def _norm_of_output(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Find the norm between the MLP's output and the stream, if there is one."""
    last = lm.n_blocks - 1
    shift = torch.linspace(-1.0, 1.0, parts.width)
    shifted, plain, output = _shifted(lm, lm.layout.mlp.format(last), shift)
    if torch.allclose(shifted - plain, shift.expand_as(plain), atol=1e-4):
        return lm.layout
    # which of the block's norms it is, names do not tell: they differ from family to family
    for name in parts.children(last, "norm"):
        candidate = f"{lm.layout.block}.{name}"
        norm = lm.part(candidate.format(last))
        with torch.no_grad():
            through = norm(output + shift) - norm(output)
        if torch.allclose(shifted - plain, through, atol=1e-4):
            return replace(lm.layout, mlp_out_norm=candidate)
    proposal.unsure.append(
        "mlp_out: what the MLP puts out is neither added to the stream as it is nor normed by a part of the block"
    )
    return lm.layout


def _overwrites(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Tell whether the block adds to the MLP's output in place."""
    # the tensor itself, and what was in it when the map was done
    kept: list[tuple[Tensor, Tensor]] = []
    part = lm.part(lm.layout.mlp_out.format(0))
    handle = part.register_forward_hook(
        lambda _, __, output: kept.append((hooks.first(output), hooks.first(output).clone()))
    )
    try:
        with torch.no_grad():
            lm.module(_ids())
    finally:
        handle.remove()
    return replace(lm.layout, overwrites_mlp_output=not torch.equal(*kept[0]))


def _reach(lm: LanguageModel, number: int) -> int | None:
    """Return how many tokens a token of a block sees, itself included; None: all before it."""
    block = lm.layout.block.format(number)
    with hooks.capture(lm, [(block, "input"), (block, "output")]) as seen, torch.no_grad():
        lm.module(_ids())
    before, plain = seen[block, "input"], seen[block, "output"]
    moved = before.clone()
    # no constant, which a norm would take away
    moved[0, 0] += torch.linspace(-10.0, 10.0, moved.shape[-1])
    with hooks.feed(lm.part(block), moved), hooks.capture(lm, [(block, "output")]) as seen, torch.no_grad():
        lm.module(_ids())
    # the first token that does not notice lies just outside of the window
    changed = ((seen[block, "output"] - plain).abs().amax(-1)[0] > 0).tolist()
    return None if changed[-1] else changed.index(False) if False in changed else None


def _windows(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Choose the rule that tells from the configuration what was measured."""
    config, found = lm.module.config, tuple(_reach(lm, i) for i in range(lm.n_blocks))
    # another configuration of such a family is refused, which only this rule does
    if getattr(config, "alibi", None) is False:
        return replace(lm.layout, windows=attention.rotary_only)
    for rule in _fitting(config):
        # a rule may refuse what it was not made for
        try:
            if rule(config) == found:
                return replace(lm.layout, windows=rule)
        except ModelError:
            continue
    proposal.unsure.append(
        f"windows: blocks of the small model see {found} tokens, which no rule of models/attention.py says"
    )
    return lm.layout


def _fitting(config: PretrainedConfig) -> Iterator[Any]:
    """Yield the rules that may be meant, by what a configuration of the family says where its file is silent."""
    silent = type(config)()
    switched = hasattr(silent, "use_sliding_window")
    patterned = (
        bool(getattr(silent, "layer_types", None)) and bool(getattr(silent, "sliding_window", None)) and not switched
    )
    for rule in _RULES:
        if (rule is attention.switched_windows and not switched) or (
            rule is attention.patterned_windows and not patterned
        ):
            continue
        if rule is attention.equal_windows and getattr(silent, "layer_types", None):
            continue
        if rule is attention.full_or_linear and attention.LINEAR not in (getattr(config, "layer_types", None) or ()):
            continue
        # A family that knows of windows has a rule for them, though this file has none.
        linear = attention.LINEAR in (getattr(config, "layer_types", None) or ())
        if rule is attention.no_windows and (
            switched or patterned or linear or getattr(config, "sliding_window", None)
        ):
            continue
        yield rule


def _sharing(lm: LanguageModel, parts: Parts, proposal: Proposal) -> Layout:
    """Compute rows that begin alike as one, and each alone."""
    # the layout so far says that they share, so they become one pack
    rows = ([2, 3, 4, 5, 6], [2, 3, 4, 7, 8, 9])
    with torch.no_grad():
        alone = [
            blocks.run(lm, ids=torch.tensor([row]), mask=torch.ones(1, len(row), dtype=torch.int64)) for row in rows
        ]
        try:
            packs = prefix_tree.pack_rows(lm, rows)
            found = packs.to_rows(blocks.run_packs(lm, packs))
        except Exception as error:  # of a family's own code
            proposal.unsure.append(f"shares_prefixes: {type(error).__name__} where rows were computed as one: {error}")
            return replace(lm.layout, shares_prefixes=False)
    alike = all(torch.allclose(found[i, : len(row)], alone[i][0], atol=1e-4) for i, row in enumerate(rows))
    return replace(lm.layout, shares_prefixes=alike)
