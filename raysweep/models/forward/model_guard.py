"""Noticing cheaply that a model's modules have been hooked, replaced or set to be trained since they were last looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class ModelGuard:
    """Modules and parameters as they were. Whoever computes with the parameters alone asks it whether that is still allowed.

    Attributes:
        modules: all of them.
        children: (register of the owner, name, module) of what each holds; the register is the owner's ``_modules``.
        parameters: (register of the owner, name, parameter, address of its numbers); the register is ``_parameters``.
    """

    modules: tuple[nn.Module, ...]
    children: tuple[tuple[Mapping[str, nn.Module | None], str, nn.Module | None], ...]
    parameters: tuple[tuple[Mapping[str, nn.Parameter | None], str, Tensor, int], ...]

    @classmethod
    def record(cls, lm: LanguageModel, first: int, end: int | None = None) -> ModelGuard:
        """Record blocks *first* … *end* (exclusive); with None, to the last one, and the final norm."""
        owner, until = lm.part(lm.layout.blocks), lm.n_blocks if end is None else end
        blocks = [(owner._modules, str(i), owner._modules[str(i)]) for i in range(first, until)]
        # the final norm belongs to the run that reaches the end
        roots = [*(block for *_, block in blocks), *([lm.part(lm.layout.norm)] if end is None else [])]
        modules = tuple(m for root in roots for m in root.modules())  # type: ignore[union-attr]
        children = [(m._modules, name, child) for m in modules for name, child in m._modules.items()]
        parameters = [
            (m._parameters, n, p, p.data_ptr()) for m in modules for n, p in m._parameters.items() if p is not None
        ]
        return cls(modules, (*blocks, *children), tuple(parameters))

    def is_unchanged(self) -> bool:
        """Tell whether nothing has changed but numbers in place, and nothing is hooked, in training mode or trained."""
        if any(m._forward_hooks or m._forward_pre_hooks or m.training for m in self.modules):
            return False
        if any(register.get(name) is not child for register, name, child in self.children):
            return False
        # another address: the parameter's numbers were swapped, as ledger.substituted or .to() does
        parameters = ((register.get(name), p, address) for register, name, p, address in self.parameters)
        return all(now is p and not p.requires_grad and p.data_ptr() == at for now, p, at in parameters)
