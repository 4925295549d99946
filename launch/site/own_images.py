"""A site's own images: which of them it uses, how they are divided, and by which names the run knows their classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import suture.models.registry as nets
from suture.launch import build
from suture.launch.host.memory_check import free_memory
from suture.launch.options.model import as_config_error
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.data import class_names
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.registry import SOURCES, split_spec
from suture.runtime.data.site_shares import SharesConfig, counted_share, evaluation_share, site_share
from suture.runtime.data.source import Source, Task
from suture.runtime.errors import ConfigError

log = logging.getLogger(__name__)

COUNTS = ("train_images", "validation_images", "test_images", "held_out_images", "partition")
"""Options with which a site asks for a number of images, balanced, in place of all of them."""
UNEVEN = 3.0
"""How many times the images of the rarest class the commonest may have before class weights are offered."""


@dataclass(frozen=True, kw_only=True)
class SiteDataConfig:
    """What a site says of its images beside the options that it shares with ranks of one machine.

    Attributes:
        class_map: by this site's class name the run's.
        validation: the share of images to validate on; None for the default.
        test: the share to test on; None for the default, see `SharesConfig`.
        evaluate_only: whether the site trains nothing.
    """

    class_map: Mapping[str, str] = field(default_factory=dict)
    validation: float | None = None
    test: float | None = None
    evaluate_only: bool = False

    def __post_init__(self) -> None:
        self.shares()

    def shares(self) -> SharesConfig:
        """The shares, with the defaults filled in.

        Raises:
            ConfigError: a share is out of range.
        """
        validation = SharesConfig.validation if self.validation is None else self.validation
        return SharesConfig(validation=validation, test=self.test)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Refuses shares and numbers of images at once.

        Raises:
            ConfigError: names both.
        """
        shares = [f"--{name}" for name in ("validation", "test") if getattr(self, name) is not None]
        if shares and self.evaluate_only:
            raise ConfigError(
                f"{shares[0]} is for a site that trains; with --evaluate-only all images are test images, or as "
                "many as --test-images says: leave it out"
            )
        counts = [name for name in COUNTS if name in asked]
        if shares and counts:
            raise ConfigError(
                f"{shares[0]} is a share of all images and --{counts[0].replace('_', '-')} a number of balanced ones: "
                "leave one of the two out"
            )


def check_task(values: Mapping[str, Any]) -> None:
    """Refuses data of another task than the run's.

    Args:
        values: options by name, the site's and those that the server told.

    Raises:
        ConfigError: names the run's net, both tasks and the data sources that fit.
    """
    entry, _ = split_spec(values.get("data", AskedOptions.data))
    if values.get("model") is None:
        return  # the task's default, then
    with as_config_error():
        task = nets.model_entry(values["model"]).task
    if task != entry.task.of_net:
        fitting = ", ".join(name for name, other in SOURCES.items() if other.task.of_net == task)
        raise ConfigError(
            f"the run trains {values['model']} for {task}, and this site's data {entry.name} is for {entry.task}; give "
            f"--data one of {fitting}, or join another run"
        )


def take(options: RunOptions, asked: Mapping[str, Any], name: str, config: SiteDataConfig) -> build.Images:
    """The site's images under its own class names, divided, and said in its log; reads no picture.

    Raises:
        ConfigError, DataError: as `open_own`, `divide` and `check_memory`.
    """
    if "data" not in asked:
        log.warning("no --data: this site trains on what %s draws, and on no images of its own", options.data)
    images = divide(open_own(options, asked, name, config), options, asked, name, config)
    log_division(images)
    check_memory(options, images)
    return images


def open_own(options: RunOptions, asked: Mapping[str, Any], name: str, config: SiteDataConfig) -> Source:
    """The site's source under the class names that the site says; reads no picture. For the arguments see `divide`.

    Raises:
        ConfigError, DataError: as `open_source` and `mapped`.
    """
    wanted = options.partition_config()
    each = wanted.train_images + wanted.validation_images + wanted.test_images + wanted.held_out_images
    # Of a drawn source "all" is what it lists, twice what is needed.
    need = each if any(count in asked for count in COUNTS) else each // 2
    source = options.open_own(need, build.site_seed(options, name))
    return class_names.mapped(source, config.class_map)


