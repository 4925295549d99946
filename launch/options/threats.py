"""Options: attacks, and what stands against them."""

from __future__ import annotations

from dataclasses import dataclass

from suture.launch.options.group import Group, option
from suture.runtime.hooks import Attack, Defence, Detector
from suture.threats.plugin import Spec
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS


@dataclass(frozen=True, kw_only=True)
class ThreatOptions(Group):
    """What the server does beyond the protocol, what clients do against it, and what is kept to judge both."""

    defence: str | None = option(
        None,
        "what clients do to what they send: SPEC, or SPEC+SPEC from the bottom to the wire; all clients alike, and "
        "the server may know (see below)",
        agree=True,
    )
    detector: str | None = option(None, "what watches the gradient that comes home, SPEC (see below)")
    on_alarm: str = option(
        "log",
        "what a detector's alarm leads to; stop: the client leaves before sending more",
        choices=("log", "stop"),
        free=True,
    )
    attack: str | None = option(
        None,
        "what the server does beyond the protocol, SPEC (see below); a lab's setting: all ranks are told",
    )
    judge: str = option(
        "on",
        "judge an attacked run on one machine when it ends; off: later, with 'suture judge RUN'",
        choices=("on", "off"),
        free=True,
    )
    recording: str = option(
        "off",
        "record what crosses the wire under RUN/recording, for 'suture attack'",
        choices=("off", "last-round", "all"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.defence_specs(), self.detector_spec(), self.attack_spec()

    def defence_specs(self) -> tuple[Spec[Defence], ...]:
        """The defences asked for, in order."""
        return DEFENCES.parse_chain(self.defence)

    def attack_spec(self) -> Spec[Attack] | None:
        """The attack asked for."""
        return None if self.attack in (None, "none") else ATTACKS.parse(str(self.attack))

    def detector_spec(self) -> Spec[Detector] | None:
        """The detector asked for."""
        return None if self.detector in (None, "none") else DETECTORS.parse(self.detector)

    def is_lab(self) -> bool:
        """Whether the server does more than the protocol: attacks, or records for a later attack."""
        return self.attack_spec() is not None or self.recording != "off"
