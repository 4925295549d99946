"""What an experiment is run with, and config.toml, which repeats it: sizes, data, seeds and the clients' keys.

The keys are in the file because a table depends on them (what the server must not know is drawn from them). They
guard public images here; nobody should train on patients with a key that lies in an experiment's folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tomli_w

from suture.runtime.data.registry import split_spec
from suture.runtime.errors import ConfigError
from suture.runtime.state.handoff import parse_key, write_key
from suture.studies.experiments.runs.sizes import SCALES, Sizes

CONFIG = "config.toml"
_DIGITS = ("medmnist", "mnist", "fashion-mnist")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One experiment's setting.

    Attributes:
        experiment: its name.
        scale: of `SCALES`.
        budget: minutes that the sizes were planned for, 0 where none counted.
        first_seed: further seeds count up from it.
        num_seeds: runs of each arm.
        exchange: of every run: ``local``, or ``fused`` for real processes.
        device: as ``--device``.
        data: SPEC by role; environment variables in it are filled in when it is opened.
        sizes: by role.
        keys: the clients' keys (hex) by seed.
        has_sites: whether the data of an experiment that asks come from two hospitals or more; kept here, so that
            tables are made without the data.
    """

    experiment: str
    scale: str = "laptop"
    budget: float = 0.0
    first_seed: int = 0
    num_seeds: int = 3
    exchange: str = "local"
    device: str = "cpu"
    data: Mapping[str, str]
    sizes: Mapping[str, Sizes]
    keys: Mapping[int, str]
    has_sites: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        if self.num_seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.num_seeds}")
        if self.exchange not in ("local", "fused"):
            raise ConfigError(f"exchange must be local or fused (real processes), got {self.exchange!r}")
        for seed, key in self.keys.items():
            parse_key(key, f"the key of seed {seed}")

    @property
    def seeds(self) -> range:
        """Of every arm that runs with all of them."""
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def source(self, role: str) -> str:
        """The data of a role, as ``--data`` takes it."""
        return expanded(self.data[role])


@cache
def roles() -> dict[str, dict[str, str]]:
    """Data sets by their role, see roles.toml."""
    return tomllib.loads((files(__package__) / "roles.toml").read_text(encoding="utf-8"))


def attribution(role: str, spec: str) -> str:
    """The sentence below a figure of images of ``spec``."""
    if spec == roles()[role]["data"]:
        return roles()[role]["attribution"]
    name = spec.partition(":")[0]
    return "Drawn images." if name.endswith("-phantom") else f"Images: {name}."


def expanded(spec: str) -> str:
    """A data SPEC with environment variables filled in, so that a saved one holds on another machine."""
    return os.path.expandvars(spec)


def with_data(given: tuple[str, ...], scale: str) -> dict[str, str]:
    """The data of each role: what a person named, else the default of the scale.

    Args:
        given: SPECs; each goes to the role that it fits by its task, or ROLE=SPEC.
        scale: of `SCALES`.

    Raises:
        ConfigError: a source or a role is unknown.
    """
    known = roles()
    data = {role: told["drawn" if scale == "smoke" else "data"] for role, told in known.items()}
    for text in given:
        role, equals, spec = text.partition("=")
        if not equals or ":" in role:
            entry = split_spec(text)[0]
            digits = "digits" if entry.name in _DIGITS else "photographs"
            role, spec = "lungs" if entry.task.value == "segmentation" else digits, text
        if role not in known:
            raise ConfigError(f"data {text}: role must be one of {', '.join(known)}, got {role!r}")
        split_spec(spec)
        data[role] = spec
    return data


def check_data(data: Mapping[str, str], roles: tuple[str, ...]) -> None:
    """Refuses data that is not there, before anything is run.

    Raises:
        ConfigError: SUTURE_DATA is not set and a default needs it.
    """
    for role in roles:
        if "$SUTURE_DATA" in data[role] and "SUTURE_DATA" not in os.environ:
            raise ConfigError(
                f"the {role} are looked for under $SUTURE_DATA, which is not set; set it (docs/data.md says how "
                f"to obtain the sets), or name others with --data {role}=SPEC"
            )


def fresh_keys(seeds: range) -> dict[int, str]:
    """A new key a seed, hex."""
    with TemporaryDirectory(prefix="suture-keys-") as folder:
        paths = {seed: Path(folder) / str(seed) for seed in seeds}
        for path in paths.values():
            write_key(path)
        return {seed: path.read_text(encoding="utf-8").strip() for seed, path in paths.items()}


def to_toml(setting: Setting) -> str:
    """The file's text."""
    head = "# Repeats this experiment: suture experiment NAME --config FILE --out ANOTHER-FOLDER\n"
    keys = {str(seed): key for seed, key in setting.keys.items()}
    return head + tomli_w.dumps({**asdict(setting), "keys": keys})


def read_setting(path: Path) -> Setting:
    """The setting in a config.toml.

    Raises:
        ConfigError: it is missing, damaged, or sets what no setting has.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        sizes = {role: Sizes(**own) for role, own in values.pop("sizes").items()}
        keys = {int(seed): str(key) for seed, key in values.pop("keys").items()}
        return Setting(**values, sizes=sizes, keys=keys)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read an experiment from {path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no experiment's config.toml: {error}") from None
