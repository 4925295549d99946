"""What a site's policy makes of each option of a run: by a rule, or because the option can do no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import suture.models.registry as nets
from suture.launch.options.model import as_config_error, parse_cut
from suture.launch.options.options import SITES_OWN, RunOptions
from suture.launch.policy.site_rules import Rules
from suture.runtime.wire.compression import FORMATS
from suture.threats.plugin import Spec

Rule = Callable[[Rules, RunOptions], str]
"""Returns which rule forbids the options and why, empty where none does."""

HARMLESS: dict[str, str] = {
    "optimizer": "how weights move at each end; no more crosses for it",
    "lr_schedule": "lowers the learning rate from round to round, never above what lr allows",
    "warm_up": "raises the learning rate to what lr allows, never above it",
    "weight_decay": "how weights move at each end; no more crosses for it",
    "clip": "bounds how far a step moves weights; no more crosses for it",
    "label_smoothing": "how the loss is computed at either end; no more crosses for it",
    "prox": "keeps the parts near what they were; no more crosses for it",
    "task": "which loss is computed and what is scored; which labels cross is for labels to say",
    "norms": "what a client keeps of its parts; less is handed on, and no more crosses",
    "precision": "how a part computes; what crosses is float32 all the same, see wire",
    "early_stop": "ends the run earlier than epochs allows, never later",
    "freeze": "needs --weights, which pretrained_weights rules: the server knows them, frozen for good",
    "seed": "public by design: what the server must not know does not follow from it alone",
}
"""Options that every rank shares and no rule bounds, with the reason."""


def complaints(policy: Rules, options: RunOptions) -> Iterator[str]:
    """What the policy forbids of resolved options, rule by rule.

    An option that all ranks share and that stands in none of the three lists is forbidden: it is newer than the policy.
    """
    for rule in RULES.values():
        if complaint := rule(policy, options):
            yield f"policy {complaint}"
    for option in fields(options):
        if option.metadata.get("agree") and option.name not in (*RULES, *HARMLESS, *SITES_OWN):
            yield f"policy: there is no rule for the option {option.name}, so it is not taken"


def _net(policy: Rules, options: RunOptions) -> str:
    return unlisted(policy, options.model)


def unlisted(policy: Rules, model: str) -> str:
    """Why ``model`` may not be trained; empty where it may."""
    if model in policy.nets:
        return ""
    return f"nets: {model!r:.100} is not among {', '.join(policy.nets) or 'those allowed (none)'}"


def _cut(policy: Rules, options: RunOptions) -> str:
    model, cut = options.model, options.cut
    if model not in policy.earliest_cut:
        return ""  # is not among the nets, then
    earliest = policy.earliest_cut[model]
    with as_config_error():
        if nets.cut_place(model, parse_cut(cut)) >= nets.cut_place(model, earliest):
            return ""
    return f"earliest_cut: {model} may be cut at {earliest} or later, got {cut}; see 'suture cuts {model}'"


def _labels(policy: Rules, options: RunOptions) -> str:
    if policy.labels == "any" or options.labels == policy.labels:
        return ""
    return f"labels: labels must stay at {policy.labels}, got {options.labels}"


def _augment(policy: Rules, options: RunOptions) -> str:
    if policy.augment == "any" or options.augment != "none":
        return ""
    return "augment: training images must be augmented, got --augment none"


def _within(name: str) -> Rule:
    """The rule of an option's range."""

    def rule(policy: Rules, options: RunOptions) -> str:
        value = getattr(options, name)
        return (
            "" if value is None else outside(policy, name, value)
        )  # a width that is not set is the net's own

    return rule


def _lr_bottom(policy: Rules, options: RunOptions) -> str:
    return "" if options.lr_bottom is None else outside(policy, "lr", options.lr_bottom)


def outside(policy: Rules, name: str, value: float) -> str:
    """Why ``value`` does not lie in the range of the rule ``name``; empty where it does."""
    low, high = getattr(policy, name)
    if low <= value <= high:  # NaN lies in no range
        return ""
    return f"{name}: must lie in {low:g}..{high:g}, got {value:g}"


def _defences(policy: Rules, options: RunOptions) -> str:
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


def _detectors(policy: Rules, options: RunOptions) -> str:
    if not policy.detectors:
        return ""
    wanted, spec = {spec.entry.name: spec for spec in policy.detectors}, options.detector_spec()
    if spec is None or spec.entry.name not in wanted:
        one = " or ".join(_least(each) for each in policy.detectors)
        got = f"got {options.detector or 'none'}; start with --detector {next(iter(wanted))}"
        return f"detectors: {one} must be on, {got}"
    shortfall = _shortfall(spec, wanted[spec.entry.name])
    return f"detectors: {spec.entry.name}: {shortfall}" if shortfall else ""


def _overlap(policy: Rules, options: RunOptions) -> str:
    if not options.overlap or not policy.detectors:
        return ""
    return "detectors: one must be on, which sees a batch's gradient before the next is sent, got --overlap"


def _on_alarm(policy: Rules, options: RunOptions) -> str:
    watches = options.detector_spec() is not None
    if policy.on_alarm != "stop" or options.on_alarm == "stop" or not watches:
        return ""
    return f"on_alarm: an alarm must stop this site, got {options.on_alarm}; start with --on-alarm stop"


def _wire(policy: Rules, options: RunOptions) -> str:
    name = options.wire if options.wire in FORMATS else options.wire.partition(":")[0]
    if name in policy.wire:
        return ""
    return f"wire: must be one of {', '.join(policy.wire)}, got {options.wire!r}"


def _weights(policy: Rules, options: RunOptions) -> str:
    if options.weights is None or policy.pretrained_weights:
        return ""
    return "pretrained_weights: training may not begin with --weights, which the server knows"


def _release(policy: Rules, options: RunOptions) -> str:
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
    "lr_bottom": _lr_bottom,
    "defence": _defences,
    "detector": _detectors,
    "overlap": _overlap,
    "on_alarm": _on_alarm,
    "wire": _wire,
    "release_top": _release,
}
"""By option, what bounds it."""
