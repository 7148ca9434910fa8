"""A change of weights as a PEFT adapter, where low-rank factors hold all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raysweep.errors import ModelError
from raysweep.models.ledger import to_logical_layout
from raysweep.models.lm import LanguageModel

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By the name of a linear map: ``up`` [d_out, r] and ``down`` [r, d_in], fp32; the change is their product."""


def factors(lm: LanguageModel, weights: Mapping[str, Tensor]) -> Factors:
    """Return the changes from the pristine *lm* to *weights* (as stored) as products of as small a rank as holds them.

    A product holds a change if the sum with the pristine weight is the edited one but for the last digit of its largest entry,
    which is what the edit itself was rounded to.

    Raises:
        ModelError: a change is no matrix of a linear map, or its rank is so large that an adapter is no smaller than the weight;
            every such weight is named.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    wrong: list[str] = []
    for name, stored in weights.items():
        owner, _, leaf = name.rpartition(".")
        # in fp64, as the difference of two near numbers keeps few digits
        pristine = lm.logical(name).double()
        edited = to_logical_layout(lm, name, stored.to(lm.device)).double()
        if torch.equal(pristine, edited):
            continue
        if leaf != "weight" or not (isinstance(lm.part(owner), nn.Linear) or lm.transposed(name)):
            wrong.append(f"'{name}' is no matrix of a linear map")
            continue
        bound = torch.finfo(lm.dtype).eps * float(edited.abs().max())
        # the largest r with r (d_out + d_in) < d_out · d_in
        largest = (edited.numel() - 1) // sum(edited.shape)
        pair = _product(edited - pristine, bound, largest)
        if pair is None:
            wrong.append(f"the change of '{name}' has a rank above {largest}, so its factors are no smaller than it")
        else:
            found[owner] = pair
    if wrong:
        raise ModelError(f"no exact adapter: {'; '.join(wrong)}", hint="--as tensors, or --as model")
    if not found:
        raise ModelError("no adapter: the edits changed no weight", hint="--as model")
    return found


def _product(change: Tensor, bound: float, largest: int) -> tuple[Tensor, Tensor] | None:
    """Return the factors of least rank, at most *largest*, whose product is *change* within *bound* at each entry."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    low, high = 1, min(largest, len(s))

    def pair(rank: int) -> tuple[Tensor, Tensor]:
        # √s to each side, so that the entries of both factors are of one size
        root = s[:rank].sqrt()
        return (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()

    def holds(rank: int) -> bool:
        # the factors as they will be stored: what fp32 rounds off of them counts too
        up, down = pair(rank)
        return float((up.double() @ down.double() - change).abs().max()) <= bound

    if high < 1 or not holds(high):
        return None
    # by halves: where a rank holds, a larger one is taken to hold as well
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return pair(high)


def write_adapter(lm: LanguageModel, found: Factors, base: str, folder: Path) -> int:
    """Write *found* into *folder* as PEFT reads it, for the model called *base*; return the rank."""
    from safetensors.torch import save_file

    # One rank for all, padded with zeros: every version of PEFT reads that.
    rank = max(down.shape[0] for _, down in found.values())
    tensors = {}
    for name, (up, down) in found.items():
        # lora_A is down [r, d_in] and grows by rows, lora_B is up [d_out, r] and grows by columns
        missing = rank - down.shape[0]
        tensors[f"base_model.model.{name}.lora_A.weight"] = nn.functional.pad(
            down.cpu(), (0, 0, 0, missing)
        ).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = nn.functional.pad(up.cpu(), (0, missing)).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        # PEFT multiplies by lora_alpha / r, which must be 1
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # GPT-2's Conv1D stores [d_in, d_out]
        "fan_in_fan_out": any(lm.transposed(f"{name}.weight") for name in found),
        "target_modules": list(found),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return rank
