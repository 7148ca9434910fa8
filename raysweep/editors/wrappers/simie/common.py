"""What the two implementations of SimIE share: configuration, inputs of matrices, λ of each input, and keys of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypedDict, TypeVar

from raysweep.artifacts import ArtifactRequest
from raysweep.editors.base import StateT
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.editors.wrappers.simie.config import Energy, SimIEConfig
from raysweep.lazy import lazy
from raysweep.models.patches import Delta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.locate import keys, second_moments
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
else:
    keys, second_moments = lazy("raysweep.editors.locate.keys"), lazy("raysweep.editors.locate.second_moments")
    ledger = lazy("raysweep.models.ledger")


InputMemoryT = TypeVar("InputMemoryT")
MatrixMemoryT = TypeVar("MatrixMemoryT")


class SimIEState(TypedDict, Generic[InputMemoryT, MatrixMemoryT]):
    """State of SimIE: the inner editor's, and what is remembered of each input (by its name) and matrix (by parameter name)."""

    inner: object
    inputs: dict[str, InputMemoryT]
    matrices: dict[str, MatrixMemoryT]


class BaseSimIE(BaseWrapper[SimIEConfig, StateT]):
    """An editor made of a weight editor: what the inner one proposes is corrected by a ridge regression over all edits so far.

    An *input* is what enters an edited matrix. Matrices that read the same one (the gate and up projections of a block) have the
    same keys and so share one memory of them.
    """

    name = "simie"
    version = 2
    spans_devices = True
    config_type = SimIEConfig
    paper = "Guo et al., ICML 2025, PMLR 267:20793–20824"
    artifact_kinds = ("energy",)
    shareable: ClassVar[Mapping[str, Mapping[str, str]]] = {"lam": {"mode": "init", "backend": "closed64"}}

    @classmethod
    def output_kind(cls, config: SimIEConfig) -> str:
        """Return what the wrapped editor is to a wrapper around it: ``views`` where the model is left alone, else ``weights``."""
        return "views" if config.backend == "closed64" else "weights"

    @classmethod
    def state_bytes(cls, config: SimIEConfig, matrices: Sequence[tuple[int, int]], columns: int) -> Mapping[str, int]:
        """Return the bytes of the memory after *columns* keys, each matrix ``[d_out, d_in]`` with an input of its own."""
        key_bytes, total_bytes = 0, 0
        # fp64 is 8 bytes; rows are held until there are as many as the width, then their sum.
        for d_out, d_in in matrices:
            if config.backend == "closed64":
                key_bytes += 8 * d_in * min(columns, d_in)
                total_bytes += 8 * d_out * min(columns, d_in)
            elif config.backend == "woodbury64":
                # twice: the Gram matrix, and its inverse beside it (rows of keys, until there are d_in of them)
                key_bytes += 2 * 8 * d_in * min(columns, d_in)
                total_bytes += 8 * min(d_out * d_in, columns * (d_out + d_in))
            else:
                # P is a whole [d_in, d_in] from the first edit on
                key_bytes += (4 if config.backend == "ref_fp32_lu" else 8) * d_in**2
                total_bytes += 4 * d_out * d_in
            total_bytes += 4 * d_out * d_in if config.backend != "closed64" else 0
        return {"keys": key_bytes, "totals": total_bytes if config.mode == "init" else 0}

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for what the inner editor asks for and, if λ is in its units, for the mean energy of each input's keys."""
        requests = dict(self.inner.artifact_requests(lm))
        # closed64 asks whatever its λ: its memory, which holds the energy, serves trials of any λ, `gcv` too
        if isinstance(self.config.lam, Energy) or self.config.backend == "closed64":
            # one module for each input, whichever reads it: what enters is the same tensor
            inputs = {input_of(lm, n): n.rpartition(".")[0] for n in self._matrices(lm)}
            requests |= {
                f"energy/{i}": second_moments.energy_request(lm, m, self.config.text) for i, m in inputs.items()
            }
        return requests

    def _keys(
        self, lm: LanguageModel, batch: Sequence[EditRecord], names: Sequence[str], proposed: Mapping[str, Delta]
    ) -> dict[str, Tensor]:
        """Return the keys ``[d_in, k]`` of all tokens of *batch* by module, before or after the *proposed* change."""
        modules = [n.rpartition(".")[0] for n in names]
        # all tokens, as published: BOS, shared prefixes and the last target token too (quirk Q39)
        with ledger.applied(lm, proposed if self.config.keys == "after" else {}):
            return keys.all_token_keys(lm, batch, modules) if modules else {}

    def _matrices(self, lm: LanguageModel) -> list[str]:
        """Return the names of the inner editor's matrices; its biases pass unchanged."""
        # no key reaches a bias, which FT may train (quirk Q15)
        return [n for n in self.inner.edited_parameters(lm) if lm.weight(n).dim() == 2]

    def _energies(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, float]:
        """Return the mean energy of the keys of each input for which it was asked."""
        sources = dict.fromkeys(input_of(lm, n) for n in self._matrices(lm))
        return {s: float(artifacts[f"energy/{s}"].meta["energy"]) for s in sources if f"energy/{s}" in artifacts}

    def _ridge(self, energy: float) -> float:
        """Return λ of the matrices that read an input whose keys have the mean *energy*."""
        lam = self.config.lam
        return lam.energy * energy if isinstance(lam, Energy) else float(lam)


def input_of(lm: LanguageModel, name: str) -> str:
    """Return the name of what enters the module of weight *name*."""
    return lm.layout.input_of(name.rpartition(".")[0])
