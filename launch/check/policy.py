"""What a site's policy makes of its own data, for ``suture check``; what a run asks for is not known then."""

from __future__ import annotations

from pathlib import Path

import suture.models.registry as nets
from suture.launch.options.options import RunOptions
from suture.launch.policy.policy import Policy
from suture.launch.policy.rules import outside


def policy_findings(
    policy: Policy, path: Path, options: RunOptions, patients: int, images: int
) -> tuple[list[str], list[str]]:
    """What the policy allows of a run on this data, and what it forbids.

    Args:
        policy: the site's.
        path: its file, for the remedy.
        options: of the check, resolved: task and image size.
        patients: in the training set.
        images: likewise.

    Returns:
        Lines for a person, and what to mend, each by its rule's name.
    """
    task = nets.model_entry(options.model).task
    fitting = [name for name in policy.nets if name not in nets.MODELS or nets.model_entry(name).task == task]
    cuts = [f"{name} cut at {policy.earliest_cut[name]} or later" for name in fitting]
    lines = [
        f"{path} allows {patients} training patients (least_patients {policy.least_patients}) and {images} training "
        f"images (least_images {policy.least_images})",
        f"nets for {task}: {'; '.join(cuts) or 'none'}",
        f"labels {policy.labels}; batches of {policy.batch_size[0]:g} to {policy.batch_size[1]:g}; images of "
        f"{policy.image_size[0]:g} to {policy.image_size[1]:g} px; {policy.epochs[0]:g} to {policy.epochs[1]:g} rounds",
    ]
    if policy.defences or policy.detectors:
        demanded = [*map(str, policy.defences), *map(str, policy.detectors)]
        lines.append(f"demands {', '.join(demanded)}")
    forbidden = [
        f"policy {rule}: the training set must have at least {least}, got {got}; add images, or change {path}"
        for rule, least, got in (
            ("least_patients", policy.least_patients, patients),
            ("least_images", policy.least_images, images),
        )
        if got < least
    ]
    if forbidden:
        lines[0] = lines[0].replace(" allows ", " forbids: ", 1)
    if complaint := outside(policy, "image_size", options.image_size):
        forbidden.append(f"policy {complaint}; try another --image-size, or change {path}")
    if not fitting:
        forbidden.append(f"policy nets: none is for {task}; add one to {path}")
    if images >= policy.least_images and images < policy.batch_size[0]:
        forbidden.append(
            f"policy batch_size: a batch must have at least {policy.batch_size[0]:g} images, and there are {images} to "
            f"train on; add images, or change {path}"
        )
    return lines, forbidden
