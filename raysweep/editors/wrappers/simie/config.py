"""Hyper-parameters of SimIE (docs/methods/simie.md): λ and its units, the mode, the back end, where keys are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Tag, model_validator

from raysweep.config.schema import Count, Positive, Spec, TextSpec
from raysweep.editors.base import EditorConfig


class Energy(Spec):
    """λ in units of the mean energy of keys: ``λ = energy · E‖k‖²``, so that one value means the same on every layer and model.

    The mean is taken on the pristine model, for each input of an edited matrix, over every token of ``SimIEConfig.text``. It is
    an artifact of model and text: no trial's edits, their order, its seed, mode or back end move it.

    Attributes:
        energy (mean energy of a key): λ as a multiple of it.
    """

    energy: Positive


def _form(lam: object) -> str:
    """Return in which form λ is given."""
    return "mapping" if isinstance(lam, Mapping | Energy) else "word" if lam == "gcv" else "number"


Ridge = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Energy, Tag("mapping")] | Annotated[Literal["gcv"], Tag("word")],
    Discriminator(_form),
]
ENERGY_WIDTH = 512  # the longest row, in tokens, from which the unit of λ is taken
# λ for `gcv`, in mean energies: 1e-6 … 100, four per decade
CANDIDATES = tuple(10 ** (i / 4) for i in range(-24, 9))


class SimIEConfig(EditorConfig):
    """Hyper-parameters of SimIE.

    Attributes:
        lam (energy of a key): λ > 0 of the ridge: a number, in absolute units of key energy (published), or
            ``{energy: x}``, x times the mean energy of a key (:class:`Energy`). Swept as ``wrap.simie.lam`` or
            ``wrap.simie.lam.energy``. ``gcv`` (closed64 only): for each input at each view, the candidate with the
            least generalised cross-validation error, taken over the matrices that read the input. Each input is a
            regression of its own, so there is no reason to tie their λ.
        mode: ``sequential`` edits the model as it stands (published for ROME, MEMIT, AlphaEdit⁻); ``init`` edits the
            pristine weights each time (published for MEND).
        backend: ``woodbury64`` (O(d²k) recursion in fp64), ``chol64`` (one Cholesky per edit), ``svd`` (hermitian
            pseudo-inverse in fp64), ``ref_fp32_lu`` (the published fp32 solve with ``d_out`` right-hand sides), ``closed64``
            (``init`` mode only: the model is left alone, the closed form is solved for each view, in fp64).
        keys: take keys ``before`` the base edit (published) or ``after`` it.
        refresh (updates): recompute the inverse from P after this many updates (woodbury64).
        tolerance: recompute it when the drift exceeds this (woodbury64): the relative error of the regression's last solution,
            looked at every eighth update (:func:`raysweep.editors.linalg.ridge.woodbury`).
        text: where the mean energy of keys is taken from, if λ is in its units.
    """

    lam: Ridge = 10.0
    mode: Literal["sequential", "init"] = "sequential"
    backend: Literal["woodbury64", "chol64", "svd", "ref_fp32_lu", "closed64"] = "woodbury64"
    keys: Literal["before", "after"] = "before"
    refresh: Count = 1000
    tolerance: Positive = 1e-6
    text: TextSpec = TextSpec(tokens=4096)

    def text_rows(self) -> Iterator[tuple[int, str]]:
        """Yield the rows from which the mean energy of keys is taken, too, if λ is in its units."""
        if isinstance(self.lam, Energy):
            yield ENERGY_WIDTH, "lam.energy"
        yield from super().text_rows()

    @model_validator(mode="after")
    def _check_backend(self) -> SimIEConfig:
        if self.backend == "closed64" and self.mode != "init":
            raise ValueError("mode must be init for backend closed64, whose form holds on pristine weights only")
        if self.lam == "gcv" and self.backend != "closed64":
            raise ValueError("backend must be closed64 for lam gcv: a recursion cannot change its λ")
        return self
