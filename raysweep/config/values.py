"""What values of a specification may be: numbers as written and within bounds, and the frozen model that holds them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema

from raysweep.config import limits

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Threads = Annotated[int, Field(ge=1, le=limits.THREADS)]


class BlockNumber:
    """Marks a field that names blocks of the model, so that a plan can ask whether the model has them."""


def _each_once(blocks: tuple[int, ...]) -> tuple[int, ...]:
    again = sorted({b for b in blocks if blocks.count(b) > 1})
    if again:
        raise ValueError(f"names each block once, but repeats {', '.join(map(str, again))}")
    return blocks


Block = Annotated[int, Field(ge=0), BlockNumber()]
Blocks = Annotated[tuple[Natural, ...], Field(min_length=1), AfterValidator(_each_once), BlockNumber()]


def _numbers_as_written(node: object) -> None:
    """Make each number in the schema *node* strict, and keep its whole numbers within 64 bits, in place."""
    if isinstance(node, dict):
        if node.get("type") in ("int", "float"):
            # Number by number: a whole strict model would refuse a list where a tuple is meant.
            node["strict"] = True
        if node.get("type") == "int":
            node.setdefault("le", limits.LARGEST)
            # A least value of the field's own is narrower, and stays.
            if "ge" not in node and "gt" not in node:
                node["ge"] = limits.SMALLEST
        for below in node.values():
            _numbers_as_written(below)
    elif isinstance(node, list | tuple):
        for below in node:
            _numbers_as_written(below)


class Spec(BaseModel):
    """A frozen value that rejects unknown keys and takes a number as written.

    Of ``5``, ``5.0``, ``"5"`` and ``true`` only the first is a whole number here, and only the first two are numbers: a value
    that has to be converted is a slip of the pen more often than a wish. Whole numbers fit into 64 bits with their sign, which
    is what a column of the results holds.
    """

    # NaN and infinity have no canonical JSON, and so no key.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def idle_fields(self) -> frozenset[str]:
        """Return the fields that say nothing here, since another one takes their place: the files they name are not looked for."""
        return frozenset()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema with every number in it strict and every whole number bounded, however deep."""
        schema = handler(source)
        _numbers_as_written(schema)
        return schema


class GrownSpec(Spec):
    """A specification that got fields after trials with it had been stored.

    ``added`` names them: at their default, which is what those trials did, they stand in no key.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_added(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        tree: dict[str, object] = handler(self)
        fields = type(self).model_fields
        for name in self.added & tree.keys():
            if getattr(self, name) == fields[name].default:
                del tree[name]
        return tree
