"""Null-space projectors of second moments, for AlphaEdit (Fang et al. 2025, eq. 8 and 9; docs/methods/alphaedit.md).

With the eigendecomposition ``C = U diag(s) Uᵀ`` of the keys' second moments and ``U₀ [d, r]`` the eigenvectors whose eigenvalue is
below the threshold::

    P = U₀ U₀ᵀ [d, d]        so that (W + Δ P) k ≈ W k for every key k that the text is full of

``P`` is computed from the pristine model's moments, once; the moments are an artifact of their own, shared with other editors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import Artifact, ArtifactRequest, Built
from raysweep.editors.locate import foreign
from raysweep.editors.locate import second_moments as moments
from raysweep.editors.specs import FileSpec, MomentSpec
from raysweep.errors import ArtifactError
from raysweep.models.lm import LanguageModel

Method = Literal["eigh64", "ref_fp32_svd"]


def request(
    lm: LanguageModel, module: str, layer: int, config: MomentSpec, *, threshold: float, method: Method
) -> ArtifactRequest:
    """Return the request for the null-space projector of what enters a module.

    Args:
        lm: the pristine model.
        module: dotted name with ``{}`` for the block's number.
        layer: the block.
        config: how the second moments are estimated that it is made of.
        threshold: eigenvalues below it span the null space.
        method: of decomposition.
    """
    # The projector is made of an artifact, not of the text: one reading serves every threshold.
    source = moments.request(lm, module, layer, config)
    return ArtifactRequest(
        "projector",
        {"threshold": threshold, "method": method},
        "raysweep.editors.locate.null_space:build",
        model=lm.identity,
        sources={"moments": source},
        version=VERSIONS["projector"],
    )


def build(
    lm: LanguageModel, requests: Sequence[ArtifactRequest], sources: Sequence[Mapping[str, Artifact]]
) -> list[Built]:
    """Compute the projector of each request from its moments, on the model's device."""
    made: list[Built] = []
    for one, artifacts in zip(requests, sources, strict=True):
        matrix = artifacts["moments"].tensors["moments"].to(lm.device)
        threshold = float(one.inputs["threshold"])
        projector, values = project(matrix, threshold, one.inputs["method"])
        # The gap between the largest kept and the smallest dropped tells how arbitrary the threshold is.
        values = values.cpu()  # as the artifact keeps them; one read
        below = values < threshold
        meta = {
            "kept_rank": int(below.sum()),
            "width": matrix.shape[0],
            "threshold": threshold,
            "largest_kept": float(values[below].max()) if bool(below.any()) else 0.0,
            "smallest_dropped": float(values[~below].min()) if bool((~below).any()) else 0.0,
        }
        made.append(({"projector": projector.float(), "eigenvalues": values}, meta))
    return made


def stored(lm: LanguageModel, module: str, layers: Sequence[int], file: FileSpec) -> dict[str, ArtifactRequest]:
    """Return the requests, ``projector/<layer>``, for the projectors that the published code stored in one file.

    Args:
        lm: the pristine model.
        module: dotted name with ``{}`` for the block's number.
        layers: the blocks, in the order in which the file has them.
        file: a ``null_space_project.pt``.
    """
    plan = {"file": file.digest or foreign.digest_of(Path(file.path)), "layers": list(layers)}
    return {
        f"projector/{layer}": ArtifactRequest(
            "projector",
            {**plan, "module": module.format(layer)},
            "raysweep.editors.locate.foreign:build_projectors",
            model=lm.identity,
            where={"path": file.path},
            version=VERSIONS["projector"],
        )
        for layer in layers
    }


def project(moments: Tensor, threshold: float, method: Method = "eigh64") -> tuple[Tensor, Tensor]:
    """Return ``(P, eigenvalues)``, the eigenvalues (fp64, rising) of symmetric *moments* ``[d, d]``.

    Args:
        moments: ``C``.
        threshold: eigenvalues below it belong to the null space.
        method: ``eigh64`` (fp64, symmetric), or ``ref_fp32_svd``: singular vectors in fp32 as published (quirk Q10).

    Raises:
        ArtifactError: every eigenvalue reaches the threshold, so nothing could ever be edited.
    """
    if method == "ref_fp32_svd":
        vectors, values, _ = torch.linalg.svd(moments.float(), full_matrices=False)
        # singular values of a symmetric positive matrix are its eigenvalues, but falling
        vectors, values = vectors.flip(1), values.double().flip(0)
    else:
        full = moments.double()
        values, vectors = torch.linalg.eigh((full + full.T) / 2)
    null_vectors = vectors[:, values < threshold]
    if null_vectors.shape[1] == 0:
        raise ArtifactError(
            f"no eigenvalue of the second moments [{moments.shape[0]} x {moments.shape[0]}] is below {threshold:g}; "
            f"they run from {float(values[0]):.3g} to {float(values[-1]):.3g}",
            hint="raise the threshold of the null space",
        )
    return null_vectors @ null_vectors.T, values
