"""A seeded, made-up world: typed entities, functional relations, many wordings, counterfactual edits.

Everything is a sorted or seeded tuple, so a world depends on its :class:`WorldSpec` alone. Only the standard
library is used; the world serves as a dataset, as training text of the embedded model and as a knowledge graph.
"""

from raysweep.world.build import build_world
from raysweep.world.edits import edit_records
from raysweep.world.text import training_sentences
from raysweep.world.types import WORLD_VERSION, Fact, Hop, Relation, Sentence, World, WorldSpec

__all__ = [
    "WORLD_VERSION",
    "Fact",
    "Hop",
    "Relation",
    "Sentence",
    "World",
    "WorldSpec",
    "build_world",
    "edit_records",
    "training_sentences",
]
