"""Models that are trained when they are first needed: a file says on what and how, and somebody above knows how to train.

Who that is stands in the table :data:`MODEL_RECIPES` by the file's suffix, so that this package need not know the belief testbed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.registry import Registry
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from raysweep.models.lm import LanguageModel

# By name, not by import: the belief testbed stands above this package.
MODEL_RECIPES: Registry[type[ModelRecipe]] = Registry(
    "model recipe", {".yaml": "raysweep.belief.testbed:TestbedRecipe"}
)


class ModelRecipe(ABC):
    """A file that a model is trained from.

    Attributes:
        path: the file.
        workspace: where what is trained is kept.
    """

    def __init__(self, path: Path, workspace: Workspace) -> None:
        self.path, self.workspace = path, workspace

    @staticmethod
    def open(path: Path, workspace: Workspace) -> ModelRecipe:
        """Return the recipe in the file *path*; its suffix is in the table."""
        return MODEL_RECIPES.get(path.suffix)(path, workspace)

    @abstractmethod
    def digest(self) -> str:
        """Return the digest of the model, trained or not."""

    @abstractmethod
    def blocks_and_positions(self) -> tuple[int, int]:
        """Return how many blocks and positions the model will have; zeros = it trains none."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the model's tokenizer, without training the model."""

    @abstractmethod
    def model(self, dtype: torch.dtype, on_step: Callable[[int, int], None] | None = None) -> LanguageModel:
        """Return the model in *dtype*, trained now if it never was; *on_step* hears of steps done and in all."""
