"""What every input must come to: an answer or a refusal, in words, in time."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raysweep.cli.main import main
from raysweep.errors import RaysweepError

SECONDS = 10.0  # of the processor, which other programs do not lengthen; more is a hang
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass
class Tally:
    """Inputs by kind and outcome, and the slowest of each kind."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Fail if the block takes longer than an input may."""
        began = time.process_time()
        yield
        took = time.process_time() - began
        self.slowest[kind] = max(took, self.slowest.get(kind, 0.0))
        assert took <= SECONDS, f"{kind}: {took:.1f} s"

    def command(self, kind: str, *argv: str) -> str:
        """Run one command line, which must end with exit code 0 or 2 and no traceback; return what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with self.timed(kind), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
        said = out.getvalue() + err.getvalue()
        said.encode()  # half a character, printed as it is, would end the program
        assert code in (0, 2), said
        assert "Traceback" not in said, said
        assert code == 0 or "error[E-" in said, said
        self.outcomes[kind, REFUSED if code else ACCEPTED] += 1
        return said

    def call(self, kind: str, function: Callable[[], object]) -> None:
        """Call *function*, which must return or raise one of our errors."""
        with self.timed(kind):
            try:
                function()
                outcome = ACCEPTED
            except RaysweepError:
                outcome = REFUSED
        self.outcomes[kind, outcome] += 1

    def lines(self) -> list[str]:
        """Return a line per kind."""
        kinds = sorted({kind for kind, _ in self.outcomes})
        total = sum(self.outcomes.values())
        return [
            f"{total:,} answers in words, each within {SECONDS:g} s:",
            *(
                f"{kind}: {self.outcomes[kind, ACCEPTED] + self.outcomes[kind, REFUSED]:,} inputs, "
                f"{self.outcomes[kind, ACCEPTED]:,} accepted, {self.outcomes[kind, REFUSED]:,} refused in words, "
                f"slowest {self.slowest[kind]:.1f} s"
                for kind in kinds
            ),
        ]
