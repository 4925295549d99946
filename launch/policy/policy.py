"""A site's policy: the last word on what a run may do with this site's images, whatever the server asks.

A server's operator chooses a run's options, and may be hostile. So everything that all ranks share is either bounded by
a rule here or stands, with the reason, among the options that can do no harm (`rules.HARMLESS`); an option that
is in neither list is refused. A policy bounds what the server asks for. That the server keeps to it, round by round, is
for the site's side of the protocol to check (``repeats``, rounds beyond ``epochs``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path

from suture import __version__
from suture.launch.build import Images
from suture.launch.options.options import SITES_OWN, AskedOptions, RunOptions
from suture.launch.policy.file import DEFAULT_TEXT, nearest, read_rules
from suture.launch.policy.own_code import check_files
from suture.launch.policy.rules import RANGES, complaints, outside, unlisted
from suture.launch.policy.site_rules import Rules, is_own
from suture.models.foreign import KIND
from suture.runtime.errors import ConfigError, PolicyError
from suture.threats.registry import DEFENCES

_REMEDY = "ask the server's operator for another run, or change policy.toml at this site"
_BESIDE_THE_OPTIONS = ("weights", "classes", "protocol", "torch", "suture")
"""What an agreement holds beside the options that are marked ``agree``; see `RunOptions.agreement`."""


class Policy(Rules):
    """The last word of one site: screens what a server says, and checks a run against the site's rules."""

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in a file; what the file leaves out is as in `default_text`.

        Raises:
            ConfigError: the file cannot be read, or a rule in it cannot work; names file and rule.
        """
        rules = read_rules(path)
        try:
            return cls(**rules)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @staticmethod
    def default_text() -> str:
        """The commented TOML file that a site begins with."""
        return DEFAULT_TEXT

    # What a server says, before an option is made of it -------------------------------------------

    def screen(self, agreement: Mapping[str, str]) -> None:
        """Refuses what can be refused by the text alone. Must come before `AskedOptions` are made of it: that imports
        a net's code, and tries which image sizes a net takes, for hours if the size is absurd.

        Args:
            agreement: options by name, as the server sent them; see `RunOptions.site_agreement`.

        Raises:
            PolicyError: as `unknown`, `check_code` and `check_defence_code`; or the net is not listed, or a number
                is out of its range.
        """
        self.unknown(agreement)
        if "model" in agreement:
            self.check_code(agreement["model"])
            if complaint := unlisted(self, agreement["model"]):
                raise PolicyError(f"policy {complaint}; {_REMEDY}")
        self.check_defence_code(agreement.get("defence", "None"))
        for name in RANGES:
            text = agreement.get(name, "None")
            try:
                complaint = "" if text == "None" else outside(self, name, float(text))
            except ValueError:
                complaint = f"{name}: must be a number, got {text!r:.40}"
            if complaint:
                raise PolicyError(f"policy {complaint}; {_REMEDY}")

    @staticmethod
    def unknown(agreement: Mapping[str, str]) -> None:
        """Refuses what a server may not set, or what this program does not know.

        Args:
            agreement: options by name, as the server sent them; see `RunOptions.site_agreement`.

        Raises:
            PolicyError: an option is this site's own business, or unknown here; or a value is no text.
        """
        ours = {option.name: bool(option.metadata.get("agree")) for option in fields(AskedOptions)}
        known = [name for name, agreed in ours.items() if agreed and name not in SITES_OWN]
        known += _BESIDE_THE_OPTIONS
        for name, value in agreement.items():
            if name not in known and name in ours:
                raise PolicyError(
                    f"policy: the server set {name}, which is for this site alone to say; refused"
                )
            if name not in known:
                raise PolicyError(
                    f"policy: the server set {name!r:.60}, an option that suture {__version__} does not know "
                    f"({nearest(str(name), known)}); refused: the same suture must run at both ends"
                )
            if not isinstance(value, str):
                raise PolicyError(
                    f"policy: the server set {name} to a {type(value).__name__}, not a text; refused"
                )

    def check_code(self, model: str) -> None:
        """Refuses code of one's own that this policy does not list, without running it.

        Args:
            model: as ``--model`` takes it; nets of this program and torchvision's pass.

        Raises:
            PolicyError: the net is not listed, its files are not found, or one has another SHA-256.
        """
        if not is_own(model):
            return
        if model not in self.nets:
            raise PolicyError(
                f"policy nets: {model!r:.100} is code of one's own that is not listed; {_REMEDY}"
            )
        check_files(KIND, model, self.own_code)

    def check_defence_code(self, defence: str) -> None:
        """As `check_code`, of a chain of defences: one that is code of one's own must be among those demanded.

        Args:
            defence: as ``--defence`` takes it.

        Raises:
            PolicyError: one is not listed, its files are not found, or one has another SHA-256.
        """
        for name in DEFENCES.names(defence):
            if not DEFENCES.is_outside(name):
                continue
            if name not in {spec.entry.name for spec in self.defences}:
                raise PolicyError(
                    f"policy defences: {name!r:.100} is code of one's own that is not listed; {_REMEDY}"
                )
            check_files(DEFENCES.kind, name, self.own_code)

    # The run ---------------------------------------------------------------------------------------

    def filled(self, options: RunOptions) -> RunOptions:
        """Resolved options with what this policy demands of the site's own side, where the site left it open.

        A detector that was not named becomes the first one demanded that fits the task and the labels.
        """
        if self.on_alarm == "stop":
            options = replace(options, on_alarm="stop")
        for spec in self.detectors if options.detector_spec() is None else ():
            try:
                armed = replace(options, detector=str(spec))
                armed.check_detector()
            except ConfigError:
                continue
            return armed
        return options

    def check(
        self,
        options: RunOptions,
        *,
        patients: int,
        images: int,
        tls_proxy: bool = False,
        counted: str = "training",
    ) -> None:
        """Refuses a run that this policy forbids; every rule that does is named.

        Args:
            options: the run's, resolved.
            patients: in this site's training set; in its test set where it only evaluates.
            images: likewise.
            tls_proxy: whether the line goes through a proxy that ends TLS.
            counted: the name of the set in which they were counted.

        Raises:
            PolicyError: names each rule and the value.
        """
        self.check_code(str(options.model))
        self.check_defence_code(str(options.defence))
        found = list(complaints(self, options))
        if tls_proxy and not self.tls_proxy:
            found.append("policy tls_proxy: a proxy that ends TLS may not be used, got --tls proxy")
        for rule, least, got in (
            ("least_patients", self.least_patients, patients),
            ("least_images", self.least_images, images),
        ):
            if got < least:
                found.append(f"policy {rule}: the {counted} set must have at least {least}, got {got}")
        if found:
            raise PolicyError(f"{'; '.join(found)}; {_REMEDY}")


def training_set(images: Images) -> tuple[int, int]:
    """Patients and images in a site's training set, for `Policy.check`; reads no picture."""
    return _counted(images, images.shares[0].train)


def evaluated_set(images: Images) -> tuple[int, int]:
    """The same of its test set, where it only evaluates."""
    return _counted(images, images.shares[0].test)


def _counted(images: Images, chosen: Collection[int]) -> tuple[int, int]:
    return len({images.source.examples[index].patient for index in chosen}), len(chosen)
