"""What every group of options is made of: a field that carries its help text, and the checks that its field states."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from suture.runtime.errors import ConfigError


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a group.

    Args:
        default: what it is when nobody sets it; None: left open, see `AskedOptions.resolved`.
        help: what ``--help`` prints.
        metadata: ``flag``, its name on the command line where a field cannot be called so; ``choices``, the texts that
            it may have; ``least``, the smallest number; ``agree``, every rank must share it; ``free``, it may change
            when a run is resumed.
    """
    return field(default=default, metadata={"help": help} | metadata)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Options that belong together. A group checks what concerns it alone; `AskedOptions` checks the groups together.

    Raises:
        ConfigError: a value that cannot work; names value, bound and remedy.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            choices, least = one.metadata.get("choices"), one.metadata.get("least")
            value = getattr(self, one.name)
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{one.name} must be one of {', '.join(choices)}, got {value!r}")
            if least is not None and value is not None and value < least:
                raise ConfigError(f"{one.name} must be at least {least}, got {value}")
