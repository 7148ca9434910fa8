"""The public names load lazily and exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

import raysweep


@pytest.mark.parametrize("name", sorted(set(raysweep.__all__) - {"__version__"}))
def test_public_name_exists(name: str) -> None:
    assert getattr(raysweep, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = raysweep.no_such_name


def test_importing_raysweep_is_light() -> None:
    code = "import raysweep, sys; assert not {'torch', 'ray', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
