"""What the parts of a small model are called, as far as names and sizes tell: the beginning of a proposed layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from raysweep.errors import ModelError
from raysweep.models.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class Parts:
    """A small model, and names in it; those of a block are without its own."""

    module: PreTrainedModel
    blocks: str
    width: int

    @classmethod
    def of(cls, module: PreTrainedModel) -> Parts:
        """Find the list of blocks: the longest one, of the modules that hold most."""
        lists = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)]
        # a list within a block (of experts, say) may be as long, but holds less
        lists = [(n, m) for n, m in lists if len(m) == 3]
        if not lists:
            raise ModelError(f"{type(module).__name__} has no list of blocks")
        held = lambda entry: sum(p.numel() for p in entry[1].parameters())  # noqa: E731
        name, _ = max(lists, key=held)
        return cls(module, name, int(module.get_input_embeddings().weight.shape[1]))

    def block(self, number: int) -> nn.Module:
        """Return a block."""
        block: nn.Module = self.module.get_submodule(f"{self.blocks}.{number}")
        return block

    def maps(self, number: int, inside: str) -> dict[str, tuple[int, int]]:
        """Return (d_in, d_out) of every linear map in a part of a block, in the order in which the model has them."""
        found = {}
        for name, module in self.block(number).get_submodule(inside).named_modules():
            kind = type(module).__name__
            if isinstance(module, nn.Linear) or kind == "Conv1D":
                # GPT-2's Conv1D stores the transpose
                first, second = cast("Tensor", module.weight).shape
                found[name] = (int(first), int(second)) if kind == "Conv1D" else (int(second), int(first))
        return found

    def children(self, number: int, *words: str) -> list[str]:
        """Return the parts of a block whose name or class contains one of *words*."""
        # what holds nothing (dropout) may be called after what it stands behind
        named = ((n, m) for n, m in self.block(number).named_children() if next(m.parameters(), None) is not None)
        return [n for n, m in named if any(w in n.lower() or w in type(m).__name__.lower() for w in words)]

    def name_of(self, wanted: nn.Module | None, what: str) -> str:
        """Return the dotted name of a module of the model; *what* it is, for the message if it is none."""
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
        # by width: the small model's MLP is wider than its stream, so that no map is both
        maps = self.maps(0, mlp)
        out = [n for n, (d_in, d_out) in maps.items() if d_out == self.width != d_in]
        into = [n for n, (d_in, d_out) in maps.items() if d_in == self.width and d_out != self.width]
        if len(out) == 1 and 1 <= len(into) <= 2:
            return into, out[0], None
        key = next((k for k in EXPERTS if getattr(self.module.config, k, None)), None)
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
