"""The experiments by name."""

from __future__ import annotations

from suture.models.plugins import FORM, is_outside, nearest
from suture.runtime.errors import ConfigError
from suture.runtime.plugins import load
from suture.studies.experiments.experiment import Experiment
from suture.studies.experiments.questions.adra import Adra
from suture.studies.experiments.questions.clients import Clients
from suture.studies.experiments.questions.cut_layer import CutLayer
from suture.studies.experiments.questions.exchanges import Exchanges
from suture.studies.experiments.questions.fsha import Fsha
from suture.studies.experiments.questions.pretrained import Pretrained
from suture.studies.experiments.questions.pretrained_settings import PretrainedSettings
from suture.studies.experiments.questions.schedules import Schedules
from suture.studies.experiments.questions.split_vs_central import SplitVsCentral
from suture.studies.experiments.questions.unet_cut import UnetCut

ALL = "all"
STUDY = (CutLayer(), Clients(), UnetCut(), Fsha(), Adra(), SplitVsCentral())
"""What ``all`` runs: the published study, and the question that it did not ask."""
KIND = "experiment"


class _ByName(dict[str, Experiment]):
    """Those of this repository; one's own is found as well, but not listed."""

    def __missing__(self, name: str) -> Experiment:
        if not is_outside(KIND, name):
            near = nearest(name, [*self, ALL])
            raise ConfigError(f"experiment must be one of {', '.join(self)}, {FORM}, all; got {name!r}{near}")
        found = load(KIND, name)
        if not isinstance(found, type) or not issubclass(found, Experiment):
            raise ConfigError(
                f"experiment {name}: must be a class that extends Experiment, got {found!r:.80}"
            )
        # A run finds its experiment by the name that its settings keep.
        made: Experiment = type(found.__name__, (found,), {"name": name})()
        return made


EXPERIMENTS: dict[str, Experiment] = _ByName(
    {
        experiment.name: experiment
        for experiment in (*STUDY, Schedules(), Exchanges(), PretrainedSettings(), Pretrained())
    }
)


def chosen(name: str) -> list[Experiment]:
    """One experiment, or all.

    Raises:
        ConfigError: there is none of that name; the known ones are listed.
    """
    return list(STUDY) if name == ALL else [EXPERIMENTS[name]]
