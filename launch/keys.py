"""The clients' shared key: where it is given, and where it is kept."""

from __future__ import annotations

import os
from pathlib import Path

from suture.launch.options.options import RunOptions
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import take_variable
from suture.runtime.state.handoff import parse_key, read_key

KEY_VARIABLE = "SUTURE_HANDOFF_KEY"


def given_key(options: RunOptions, one_host: bool = True) -> bytes | None:
    """The clients' shared key from ``--handoff-key`` or SUTURE_HANDOFF_KEY; None where neither is set.

    The variable leaves the environment, but for a lab (``--attack``), where the judge reads it when the run has ended.

    Raises:
        ConfigError: there is none and the run spans several hosts, or it is malformed.
    """
    variable = _key_variable(options)
    if options.handoff_key is not None:
        return read_key(Path(options.handoff_key))
    if variable is not None:
        return parse_key(variable, KEY_VARIABLE)
    if not one_host:
        raise ConfigError(
            "clients on several machines need one shared --handoff-key FILE; make it with 'suture keygen FILE' "
            "and give it to every client, not to the server"
        )
    return None


def forget_key(options: RunOptions) -> None:
    """At the server: drops the clients' key, which every rank of one machine inherits."""
    _key_variable(options)


def _key_variable(options: RunOptions) -> str | None:
    in_a_lab = options.attack_spec() is not None
    return os.environ.get(KEY_VARIABLE) if in_a_lab else take_variable(KEY_VARIABLE)


def memory_folder() -> Path:
    """Where a client remembers what it has seen: its own place, which no server can choose."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "suture"


def generated_key(run_dir: Path) -> Path:
    """Where the key is that was made for the clients of one machine."""
    return run_dir / "clients" / "handoff.key"
