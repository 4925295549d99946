"""The experiments by name."""

from __future__ import annotations

from suture.runtime.errors import ConfigError
from suture.studies.experiments.experiment import Experiment
from suture.studies.experiments.questions.adra import Adra
from suture.studies.experiments.questions.clients import Clients
from suture.studies.experiments.questions.cut_layer import CutLayer
from suture.studies.experiments.questions.exchanges import Exchanges
from suture.studies.experiments.questions.fsha import Fsha
from suture.studies.experiments.questions.schedules import Schedules
from suture.studies.experiments.questions.split_vs_central import SplitVsCentral
from suture.studies.experiments.questions.unet_cut import UnetCut

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
