"""What can become of a key of another program's hyper-parameter file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raysweep.jsontypes import Json


@dataclass(frozen=True, slots=True)
class Becomes:
    """The key is one of ours.

    Attributes:
        keys: dotted keys of ours; a list of several values has one for each.
        convert: from their value to ours; a ``ValueError`` says what is wrong with theirs.
        per: their key by which theirs is divided, where they count in records and we in updates; empty = none.
        absent: what their code does where the key is missing; None = what is done here.
    """

    keys: tuple[str, ...]
    convert: Callable[[Json], Json] = lambda value: value
    per: str = ""
    absent: Json = None


@dataclass(frozen=True, slots=True)
class Only:
    """The key is no choice here: one of *values* is what is always done, and another is refused, since it would mean *else_*."""

    values: tuple[Json, ...]
    else_: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """The key changes no number, for the reason *why*."""

    why: str


@dataclass(frozen=True, slots=True)
class Part:
    """The key names a part of the model.

    Attributes:
        parts: what it may be, in the words of a layout (``mlp_out``, ``norm`` …).
        else_: what another part would mean; empty = that the file is for another architecture.
        bias: our key that is true where the name does not end in ``.weight``; empty = none.
    """

    parts: tuple[str, ...]
    else_: str = ""
    bias: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The key names the text of the second moments, whose rows are cut where the model's positions end.

    Attributes:
        names: the texts that are known here too.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LastBlock:
    """The key numbers the block whose output is read for the loss; here that is always the last one."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """The key lists weight matrices; here they are told by block and side of the MLP.

    Attributes:
        several: whether there may be more than one (MEND), as ``layers`` and ``modules``; else ``layer`` and ``matrix``.
    """

    several: bool


Rule = Becomes | Only | Ignored | Part | Corpus | LastBlock | Matrices
Table = Mapping[str, Rule]


def becomes(*keys: str) -> Becomes:
    """Return the rule that a key is ours under another name."""
    return Becomes(keys)


def false_is_null(value: Json) -> Json:
    """Return None for their ``false``.

    >>> false_is_null(False), false_is_null(5e-4)
    (None, 0.0005)
    """
    # `is`, since 0 == False in Python and 0 is a number that somebody may have meant.
    return None if value is False else value


def choice(**names: str) -> Callable[[Json], Json]:
    """Return the conversion of one of their words into ours.

    >>> choice(moving_avg="moving_average")("moving_avg")
    'moving_average'
    """

    def convert(value: Json) -> Json:
        # a list or a number is no word, and must not be looked up
        if isinstance(value, str) and value in names:
            return names[value]
        raise ValueError(f"{value!r} is not offered here; {' or '.join(names)} is")

    return convert
