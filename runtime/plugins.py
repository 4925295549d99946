"""Plug-ins of others for the packages above the nets: as `suture.models.plugins`, with this package's errors."""

from __future__ import annotations

from typing import Any

from suture.models import plugins
from suture.runtime.errors import ConfigError


def load(kind: str, name: str) -> Any:
    """What a name outside this repository stands for.

    Raises:
        ConfigError: see `suture.models.plugins.load`.
    """
    try:
        return plugins.load(kind, name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
