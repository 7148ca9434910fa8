"""The exam every layout sits: its names resolve, and each part does what the layout says it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from raysweep.models.hooks import capture_all as _unused  # noqa: F401
