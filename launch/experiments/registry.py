"""The experiments by name."""

from __future__ import annotations

from launch.experiments.adra import Adra
from launch.experiments.clients import Clients
from launch.experiments.cut_layer import CutLayer
from launch.experiments.exchanges import Exchanges
from launch.experiments.experiment import Experiment
from launch.experiments.fsha import Fsha
from launch.experiments.schedules import Schedules
from launch.experiments.split_vs_central import SplitVsCentral
from launch.experiments.unet_cut import UnetCut
from runtime.errors import ConfigError

ALL = "all"
STUDY = (CutLayer(), Clients(), UnetCut(), Fsha(), Adra(), SplitVsCentral())
"""What ``all`` runs: the published study, and the question that it did not ask."""
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (*STUDY, Schedules(), Exchanges())
}


def chosen(name: str) -> list[Experiment]:
    """One experiment, or all.

    Raises:
        ConfigError: there is none of that name; the known ones are listed.
    """
    if name == ALL:
        return list(STUDY)
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment must be one of {', '.join(EXPERIMENTS)}, all; got {name!r}")
    return [EXPERIMENTS[name]]
