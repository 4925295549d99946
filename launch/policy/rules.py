"""What a site's policy makes of each option of a run: by a rule, or because the option can do no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import suture.models.registry as nets
from suture.launch.options.options import SITES_OWN, RunOptions, as_config_error, parse_cut, required
from suture.runtime.wire.compression import FORMATS
from suture.threats.plugin import Spec

if TYPE_CHECKING:
    from suture.launch.policy.policy import Policy

Rule = Callable[["Policy", RunOptions], str]
"""Returns which rule forbids the options and why, empty where none does."""

HARMLESS: dict[str, str] = {
    "optimizer": "how weights move at each end; no more crosses for it",
    "seed": "public by design: what the server must not know does not follow from it alone",
}
"""Options that every rank shares and no rule bounds, with the reason."""


def complaints(policy: Policy, options: RunOptions) -> Iterator[str]:
    """What the policy forbids of resolved options, rule by rule.

    An option that all ranks share and that stands in none of the three lists is forbidden: it is newer than the policy.
    """
    for rule in RULES.values():
        if complaint := rule(policy, options):
            yield f"policy {complaint}"
    for option in fields(options):
        if option.metadata.get("agree") and option.name not in (*RULES, *HARMLESS, *SITES_OWN):
            yield f"policy: there is no rule for the option {option.name}, so it is not taken"


def _net(policy: Policy, options: RunOptions) -> str:
    return unlisted(policy, required(options.model))


def unlisted(policy: Policy, model: str) -> str:
    """Why ``model`` may not be trained; empty where it may."""
    if model in policy.nets:
        return ""
    return f"nets: {model!r:.100} is not among {', '.join(policy.nets) or 'those allowed (none)'}"


def _cut(policy: Policy, options: RunOptions) -> str:
    model, cut = required(options.model), required(options.cut)
    if model not in policy.earliest_cut:
        return ""  # is not among the nets, then
    earliest = policy.earliest_cut[model]
    with as_config_error():
        if nets.cut_place(model, parse_cut(cut)) >= nets.cut_place(model, earliest):
            return ""
    return f"earliest_cut: {model} may be cut at {earliest} or later, got {cut}; see 'suture cuts {model}'"


def _labels(policy: Policy, options: RunOptions) -> str:
    if policy.labels == "any" or options.labels == policy.labels:
        return ""
    return f"labels: labels must stay at {policy.labels}, got {options.labels}"


def _augment(policy: Policy, options: RunOptions) -> str:
    if policy.augment == "any" or options.augment:
        return ""
    return "augment: training images must be augmented, got --no-augment"


def _within(name: str) -> Rule:
    """The rule of an option's range."""

    def rule(policy: Policy, options: RunOptions) -> str:
        value = getattr(options, name)
        return (
            "" if value is None else outside(policy, name, value)
        )  # a width that is not set is the net's own

    return rule


def outside(policy: Policy, name: str, value: float) -> str:
    """Why ``value`` does not lie in the range of the rule ``name``; empty where it does."""
    low, high = getattr(policy, name)
    if low <= value <= high:  # NaN lies in no range
        return ""
    return f"{name}: must lie in {low:g}..{high:g}, got {value:g}"


def _defences(policy: Policy, options: RunOptions) -> str:
    given = {spec.entry.name: spec for spec in options.defence_specs()}
    for spec in policy.defences:
        name = spec.entry.name
        if name not in given:
            return f"defences: {_least(spec)} must be on, got {'+'.join(map(str, given.values())) or 'none'}"
        if shortfall := _shortfall(given[name], spec):
            return f"defences: {name}: {shortfall}"
    others = given.keys() - {spec.entry.name for spec in policy.defences}
    if policy.defences and others and not policy.more_defences:
        return f"more_defences: no other defence may be on beside those demanded, got {', '.join(sorted(others))}"
    return ""


def _detectors(policy: Policy, options: RunOptions) -> str:
    if not policy.detectors:
        return ""
    wanted, spec = {spec.entry.name: spec for spec in policy.detectors}, options.detector_spec()
    if spec is None or spec.entry.name not in wanted:
        one = " or ".join(_least(each) for each in policy.detectors)
        got = f"got {options.detector or 'none'}; start with --detector {next(iter(wanted))}"
        return f"detectors: {one} must be on, {got}"
    shortfall = _shortfall(spec, wanted[spec.entry.name])
    return f"detectors: {spec.entry.name}: {shortfall}" if shortfall else ""


def _overlap(policy: Policy, options: RunOptions) -> str:
    if not options.overlap or not policy.detectors:
        return ""
    return "detectors: one must be on, which sees a batch's gradient before the next is sent, got --overlap"


def _on_alarm(policy: Policy, options: RunOptions) -> str:
    watches = options.detector_spec() is not None
    if policy.on_alarm != "stop" or options.on_alarm == "stop" or not watches:
        return ""
    return f"on_alarm: an alarm must stop this site, got {options.on_alarm}; start with --on-alarm stop"


def _wire(policy: Policy, options: RunOptions) -> str:
    name = options.wire if options.wire in FORMATS else options.wire.partition(":")[0]
    if name in policy.wire:
        return ""
    return f"wire: must be one of {', '.join(policy.wire)}, got {options.wire!r}"


def _weights(policy: Policy, options: RunOptions) -> str:
    if options.weights is None or policy.pretrained_weights:
        return ""
    return "pretrained_weights: training may not begin with --weights, which the server knows"


def _release(policy: Policy, options: RunOptions) -> str:
    if options.release_top or not policy.release_top:
        return ""
    return "release_top: the server must hand out the trained top at the end, got --no-release-top"


def _shortfall(given: Spec[Any], least: Spec[Any]) -> str:
    strength = least.entry.strength
    assert strength is not None, "the policy's file is read so"
    return strength.shortfall(given.config, least.config)


def _least(spec: Spec[Any]) -> str:
    """A demanded plug-in with its bound, such as "dcor (alpha 1 or higher)"."""
    strength = spec.entry.strength
    assert strength is not None, "the policy's file is read so"
    bound = getattr(spec.config, strength.parameter)
    return f"{spec.entry.name} ({strength.parameter} {bound:g} or {strength.stronger})"


RANGES = ("image_size", "width", "epochs", "batch_size", "lr")
"""Rules that are a lowest and a highest value of the option of the same name."""

RULES: dict[str, Rule] = {
    "model": _net,
    "cut": _cut,
    "labels": _labels,
    "weights": _weights,
    "augment": _augment,
    **{name: _within(name) for name in RANGES},
    "defence": _defences,
    "detector": _detectors,
    "overlap": _overlap,
    "on_alarm": _on_alarm,
    "wire": _wire,
    "release_top": _release,
}
"""By option, what bounds it."""
