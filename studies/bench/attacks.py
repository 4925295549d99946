"""``suture bench attacks``: what every attack, defence and detector adds to the time of a training step.

All are alive at once in one process and take turns at single steps, in a new order each time, so that whatever else
the machine does hits all alike.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions
from suture.launch.output.table import Table
from suture.studies.bench.rigs.rig import WARM_UP, Rig, check_steps, over, times_in_turn
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS

PLAIN = "undefended, honest"
PLAIN_HOME = f"{PLAIN}, labels at home"
# What an attack does before the first step is not in a step's time: few images, little pre-training.
_ATTACKS = {"fsha": "aux_images=64,pretrain=2", "adra": "aux_images=64"}


def default_options() -> AskedOptions:
    """Drawn fundus photographs at 64 px, ResNet-18 cut at layer1: no files needed."""
    return AskedOptions(
        data="fundus-phantom", model="resnet18", cut="4", image_size=64, batch_size=16, exchange="local"
    )


def variants() -> dict[str, dict[str, str]]:
    """Name of a row to the options that make it: every entry of the registries at its defaults."""
    attacks: dict[str, dict[str, str]] = {PLAIN_HOME: {"labels": "home"}}
    for name in ATTACKS:
        spec = ":".join(filter(None, (name, _ATTACKS.get(name))))
        home = attacks[PLAIN_HOME] if ATTACKS.parse(spec).needs.output_gradient else {}
        attacks[f"attack {name}"] = {"attack": spec} | home
    defences = {f"defence {name}": {"defence": name} for name in DEFENCES}
    detectors = {f"detector {name}": {"detector": name} for name in DETECTORS}
    return {PLAIN: {}} | attacks | defences | detectors


def baseline(name: str) -> str:
    """The row that a row is compared with."""
    return PLAIN_HOME if "labels" in variants()[name] else PLAIN


def measure(options: AskedOptions, num_steps: int) -> dict[str, list[float]]:
    """Seconds of each step, by row.

    Raises:
        ConfigError: fewer steps than a median needs.
    """
    check_steps(num_steps)
    batch_size = options.batch_size or 16
    options = replace(
        options,
        clients=1,
        train_images=(num_steps + WARM_UP) * batch_size,
        validation_images=0,
        test_images=4,
        epochs=1,
    )
    with ExitStack() as stack:
        rigs = {}
        for name, changes in variants().items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-bench-"))
            rigs[name] = Rig(replace(options, **changes).resolved(), Path(folder))  # type: ignore[arg-type]
        return times_in_turn(rigs, num_steps)


def run_command(options: AskedOptions, num_steps: int) -> None:
    """``suture bench attacks``."""
    options = over(default_options(), options)
    ready_torch(options)
    times = measure(options, num_steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    resolved = replace(options, clients=1).resolved()
    title = (
        f"step times, {resolved.model} cut {resolved.cut}, {resolved.image_size} px, batch {resolved.batch_size}, "
        f"median of {num_steps} steps taken in turn"
    )
    rows = [
        {
            "": name,
            "seconds a step": f"{medians[name]:.3f}",
            "fastest and slowest": f"{min(values):.3f} to {max(values):.3f}",
            "ratio to undefended": f"{medians[name] / medians[baseline(name)]:.2f}",
        }
        for name, values in times.items()
    ]
    note = (
        "Each is compared with the honest run whose labels are where its own are. "
        "A passive attack records while training goes on and trains its decoder after the last round: that time is "
        "not in a step. SplitGuard's fake batches cost the client one step in ten, which it does not learn from."
    )
    Table(rows, title, [note]).print()
