"""What a wrapper is: an editor made of another editor.

It edits by letting the inner editor propose, and corrects what it proposes (SimIE) or what is reported (PRUNE). To everybody else,
the study, another wrapper, the contract suite, it is an editor like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from raysweep.editors.base import AnyEditor, BaseEditor, ConfigT, StateT

if TYPE_CHECKING:
    from raysweep.artifacts import ArtifactRequest
    from raysweep.models.lm import LanguageModel


class BaseWrapper(BaseEditor[ConfigT, StateT]):
    """An editor made of another editor.

    What it changes and what it needs first are the inner editor's by default. It is taken to have a memory of its own: what an
    editor can do apart from others is not handed through.

    Attributes:
        accepts: kinds of patches that it can wrap.
        inner: the editor it wraps.
    """

    accepts: ClassVar[tuple[str, ...]] = ("weights",)
    needs = ()  # what is needed of a model is told by the editor inside

    def __init__(self, config: ConfigT, inner: AnyEditor) -> None:
        super().__init__(config)
        self.inner = inner

    @classmethod
    def around(cls, config: ConfigT, inner: AnyEditor) -> AnyWrapper:
        """Return this wrapper around *inner*; a wrapper with several implementations chooses one here."""
        return cls(config, inner)

    @classmethod
    def output_kind(cls, config: ConfigT) -> str:
        """Return what the wrapped editor is to a wrapper around it: its patches are ``weights``, or it reports ``views``."""
        return "weights"

    @classmethod
    def incompatible_with(cls, config: ConfigT, *, wrapped: bool) -> str:
        """Return why this cannot wrap an editor that is itself *wrapped*; empty = it can."""
        return ""

    @classmethod
    def state_bytes(
        cls, config: ConfigT, matrices: Sequence[tuple[int, int]], columns: int
    ) -> Mapping[str, int] | None:
        """Return None: what a wrapper remembers is not known unless it says so."""
        return None

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the inner editor's parameters."""
        return self.inner.edited_parameters(lm)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for what the inner editor asks for."""
        return self.inner.artifact_requests(lm)

    def description(self) -> dict[str, object]:
        """Return name and configuration, and those of the editors inside, as plain data."""
        return {**super().description(), "inner": self.inner.description()}

    def description_without(self, *names: str) -> dict[str, object]:
        """Return the description but for *names* of this wrapper's configuration, on which only its report depends."""
        return {**self.description(), "config": self.config.model_dump(mode="json", exclude=set(names))}

    def innermost(self) -> AnyEditor:
        """Return the editor inside all wrappers."""
        return self.inner.innermost()


AnyWrapper: TypeAlias = BaseWrapper[Any, Any]
"""A wrapper of whatever configuration and state."""
