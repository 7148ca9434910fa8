"""Second moments and null-space projectors that other programs stored: ROME's ``.npz``, AlphaEdit's ``null_space_project.pt``.

Nothing of a file is run: ``.npz`` is read without pickle, ``.pt`` with torch's reader of weights alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest, Built
from raysweep.editors.specs import FileSpec
from raysweep.errors import ArtifactError
from raysweep.hashing import file_digest
from raysweep.models.lm import LanguageModel

COUNT, SUM = "mom2.count", "mom2.mom2"
_NEAR = 1e-2  # relative, of what fp32 leaves of symmetry and of P P = P


def moments_request(lm: LanguageModel, module: str, files: Sequence[FileSpec]) -> ArtifactRequest:
    """Return the request for the second moments of what enters *module*, from the one of *files* whose name begins with it.

    Their names are ``transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``: module, precision, what was collected, articles.

    Raises:
        ArtifactError: no file, or more than one, is of the module.
    """
    # an underscore behind it, or layer 1 would take the file of layer 13
    own = [file for file in files if Path(file.path).name.startswith(f"{module}_")]
    if len(own) != 1:
        names = ", ".join(Path(file.path).name for file in files)
        found = f"{len(own)} files are" if own else "no file is"
        hint = f"a file's name begins with the module: {module}_float32_mom2_100000.npz"
        raise ArtifactError(f"moments.files: {found} of {module}, among {names}", hint=hint)
    digest = own[0].digest or digest_of(Path(own[0].path))
    return ArtifactRequest(
        "moments",
        {"file": digest, "module": module},
        "raysweep.editors.locate.foreign:build_moments",
        model=lm.identity,
        where={"path": own[0].path},
        version=VERSIONS["moments"],
    )


def digest_of(path: Path) -> str:
    """Return the hash of a file.

    Raises:
        ArtifactError: there is none.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file", hint="copy it, or leave it out: it is computed then")
    return file_digest(path)


def build_moments(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Read the second moments of each request.

    Raises:
        ArtifactError: a file is not such a file, not of this model's width, or not the one the plan saw.
    """
    made: list[Built] = []
    for request in requests:
        path = _as_planned(request)
        total, count = _npz(path)
        width = _width(lm, str(request.inputs["module"]))
        if tuple(total.shape) != (width, width):
            raise ArtifactError(
                f"{path}: {SUM} is {_shape(total)}, and {request.inputs['module']} reads vectors of {width}",
                hint="is the file of another model?",
            )
        # they store the sum and the count; fp64, since sums of 10^8 products would lose digits in fp32
        mean = total.double() / count
        # a file cut short and filled up with noise has the right shape, but is no matrix of second moments
        if not bool(torch.isfinite(mean).all()) or _apart(mean, mean.T) > _NEAR or float(mean.diagonal().min()) < 0:
            raise ArtifactError(f"{path}: {SUM} is no matrix of second moments: not finite, symmetric and positive")
        made.append(({"moments": mean.float()}, {"tokens": count}))
    return made


def build_projectors(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Read the projector of each request.

    Raises:
        ArtifactError: the file is not such a file, of other layers or another width, or holds no projectors.
    """
    made: list[Built] = []
    for request in requests:
        path, module = _as_planned(request), str(request.inputs["module"])
        listed, width = list(request.inputs["layers"]), _width(lm, module)
        whole = _pt(path)
        if tuple(whole.shape) != (len(listed), width, width):
            raise ArtifactError(
                f"{path}: is {_shape(whole)}; for the layers {listed} of this model it is [{len(listed)}, {width}, {width}]",
                hint="is the file of another model, or of other layers?",
            )
        # one file holds the layers in the order in which their configuration lists them
        number = next(i for i, layer in enumerate(listed) if str(layer) in module.split("."))
        matrix = whole[number].double()
        # P P = P is asked of a few vectors: the product of two matrices of 11,008 columns takes a minute.
        probe = torch.randn(width, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        once = matrix @ probe
        if not bool(torch.isfinite(matrix).all()) or max(_apart(matrix, matrix.T), _apart(matrix @ once, once)) > _NEAR:
            raise ArtifactError(
                f"{path}: matrix {number}, of layer {listed[number]}, is no projector: P = Pᵀ and P P = P do not hold",
                hint="is it a null_space_project.pt?",
            )
        made.append(({"projector": matrix.float()}, {"kept_rank": round(float(matrix.trace())), "width": width}))
    return made


def _as_planned(request: ArtifactRequest) -> Path:
    path = Path(request.where["path"])
    # the key holds the digest that the plan saw: another file under the same name is another number
    if digest_of(path) != request.inputs["file"]:
        raise ArtifactError(
            f"{path}: its digest is not {request.inputs['file']}, which the plan saw", hint="plan again"
        )
    return path


def _npz(path: Path) -> tuple[Tensor, int]:
    """Return the sum of products and how many vectors are in it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := {COUNT, SUM} - set(file.files):
                raise ArtifactError(
                    f"{path}: has no {' and no '.join(sorted(missing))}",
                    hint=f"it has {', '.join(file.files) or 'nothing'}",
                )
            count, total = int(file[COUNT]), torch.from_numpy(np.array(file[SUM]))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: not an .npz of second moments: {error}", hint="was it cut short?") from error
    if count < 1 or total.ndim != 2 or not total.is_floating_point():
        raise ArtifactError(f"{path}: {COUNT} is {count}, and {SUM} is {_shape(total)}", hint="was it cut short?")
    return total, count


def _pt(path: Path) -> Tensor:
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of a stranger's: torch and pickle raise whatever they stumble over
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path}: cannot be read safely: {first}", hint="is it a null_space_project.pt?") from error
    if not isinstance(whole, Tensor) or not whole.is_floating_point():
        raise ArtifactError(f"{path}: holds no tensor of projectors", hint="is it a null_space_project.pt?")
    return whole


def _width(lm: LanguageModel, module: str) -> int:
    return int(lm.logical(f"{module}.weight").shape[1])


def _apart(one: Tensor, other: Tensor) -> float:
    """Return how far two matrices are apart, relative to the first."""
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
