"""How far the model of a run has moved at its rounds (``protocol.drift``), on text of the dataset that no edit is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysweep.config.shared_specs import TextSpec
from raysweep.errors import DataError
from raysweep.lazy import lazy

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec
    from raysweep.evals import drift
    from raysweep.models.ledger import Ledger
    from raysweep.models.lm import LanguageModel
    from raysweep.studies.base import Deps
else:
    drift = lazy("raysweep.evals.drift")


@dataclass(slots=True)
class Drifting:
    """Reads a fixed text before the first edit and at each round.

    Attributes:
        trial: whose protocol says on how many tokens; 0 = nothing is read.
        lm: the model, as it stands.
        deps: what opens the text.
        pieces: of the text, once it was read.
        unedited: what the unedited model made of them.
    """

    trial: TrialSpec
    lm: LanguageModel
    deps: Deps
    pieces: list[drift.Piece] = field(default_factory=list)
    unedited: drift.TextReading | None = None

    def read_baseline(self) -> None:
        """Read the text while the model is unedited.

        Raises:
            DataError: the dataset has no text that is long enough to predict a token of.
        """
        count = self.trial.protocol.drift
        if not count:
            return
        # Its digest is the dataset's own, which the key has.
        texts = self.deps.texts(TextSpec(tokens=count), self.trial.data)
        self.pieces = drift.pieces_of(self.lm, texts, count)
        if not self.pieces:
            raise DataError(
                f"dataset '{self.trial.data.name}' has no text to measure drift on", hint="leave out protocol.drift"
            )
        self.unedited = self._read()

    def measure(self, ledger: Ledger) -> dict[str, float]:
        """Return the numbers of the model as it stands, by name; none where the protocol asks for none."""
        if self.unedited is None:
            return {}
        # Of a view that is not written, such as SimIE's in init mode, the model has the change and the ledger has none.
        return drift.moved(self.unedited, self._read()) | drift.spectrum(ledger.total_deltas())

    def _read(self) -> drift.TextReading:
        return drift.read(self.lm, self.pieces, batch=self.trial.protocol.eval_batch)
