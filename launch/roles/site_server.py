"""A run whose members are started each by itself: the server listens on one port, a site dials out to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import suture.models.registry as nets
from suture.launch.host.address import parse_address
from suture.launch.kits.kit import Kit
from suture.launch.options.options import AskedOptions, RunOptions, as_config_error
from suture.runtime.data.registry import SOURCES
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.grpc.service import MUTUAL, check_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The server of a run that sites join by themselves.

    Attributes:
        kit: the server's.
        listen: HOST:PORT; the server listens there and nowhere else.
        min_clients: with so many sites the run begins when ``grace`` is over; None for all of ``--clients``.
        grace: seconds; see `OpenMembership`.
        line_timeout: seconds within which a cut cable is noticed.
        tls: "mutual", or "proxy" where one opens TLS on the way from any of the sites.
        revoked: the authority's list of revoked certificates; None for the kit's.
        classes: names of the run's classes, in their order; empty where the first site to join says its own.
    """

    kit: Kit
    listen: str
    min_clients: int | None = None
    grace: float = 60.0
    line_timeout: float = 15.0
    tls: str = MUTUAL
    revoked: Path | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_address(self.listen)
        check_mode(self.tls)
        check_line_timeout(self.line_timeout)

    @classmethod
    def given(cls, kit: Kit, values: Mapping[str, Any]) -> ServeConfig:
        """From what was given, now or when the run was begun; see `saved`.

        Raises:
            ConfigError: a value that cannot work, or that was saved and spoilt.
        """
        settings: dict[str, Any] = {"kit": kit, "listen": kit.server} | dict(values)
        try:
            if settings.get("revoked"):
                settings["revoked"] = Path(settings["revoked"])
            return cls(**settings)
        except TypeError as error:
            raise ConfigError(f"what the run's run.json says of the server is damaged: {error}") from None

    def saved(self) -> dict[str, Any]:
        """What differs from the usual, as it is written down with the run; its classes are kept apart."""
        apart = ("kit", "classes")
        values = {
            option.name: getattr(self, option.name) for option in fields(self) if option.name not in apart
        }
        usual = {option.name: option.default for option in fields(self)} | {"listen": self.kit.server}
        values = {name: value for name, value in values.items() if value != usual[name]}
        return values if self.revoked is None else values | {"revoked": str(self.revoked.absolute())}


def check_line_timeout(seconds: float) -> None:
    """
    Raises:
        ConfigError: it is below a second.
    """
    if not seconds >= 1:
        raise ConfigError(f"line_timeout must be at least 1 second, got {seconds}")


def check_options(options: AskedOptions, command: str) -> None:
    """Refuses options that a run of sites does not have, or not at this end.

    Raises:
        ConfigError: names the option.
    """
    for option, what in (("attack", "none"), ("recording", "off"), ("unsplit", False)):
        if getattr(options, option) not in (None, what):
            raise ConfigError(f"{option} is for a lab, where one machine plays all roles: use suture train")
    if options.exchange != "fused":
        raise ConfigError(
            f"exchange {options.exchange} is for one machine or cluster (suture train); between sites it is fused: "
            "leave it out"
        )
    if options.interface is not None:
        raise ConfigError(
            "interface is for ranks that talk RPC; a site dials the server's address: leave it out"
        )
    if options.isolate == "on":
        raise ConfigError(
            "isolate is for suture train, whose ranks open the ports of RPC; between sites nobody does: leave it out"
        )
    others = ("schedule", "clients", "resume") if command == "join" else ("handoff_key", "class_weights")
    for option in others:
        given, usual = getattr(options, option), AskedOptions.__dataclass_fields__[option].default
        if given != usual:
            other = "serve" if command == "join" else "join"
            raise ConfigError(f"{option} is an option of suture {other}; leave it out here")
    if command == "serve" and options.clients is None:
        raise ConfigError("serve needs --clients N: how many sites the run waits for before it begins")


def with_task(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they were given to a server, which opens no images: of ``data`` only the task counts, which a net has.

    Raises:
        ConfigError: there is no such net.
    """
    if "data" in asked or not asked.get("model"):
        return dict(asked)
    with as_config_error():
        task = nets.model_entry(asked["model"]).task
    return {"data": next(entry.name for entry in SOURCES.values() if entry.task == task)} | dict(asked)


def check_classes(options: RunOptions, classes: tuple[str, ...]) -> None:
    """Refuses classes that the run's net cannot have.

    Args:
        options: the run's.
        classes: as ``--classes`` names them.

    Raises:
        ConfigError: a net that marks pixels has another number of classes than two.
    """
    task = Task(nets.model_entry(options.model).task)
    if classes and task is Task.SEGMENTATION and len(classes) != 2:
        raise ConfigError(
            f"--classes names {len(classes)} classes, and {options.model} marks one against its background; write "
            "them as --classes background,lung"
        )
