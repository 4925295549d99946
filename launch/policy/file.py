"""The file ``policy.toml``: how each rule is written, and the commented file that a site begins with."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from suture.launch.policy.own_code import check_files
from suture.runtime.errors import ConfigError, PolicyError
from suture.runtime.hooks import Defence, Detector
from suture.threats.plugin import Registry, Spec
from suture.threats.registry import DEFENCES, DETECTORS

Range = tuple[float, float]
"""Lowest and highest value that a rule allows, both included."""


def read_rules(path: Path) -> dict[str, Any]:
    """The rules that a file sets, as `Policy` takes them.

    Raises:
        ConfigError: the file is missing or is not TOML, or a rule is unknown or of another kind; names file and rule.
    """
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}") from None
    rules = {}
    for name, value in written.items():
        if name not in READERS:
            raise ConfigError(f"{path}: unknown rule {name!r:.60}; {nearest(name, READERS)}")
        try:
            _check_own_code(name, value, written.get("own_code", []))
            rules[name] = READERS[name](value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
    return rules


def _check_own_code(rule: str, value: Any, digests: Any) -> None:
    """Before a demanded plug-in of one's own is run, to learn its parameters: its files must be listed."""
    registry = _REGISTRIES.get(rule)
    if registry is None or type(value) is not dict:
        return
    for name in filter(registry.is_outside, value):
        try:
            check_files(registry.kind, name, _texts(digests))
        except PolicyError as error:
            raise ConfigError(str(error)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """What a person may have meant by ``name``: the nearest known one, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ConfigError(f"must be true or false, got {value!r}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ConfigError(f"must be a text in quotes, got {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise ConfigError(f'must be a list of texts, ["...", "..."], got {value!r}')
    return tuple(value)


def _count(value: Any) -> int:
    if type(value) is not int:
        raise ConfigError(f"must be a whole number, got {value!r}")
    return value


def _range(value: Any) -> Range:
    numbers = type(value) is list and all(type(bound) in (int, float) for bound in value)
    if not numbers or len(value) != 2 or not value[0] <= value[1]:
        raise ConfigError(f"must be two numbers, [lowest, highest], got {value!r}")
    return value[0], value[1]


def _cuts(value: Any) -> dict[str, int | str]:
    if type(value) is not dict or not all(type(cut) in (int, str) for cut in value.values()):
        raise ConfigError(f"must name a cut for each net, a number or a block's name, got {value!r}")
    return dict(value)


def _specs(registry: Registry[Any], value: Any) -> tuple[Spec[Any], ...]:
    """``name = strength``, or ``name = "key=value,key=value"``."""
    if type(value) is not dict:
        raise ConfigError(
            f"must be a table of {registry.kind}s with the least strength of each, got {value!r}"
        )
    specs = []
    for name, wanted in value.items():
        if name not in registry and not registry.is_outside(name):
            raise ConfigError(f"unknown {registry.kind} {name!r:.60}; {nearest(name, registry)}")
        strength = registry.find(name).strength
        if strength is None:
            raise ConfigError(
                f"{registry.kind} {name} does not say which parameter is its strength; leave it out"
            )
        if type(wanted) in (int, float):
            wanted = f"{strength.parameter}={wanted}"
        if type(wanted) is not str:
            raise ConfigError(
                f"{name} must be a number ({strength.parameter}) or its parameters, got {wanted!r}"
            )
        specs.append(registry.parse(f"{name}:{wanted}"))
    return tuple(specs)


def _defences(value: Any) -> tuple[Spec[Defence], ...]:
    return _specs(DEFENCES, value)


def _detectors(value: Any) -> tuple[Spec[Detector], ...]:
    return _specs(DETECTORS, value)


_REGISTRIES: dict[str, Registry[Any]] = {"defences": DEFENCES, "detectors": DETECTORS}

READERS: dict[str, Callable[[Any], Any]] = {
    "nets": _texts,
    "earliest_cut": _cuts,
    "own_code": _texts,
    "pretrained_weights": _flag,
    "labels": _text,
    "augment": _text,
    "image_size": _range,
    "width": _range,
    "batch_size": _range,
    "epochs": _range,
    "lr": _range,
    "repeats": _count,
    "defences": _defences,
    "more_defences": _flag,
    "detectors": _detectors,
    "on_alarm": _text,
    "wire": _texts,
    "release_top": _flag,
    "tls_proxy": _flag,
    "least_patients": _count,
    "least_images": _count,
}
"""Every rule by name: how its value in the file is read."""

DEFAULT_TEXT = """\
# policy.toml: what this site takes part in. It is the site's last word: whatever the server asks, a run that a rule
# forbids is refused by name before an image's features are sent. A rule that is left out is as it stands here.
# docs/policy.md says why each rule is there.

# Nets that may be trained. "torchvision:NAME" and "module:FILE_OR_PACKAGE:NAME" can be added; each needs an
# earliest_cut below.
nets = ["resnet18", "resnet34", "resnet50", "unet"]
# Code of one's own (module:FILE_OR_PACKAGE:NAME) runs on this machine: SHA-256 of each file that may, by
# `sha256sum FILE`; its name must be in nets, [defences] or [detectors] as well.
own_code = []
# Whether training may begin with --weights: the server knows them, and so the first bottom.
pretrained_weights = false
# "home": labels must stay here. "any": the server may be sent the labels, too.
labels = "any"
# "on": images must be augmented, so that one image never crosses twice alike. "any": they need not be.
augment = "any"

# [lowest, highest], both allowed.
image_size = [16, 512]      # pixels a side: the more, the finer the detail that crosses
width = [1, 128]            # channels of the U-Net's first block
batch_size = [4, 256]       # images that are together in a step
epochs = [1, 200]           # rounds: how often each image's features are sent
lr = [1e-6, 0.1]            # learning rate
# So many times may the server ask for one round's training images once more, after it took a turn back.
repeats = 3

# Formats in which tensors may cross, as --wire names them; topk with any share.
wire = ["fp32", "bf16", "fp16", "int8", "topk"]
# Whether the server must hand out the trained top at the end: without it there is no model to use here.
release_top = true
# Whether a proxy that ends TLS may be used: it reads smashed data, and labels where they are shared.
tls_proxy = false

# Fewest patients and images in this site's training set: of very few, weights and smashed data tell most.
least_patients = 10
least_images = 20

# What a detector's alarm must lead to: "stop", or "log" where the person who starts the run may choose.
on_alarm = "log"
# Whether other defences than those below may be on beside them: a second one can drown the first.
more_defences = false

# The earliest cut of each net, a number or a block's name of `suture cuts NET`; a later one is always allowed.
[earliest_cut]
resnet18 = 3
resnet34 = 3
resnet50 = 3
unet = 2

# Defences that must all be on, with the least strength of each. Its other parameters must be at their default, or as
# they stand in a text: proxy = "task-weight=0.5,steps=2".
[defences]
# dcor = 1.0            # alpha, at least
# proxy = 0.5           # task-weight, at most
# noise = 1.0           # scale, at least
# quantise = 2          # bits, at most
# dropout = 0.5         # p, at least

# Detectors of which one must be on, with the highest threshold of each.
[detectors]
# splitguard = 0.7
# gradient-scrutinizer = 0.8
"""
"""What `suture provision` writes into a kit."""
