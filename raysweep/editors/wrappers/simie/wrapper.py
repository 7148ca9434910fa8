"""SimIE's public name: the recursion, or the closed form where the configuration's back end is ``closed64``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.editors.wrappers.simie.closed_form import ClosedFormSimIE
from raysweep.editors.wrappers.simie.config import SimIEConfig
from raysweep.editors.wrappers.simie.recursive import RecursiveSimIE

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor


class SimIE(RecursiveSimIE):
    """The wrapper ``simie`` of a search space; :meth:`around` chooses the implementation."""

    @classmethod
    def around(cls, config: SimIEConfig, inner: AnyEditor) -> SimIE | ClosedFormSimIE:
        """Return the closed form or the recursion around *inner*, as ``config.backend`` says."""
        return ClosedFormSimIE(config, inner) if config.backend == "closed64" else cls(config, inner)