def divide(
    source: Source, options: RunOptions, asked: Mapping[str, Any], name: str, config: SiteDataConfig
) -> build.Images:
    """What the site takes of its source: all of it, or the numbers that it asked for.

    Args:
        source: as `open_own` opened it.
        options: the run's, resolved.
        asked: options by name, as this site's people gave them.
        name: the site's.
        config: of its images.

    Raises:
        ConfigError, DataError: there are too few images or patients, with a remedy that this site can apply.
    """
    seed, present = build.site_seed(options, name), class_names.with_images(source)
    if config.evaluate_only:
        share = evaluation_share(
            present,
            validation_images=asked.get("validation_images") or 0,
            test_images=asked.get("test_images"),
            seed=seed,
        )
    elif any(count in asked for count in COUNTS):
        share = counted_share(present, options.partition_config(), seed)
    else:
        share = site_share(present, config.shares(), seed)
    return build.Images(source, (share,))


def check_memory(options: RunOptions, images: build.Images) -> None:
    """Refuses more images than fit into memory, before they are read.

    Raises:
        ConfigError: names need, what is free, and what would help.
    """
    share = images.shares[0]
    if problem := too_large(options, len(share.train) + len(share.validation) + len(share.test)):
        raise ConfigError(problem)


def log_division(images: build.Images) -> None:
    """Says how many images of how many patients each set has, and what the source skipped."""
    source, share = images.source, images.shares[0]
    for note in source.notes:
        log.info("%s: %s", source.name, note)
    sets = [
        f"{len(part)} {said} images of {len({source.examples[index].patient for index in part})} patients"
        for said, part in (("training", share.train), ("validation", share.validation), ("test", share.test))
        if part
    ]
    kind = "" if share.train else "evaluates only, trains nothing: "
    log.info("%s: %s%s", source.name, kind, ", ".join(sets))
    left = len(source.examples) - sum(map(len, (share.train, share.validation, share.test)))
    if left:
        log.info("%s: %d of %d images are not used", source.name, left, len(source.examples))


def log_classes(source: Source) -> None:
    """Says which classes of the run this site has no images of."""
    if lacking := class_names.without_images(source):
        log.info(
            "%s: the run's classes are %s; this site has no images of %s",
            source.name,
            ", ".join(source.classes),
            ", ".join(lacking),
        )


def offer_weights(options: RunOptions, data: ClientData) -> None:
    """Offers class weights where the training images' classes are far from even."""
    if data.task is Task.SEGMENTATION or options.class_weights != "none":
        return
    counts = dict(zip(data.classes, data.class_counts("train"), strict=True))
    held = {name: count for name, count in counts.items() if count}
    if held and max(held.values()) > UNEVEN * min(held.values()):
        log.info(
            "training images by class: %s; with --class-weights balanced the rare ones count for more",
            ", ".join(f"{name} {count}" for name, count in held.items()),
        )


def too_large(options: RunOptions, num_images: int) -> str:
    """Why so many images cannot be kept in this machine's memory, with what would help; empty where they can."""
    need, free = num_bytes(options, num_images), free_memory()
    if need <= free:
        return ""
    return (
        f"{num_images} images at {options.image_size} px take {shown_bytes(need)} of memory, and {shown_bytes(free)} "
        "are free here; use fewer with --train-images, --validation-images and --test-images, or ask for a run with a "
        "smaller --image-size"
    )


def shown_bytes(number: int) -> str:
    """A number of bytes for a person."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def num_bytes(options: RunOptions, num_images: int) -> int:
    """Memory that so many of a site's images take while it trains, at the run's size."""
    entry = nets.model_entry(options.model)
    pixels: int = options.image_size**2
    return num_images * pixels * (entry.in_channels + (1 if Task(entry.task) is Task.SEGMENTATION else 0))
