"""Second moments of keys over every token of a text (ROME eq. 2, MEMIT eq. 15; docs/methods/rome.md), and their trace.

    C = (1/N) Σ k kᵀ  [d, d], uncentred            E‖k‖² = tr C

Computed on the pristine model before any edit (quirk Q11), accumulated in fp64 (quirk Q10), stored in fp32.

Shape legend: ``N`` tokens of the text (less those skipped), ``d`` width of a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest, Built
from raysweep.config.schema import TextSpec
from raysweep.editors.locate import foreign
from raysweep.editors.specs import MomentSpec
from raysweep.errors import ArtifactError
from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks
from raysweep.models.lm import LanguageModel
from raysweep.models.sizes import size_from_config


def request(lm: LanguageModel, module: str, layer: int, config: MomentSpec) -> ArtifactRequest:
    """Return the request for the second moments of what enters a module.

    Args:
        lm: the pristine model.
        module: dotted name with ``{}`` for the block's number.
        layer: the block.
        config: text, longest row in tokens, leading positions to skip.
    """
    if config.files:
        return foreign.moments_request(lm, module.format(layer), config.files)
    text = {"name": config.text.name, "digest": config.text.digest, "tokens": config.text.tokens}
    inputs = {
        "module": module.format(layer),
        "layer": layer,
        "text": text,
        "width": config.width,
        "skip": config.skip,
    }
    # Only where it differs from the default, so that artifacts made before the flag keep their name.
    if config.ref_fp32:
        inputs["ref_fp32"] = True
    return ArtifactRequest(
        "moments",
        inputs,
        "raysweep.editors.locate.second_moments:build",
        model=lm.identity,
        text=config.text,
        version=VERSIONS["moments"],
    )


def build(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Compute the moments of several layers in one reading of the text.

    All requests must agree on text, width and skip (they do: the caller groups them).
    """
    inputs = requests[0].inputs
    # All layers are captured in one pass, which ends at the highest of them.
    modules = [str(r.inputs["module"]) for r in requests]
    last = max(int(r.inputs["layer"]) for r in requests)
    budget, skip = int(inputs["text"]["tokens"]), int(inputs["skip"])
    dtype = torch.float32 if inputs.get("ref_fp32") else torch.float64
    sums: dict[str, Tensor] = {}
    count = 0
    for rows in _batches(lm, texts, width=int(inputs["width"]), budget=budget):
        ids, mask = tokens.pad(rows, lm.device)
        with torch.no_grad(), hooks.capture(lm, [(m, "input") for m in modules]) as seen:
            blocks.run(lm, ids=ids, mask=mask, last=last)
        # Row by row: leading positions are attention sinks in some models, whose keys are far longer.
        kept = _places(rows, skip=skip).to(lm.device)
        count += len(kept)
        for module in modules:
            keys = seen[module, "input"].flatten(0, 1)[kept].to(dtype)  # [tokens of the batch, d]
            # Σ k kᵀ over the batch is Kᵀ K of its keys as rows.
            sums[module] = sums.get(module, keys.new_zeros(keys.shape[1], keys.shape[1])).addmm_(keys.T, keys)
    return [({"moments": (sums[m] / count).float()}, {"tokens": count}) for m in modules]


def energy_request(lm: LanguageModel, module: str, text: TextSpec) -> ArtifactRequest:
    """Return the request for the mean energy ``E‖k‖²`` of what enters *module*, over every token of *text*.

    It is the trace of the second moments, without the ``d x d`` matrix.
    """
    inputs = {
        "module": module,
        "layer": next(int(part) for part in module.split(".") if part.isdigit()),
        "text": {"name": text.name, "digest": text.digest, "tokens": text.tokens},
        "width": MomentSpec().width,
    }
    return ArtifactRequest(
        "energy",
        inputs,
        "raysweep.editors.locate.second_moments:build_energy",
        model=lm.identity,
        text=text,
        version=VERSIONS["energy"],
    )


def build_energy(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Compute the mean energies (fp64) of several modules' inputs in one reading of the text.

    Raises:
        ArtifactError: the text holds no tokens, or a mean is not a positive finite number.
    """
    inputs = requests[0].inputs
    modules = [str(r.inputs["module"]) for r in requests]
    last = max(int(r.inputs["layer"]) for r in requests)
    sums = torch.zeros(len(modules), dtype=torch.float64, device=lm.device)
    count = 0
    for rows in _batches(lm, texts, width=int(inputs["width"]), budget=int(inputs["text"]["tokens"])):
        ids, mask = tokens.pad(rows, lm.device)
        with torch.no_grad(), hooks.capture(lm, [(m, "input") for m in modules]) as seen:
            blocks.run(lm, ids=ids, mask=mask, last=last)
        kept = _places(rows, skip=0).to(lm.device)
        count += len(kept)
        # Σ ‖k‖², the trace of Σ k kᵀ.
        sums += torch.stack([seen[m, "input"].flatten(0, 1)[kept].double().square().sum() for m in modules])
    energies = {m: total / max(count, 1) for m, total in zip(modules, sums.tolist(), strict=True)}
    for module, energy in energies.items():
        if not 0 < energy < float("inf"):
            hint = "take another text (text.name, text.tokens), or give λ in absolute units"
            raise ArtifactError(f"the mean energy of the keys of {module} is {energy:g} over {count} tokens", hint=hint)
    return [({}, {"energy": energies[m], "tokens": count}) for m in modules]


def _places(rows: Sequence[Sequence[int]], *, skip: int) -> Tensor:
    """Return where the tokens from position *skip* of each row on lie among the padded rows, ``[N]``, counted row by row."""
    # by the host, which knows the rows: to ask the mask would be to wait for a device
    width = max(len(row) for row in rows)
    return torch.cat(
        [torch.arange(i * width + min(skip, len(row)), i * width + len(row)) for i, row in enumerate(rows)]
    )


def _batches(lm: LanguageModel, texts: Iterator[str], *, width: int, budget: int) -> Iterator[list[list[int]]]:
    """Yield batches of rows of similar length, at most 4096 tokens each, until *budget* tokens (0 = all)."""
    shape = size_from_config(lm.module.config.to_dict())
    if shape is not None and shape.positions:  # learnt positions end: a longer row would be an error
        width = min(width, shape.positions)
    # Rows are pooled so that those of similar length share a batch: less padding, and no number depends on it but by
    # rounding.
    used, pool = 0, list[list[int]]()
    for text in texts:
        row = tokens.encode(lm, text)[:width]
        if len(row) < 2:
            continue
        pool.append(row)
        used += len(row)
        full = bool(budget) and used >= budget
        if len(pool) >= 256 or full:
            yield from _by_length(pool)
            pool = []
        if full:
            return
    yield from _by_length(pool)


def _by_length(pool: list[list[int]]) -> Iterator[list[list[int]]]:
    """Yield *pool*, longest rows first, in batches of at most 4096 tokens, padding counted."""
    batch: list[list[int]] = []
    for row in sorted(pool, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > 4096:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
