"""A layout for a family that has none yet: proposed from what a model's parts are called, how large they are, and what they do.

Nothing of the model but its ``config.json`` is needed. Names and sizes are those of a small random model of the same
configuration, and what no name tells is measured on it: by how much embeddings are multiplied, how far back a block looks, whether
an MLP's output is normed before it is added to the stream, whether rows that begin alike can be computed as one. Whatever was
guessed is told, and the layout contract (:mod:`raysweep.testing.layout_contract`) says whether the whole is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from raysweep.errors import ModelError
from raysweep.models import attention, hooks
from raysweep.models.forward import blocks, device_blocks, prefix_tree
from raysweep.models.layout import BlockForm, Layout, NormKind
from raysweep.models.layouts import gpt2, llama
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.folder import check_config_there, read_header, read_json
from raysweep.testing.layout_contract import check_layout_contract, tiny_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 4  # tokens, of the small model: shorter than the rows that are measured
ROW = 8
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_SIZES = (
    *("hidden_size", "n_embd", "intermediate_size", "ffn_hidden_size", "num_hidden_layers", "n_layer", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "vocab_size", "n_positions", "rotary_dim", *_EXPERTS),
    *(
        "max_position_embeddings",
        "original_max_position_embeddings",
        "sliding_window",
        "multi_query",
        "tie_word_embeddings",
    ),
)
# What blocks may compute, by the module that says so.
FORMS: Mapping[str, BlockForm] = {"llama": llama.FORM, "gpt2": gpt2.FORM}
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


def propose_for(folder: Path) -> Proposal:
    """Return a layout for the model in *folder*; names of its weights are compared with the layout's, if there are any.

    Raises:
        ModelError: there is no readable ``config.json``, it needs code of its own, or see :func:`propose`.
    """
    from transformers import AutoConfig

    check_config_there(folder)
    kind = read_json(folder / "config.json").get("model_type")
    try:
        whole = AutoConfig.from_pretrained(folder)
        proposal = propose(whole.get_text_config())
    except ValueError as error:  # transformers' own: a type that it does not know, code that nobody trusted
        raise ModelError(
            f"{folder / 'config.json'}: transformers makes no model of type '{kind}': {error}",
            hint="a newer transformers may know it; for code that comes with the weights write the layout by hand",
        ) from error
    if whole.get_text_config() is not whole:
        proposal.layout = replace(proposal.layout, part_of=str(whole.model_type))
        proposal.unsure.append(
            "part_of: loading the language model alone was not tried; renamed may have to say what weights are called"
        )
    names = {f".{name}" for file in sorted(folder.glob("*.safetensors")) for name in read_header(file)}
    layout = proposal.layout
    for module in (*layout.mlp_in, layout.mlp_out, layout.embed) if names else ():
        # checkpoints may leave the model's own prefix out
        wanted = module.format(0).partition(".")[2]
        if not any(f".{wanted}." in name for name in names):
            proposal.unsure.append(f"weights: the files have no tensor of '{module.format(0)}'")
    return proposal


def propose(config: PretrainedConfig) -> Proposal:
    """Return a layout for models of *config*.

    Raises:
        ModelError: transformers makes no language model of it, or it has no blocks with an MLP that can be told apart.
    """
    module = small(config)
    parts, unsure = _Parts.of(module), list[str]()
    layout = parts.layout(str(config.model_type), unsure)
    proposal = Proposal(replace(layout, defaults=_defaults(config)), unsure=unsure)
    lm = LanguageModel(module=module, tokenizer=cast("PreTrainedTokenizerBase", None), layout=proposal.layout)
    _measure(lm, parts, proposal)
    try:
        check_layout_contract(proposal.layout, module)
    except (AssertionError, ModelError) as error:
        proposal.broken = str(error)
        return proposal
    # In one form all blocks see equally far.
    proposal.layout = _form(small(config, windowed=False), proposal)
    return proposal


def small(config: PretrainedConfig, *, windowed: bool = True) -> PreTrainedModel:
    """Return a small random model of *config*: what is no size stays as it is there.

    Args:
        config: of a large one.
        windowed: switch windows on where the family knows of them, so that the rule for them can be told.

    Raises:
        ModelError: it cannot be made.
    """
    sizes = {"num_hidden_layers", "layer_types", "sliding_window", "rope_parameters", "max_window_layers", *_SIZES}
    tree = config.to_diff_dict()
    drop = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype")
    # A number may be a size by another name, a list one entry for each block: the small model has its own.
    kept: dict[str, Any] = {
        k: v
        for k, v in tree.items()
        if k not in sizes and k not in drop and (v is None or isinstance(v, bool | str | float))
    }
    changes: dict[str, Any] = {"max_position_embeddings": 32}
    types = getattr(config, "layer_types", None)
    if not windowed:
        changes["sliding_window"] = None
        changes |= {} if types is None else {"layer_types": [attention.FULL] * 3}
    elif hasattr(config, "use_sliding_window"):
        # One block without a window, two with one.
        changes |= {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}
    elif hasattr(config, "sliding_window"):
        changes["sliding_window"] = WINDOW
    if windowed and types and "use_sliding_window" not in changes:
        changes["layer_types"] = _three_of(types)
    try:
        return tiny_model(str(config.model_type), **(kept | changes))
    except Exception as error:  # transformers' own, of any kind
        raise ModelError(
            f"no small model of type '{config.model_type}' could be made: {error}",
            hint="give the names of its sizes in _SMALL of raysweep/testing/layout_contract.py",
        ) from error


def _three_of(kinds: list[str]) -> list[str]:
    """Return a kind for each of three blocks, so that each that there is comes up."""
    distinct = list(dict.fromkeys(kinds))
    return [*distinct, *distinct, *distinct][:3]


def _defaults(config: PretrainedConfig) -> dict[str, object]:
    """Return what transformers takes where a file of this family is silent, of sizes and windows."""
    # The class knows what an instance may have dropped (a window that is switched off).
    silent, kind = type(config)(), type(config)
    said = {key: getattr(kind, key, None) for key in _SIZES} | {
        key: getattr(silent, key, None) for key in silent.to_dict() if key in _SIZES
    }
    found = {key: value if value is not None else getattr(kind, key, None) for key, value in said.items()}
    kinds = list(getattr(silent, "layer_types", None) or ())
    if attention.SLIDING in kinds and attention.FULL in kinds:
        found["sliding_window_pattern"] = kinds.index(attention.FULL) + 1
    return {key: value for key, value in found.items() if isinstance(value, int | float | bool)}


@dataclass(frozen=True, slots=True)
class _Parts:
    """A small model, and names in it; those of a block are without its own."""

    module: PreTrainedModel
    blocks: str
    width: int

    @classmethod
    def of(cls, module: PreTrainedModel) -> _Parts:
        """Find the list of blocks: the longest one, of the modules that hold most."""
        lists = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)]
        lists = [(n, m) for n, m in lists if len(m) == 3]
        if not lists:
            raise ModelError(f"{type(module).__name__} has no list of blocks")
        held = lambda entry: sum(p.numel() for p in entry[1].parameters())  # noqa: E731
        name, _ = max(lists, key=held)
        return cls(module, name, int(module.get_input_embeddings().weight.shape[1]))

    def block(self, number: int) -> nn.Module:
        block: nn.Module = self.module.get_submodule(f"{self.blocks}.{number}")
        return block

    def maps(self, number: int, inside: str) -> dict[str, tuple[int, int]]:
        """Return (d_in, d_out) of every linear map in a part of a block, in the order in which the model has them."""
        found = {}
        for name, module in self.block(number).get_submodule(inside).named_modules():
            kind = type(module).__name__
            if isinstance(module, nn.Linear) or kind == "Conv1D":
                first, second = cast("Tensor", module.weight).shape
                found[name] = (int(first), int(second)) if kind == "Conv1D" else (int(second), int(first))
        return found

    def children(self, number: int, *words: str) -> list[str]:
        """Return the parts of a block whose name or class contains one of *words*."""
        named = ((n, m) for n, m in self.block(number).named_children() if next(m.parameters(), None) is not None)
        return [n for n, m in named if any(w in n.lower() or w in type(m).__name__.lower() for w in words)]

    def name_of(self, wanted: nn.Module | None, what: str) -> str:
        name: str | None = next((n for n, m in self.module.named_modules() if m is wanted), None)
        if name is None:
            raise ModelError(f"{type(self.module).__name__} does not say what its {what} is")
        return name

    def layout(self, model_type: str, unsure: list[str]) -> Layout:
        """Return what names and sizes tell."""
        mlps = [n for n in self.children(0, "mlp", "feed_forward", "ffn", "moe") if "norm" not in n.lower()]
        heads = [n for n in self.children(0, "attn", "attention") if "norm" not in n.lower()]
        if not mlps or not heads:
            raise ModelError(
                f"{type(self.block(0)).__name__} has no part that is called an MLP, or none that is called attention",
                hint=f"its parts: {', '.join(n for n, _ in self.block(0).named_children())}",
            )
        mlp, prefix = mlps[0], f"{self.blocks}.{{}}"
        if len(mlps) > 1:
            unsure.append(f"mlp: '{mlp}' was taken, of {', '.join(mlps)}")
        into, out, experts = self._mlp(mlp, unsure)
        body = self.name_of(self.module.base_model, "body")
        layout = Layout(
            model_type=model_type,
            body=body,
            blocks=self.blocks,
            block=prefix,
            mlp=f"{prefix}.{mlp}",
            mlp_in=tuple(f"{prefix}.{mlp}.{n}" for n in into),
            mlp_out=f"{prefix}.{mlp}.{out}",
            experts=experts,
            attn_out=f"{prefix}.{heads[0]}.{self._last_map(0, heads[0])}",
            norm=self._final_norm(body, unsure),
            head=self.name_of(self.module.get_output_embeddings(), "head"),
            embed=self.name_of(self.module.get_input_embeddings(), "embedding"),
        )
        return replace(self._attention(layout, unsure), fused_gate=self._is_fused(mlp, into, out))

    def _mlp(self, mlp: str, unsure: list[str]) -> tuple[list[str], str, str | None]:
        """Return the first maps of the MLP, its last one, and the key that counts experts."""
        maps = self.maps(0, mlp)
        out = [n for n, (d_in, d_out) in maps.items() if d_out == self.width != d_in]
        into = [n for n, (d_in, d_out) in maps.items() if d_in == self.width and d_out != self.width]
        if len(out) == 1 and 1 <= len(into) <= 2:
            return into, out[0], None
        key = next((k for k in _EXPERTS if getattr(self.module.config, k, None)), None)
        inside = [n for n, m in self.block(0).get_submodule(mlp).named_children() if "expert" in n.lower()]
        if key is None or not inside:
            raise ModelError(f"'{mlp}' has no last linear map that can be told from the others: {maps}")
        unsure.append(f"experts: '{key}' of the configuration was taken for the number of experts of a block")
        return [], inside[0], key

    def _is_fused(self, mlp: str, into: list[str], out: str) -> bool:
        maps = self.maps(0, mlp)
        if not into:  # of experts, whose matrices lie in one tensor
            return any("gate_up" in name for name, _ in self.block(0).get_submodule(f"{mlp}.{out}").named_parameters())
        return len(into) == 1 and maps[into[0]][1] == 2 * maps[out][0]

    def _last_map(self, number: int, inside: str) -> str:
        """Return the last linear map of a part of a block that puts out the width of the stream."""
        ends = [n for n, (_, d_out) in self.maps(number, inside).items() if d_out == self.width]
        # names that are usual come first, since modules need not be listed in the order of their use
        usual = [n for n in ends if n.rpartition(".")[2] in ("o_proj", "out_proj", "dense", "c_proj", "wo")]
        if not ends:
            raise ModelError(f"'{inside}' has no linear map that puts out {self.width} numbers")
        return (usual or ends)[-1]

    def _attention(self, layout: Layout, unsure: list[str]) -> Layout:
        """Add the last map of other kinds of attention, where blocks differ."""
        names = set()
        for number in range(3):
            heads = [n for n in self.children(number, "attn", "attention") if "norm" not in n.lower()]
            names.add(f"{layout.block}.{heads[0]}.{self._last_map(number, heads[0])}")
        linear = sorted(n for n in names if "linear" in n)
        usual = sorted(names - set(linear))
        if len(names) == 1:
            return layout
        if len(names) > 2 or not linear:
            unsure.append(f"attn_out: blocks differ: {', '.join(sorted(names))}")
            return layout
        return replace(layout, attn_out=usual[0], linear_attn_out=linear[0])

    def _final_norm(self, body: str, unsure: list[str]) -> str:
        """Return the norm of the body itself; the last, if there are several."""
        named = self.module.get_submodule(body).named_children()
        norms = [n for n, m in named if "norm" in n.lower() or "norm" in type(m).__name__.lower() or n == "ln_f"]
        if not norms:
            raise ModelError(f"'{body}' has no norm behind its blocks")
        if len(norms) > 1:
            unsure.append(f"norm: '{norms[-1]}' was taken, of {', '.join(norms)}")
        return f"{body}.{norms[-1]}"


def _measure(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> None:
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


def _embedding(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
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


def _positions(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Tell whether positions end, by a row that is longer than the small model was made for."""
    ids = torch.full((1, int(lm.positions) + 1), 2)
    try:
        with torch.no_grad():
            lm.module(ids)
    except (IndexError, RuntimeError):
        return replace(lm.layout, positions_end=True)
    return lm.layout


