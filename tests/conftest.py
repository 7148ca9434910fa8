"""What every test may rely on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from raysweep.environment import VARIABLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what mostly waits begin first: clusters, then Ray. At the end they would keep one worker of pytest-xdist alone."""
    first = {"cluster": 0, "ray": 1}
    items.sort(key=lambda item: first.get(item.path.parent.name, 2))


@pytest.fixture(autouse=True)
def _own_loggers_speak() -> None:
    """Undo what a command or Ray, run in this process by an earlier test, did to our loggers."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "raysweep":
            logger.disabled = False
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset what would stand in every key, and what makes tables narrow: workers of pytest-xdist set COLUMNS."""
    for name in (*VARIABLES, "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_asked_once() -> Iterator[None]:
    """Let equal tokenizers of tiny models answer the battery once: every request for an artifact asks for a model's identity.

    What the battery sees is examined by ``tests/unit/keys/test_inputs.py`` and ``tests/tokenizers``, which call it themselves.
    """
    from raysweep.models import lm

    asked, answers = lm.tokenizer_digest, dict[object, str]()

    def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, bos: Sequence[int]) -> str:
        roles = str(tokenizer.special_tokens_map)
        key = (tokenizer.backend_tokenizer.to_str(), roles, tuple(bos))
        if key not in answers:
            answers[key] = asked(tokenizer, bos)
        return answers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "tokenizer_digest", tokenizer_digest)
        yield