def _activation(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Find the key of the configuration that names the activation."""
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


def _norm_of_output(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Find the norm between the MLP's output and the stream, if there is one."""
    last = lm.n_blocks - 1
    shift = torch.linspace(-1.0, 1.0, parts.width)
    shifted, plain, output = _shifted(lm, lm.layout.mlp.format(last), shift)
    if torch.allclose(shifted - plain, shift.expand_as(plain), atol=1e-4):
        return lm.layout
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


def _overwrites(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Tell whether the block adds to the MLP's output in place."""
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
    changed = ((seen[block, "output"] - plain).abs().amax(-1)[0] > 0).tolist()
    return None if changed[-1] else changed.index(False) if False in changed else None


def _windows(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Choose the rule that tells from the configuration what was measured."""
    config, found = lm.module.config, tuple(_reach(lm, i) for i in range(lm.n_blocks))
    if getattr(config, "alibi", None) is False:
        return replace(lm.layout, windows=attention.rotary_only)
    for rule in _fitting(config):
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


def _sharing(lm: LanguageModel, parts: _Parts, proposal: Proposal) -> Layout:
    """Compute rows that begin alike as one, and each alone."""
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


def _form(module: PreTrainedModel, proposal: Proposal) -> Layout:
    """Look for a known form whose parts the blocks of *module* have, with the kind of norm that makes the model's logits."""
    layout = proposal.layout
    if layout.experts is not None or layout.mlp_out_norm is not None or layout.linear_attn_out is not None:
        return layout
    block = module.get_submodule(layout.block.format(0))
    inside = {name for name, _ in block.named_modules()}
    normed = tuple(f"{layout.block}.{n}" for n in ("self_attn.q_norm", "self_attn.k_norm") if n in inside)
    for known, norm in product(FORMS.values(), get_args(NormKind)):
        form = replace(known, block_class=device_blocks.class_of(block), norm=norm, head_norms=normed)
        lm = LanguageModel(module, cast("PreTrainedTokenizerBase", None), replace(layout, form=form))
        try:
            if device_blocks.supports(lm, 0):
                check_layout_contract(lm.layout, module)
                proposal.unsure.append(
                    "form: it was compared with the blocks of this configuration only; another may scale what these do not"
                )
                return lm.layout
        # a name of the known form is not there, or the contract says that it is another one
        except (AttributeError, AssertionError, ModelError):
            continue
    return layout
