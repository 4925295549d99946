"""Every attack, defence and detector by name: what ``--attack``, ``--defence`` and ``--detector`` can say.

A new one is a file of its own and an entry here; ``--help``, the parser and the tests that run over all entries
follow. One that is not in this repository needs no entry: see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable

from suture.runtime.hooks import Attack, Defence, Detector
from suture.threats.attacks.adra.attack import AdraAttack, AdraConfig
from suture.threats.attacks.fsha.attack import FshaAttack
from suture.threats.attacks.fsha.config import FshaConfig
from suture.threats.attacks.label_inference.attack import LabelInferenceAttack, LabelInferenceConfig
from suture.threats.attacks.live import LiveAttack
from suture.threats.client_view import ClientView
from suture.threats.defences.compose import ComposedDefence
from suture.threats.defences.dcor import DcorConfig, DcorDefence
from suture.threats.defences.dropout import DropoutConfig, DropoutDefence
from suture.threats.defences.noise import NoiseConfig, NoiseDefence
from suture.threats.defences.proxy import ProxyConfig, ProxyDefence
from suture.threats.defences.quantise import QuantiseConfig, QuantiseDefence
from suture.threats.detectors.gradient_scrutinizer import GradientScrutinizer, ScrutinizerConfig
from suture.threats.detectors.splitguard import SplitguardConfig, SplitguardDetector
from suture.threats.plugin import Entry, Registry, Spec

__all__ = ["ATTACKS", "DEFENCES", "DETECTORS", "build_defence", "build_detector"]

ATTACKS: Registry[Attack] = Registry(
    "attack",
    (
        Entry(
            name="fsha",
            summary="active: trains the clients' bottom into a feature space that the server can decode",
            paper="Pasquini, Ateniese, Bernaschi, CCS 2021, arXiv:2012.02670",
            plugin=FshaAttack,
            config=FshaConfig,
        ),
        Entry(
            name="adra",
            summary="passive: a decoder from smashed data to images, trained on leaked, queried or shadow pairs",
            paper="after Li et al. 2023, arXiv:2308.11027",
            plugin=AdraAttack,
            config=AdraConfig,
        ),
        Entry(
            name="label-inference",
            summary="passive: the labels that stay at home, from the gradients that clients send back",
            paper="Liu, Lyu, Wang, Wu 2022, arXiv:2203.05222",
            plugin=LabelInferenceAttack,
            config=LabelInferenceConfig,
        ),
    ),
    LiveAttack,
)

DEFENCES: Registry[Defence] = Registry(
    "defence",
    (
        Entry(
            name="dcor",
            summary="distance correlation of images and smashed data as a second loss (NoPeek)",
            paper="Vepakomma et al., ICDM Workshops 2020, arXiv:2008.09161",
            plugin=DcorDefence,
            config=DcorConfig,
        ),
        Entry(
            name="proxy",
            summary="the client trains an inverter of its own and the bottom against it",
            paper="Li et al. (ResSFL), CVPR 2022, arXiv:2205.04007",
            plugin=ProxyDefence,
            config=ProxyConfig,
        ),
        Entry(
            name="noise",
            summary="Gaussian noise on smashed data, or Laplace noise on clipped values",
            paper="Titcombe et al., 2021, arXiv:2104.05743",
            plugin=NoiseDefence,
            config=NoiseConfig,
        ),
        Entry(
            name="quantise",
            summary="smashed data rounded to 2**bits levels, gradient straight through",
            paper="Pham et al., IEEE TIFS 2023, arXiv:2206.04864",
            plugin=QuantiseDefence,
            config=QuantiseConfig,
        ),
        Entry(
            name="dropout",
            summary="whole channels of smashed data left out at random",
            paper="He, Zhang, Lee, IEEE Internet of Things Journal 2021",
            plugin=DropoutDefence,
            config=DropoutConfig,
        ),
    ),
    Defence,
)

DETECTORS: Registry[Detector] = Registry(
    "detector",
    (
        Entry(
            name="splitguard",
            summary="now and then a batch with wrong labels, which an honest server must answer otherwise",
            paper="Erdogan, Küpçü, Cicek, WPES 2022, arXiv:2108.09052",
            plugin=SplitguardDetector,
            config=SplitguardConfig,
        ),
        Entry(
            name="gradient-scrutinizer",
            summary="gradients of one class against those of different classes",
            paper="Fu et al., NDSS 2023",
            plugin=GradientScrutinizer,
            config=ScrutinizerConfig,
        ),
    ),
    Detector,
)


def build_defence(
    specs: tuple[Spec[Defence], ...],
    view: ClientView,
    seed_weights: Callable[[str], None] = lambda name: None,
) -> Defence:
    """The defences of a chain as one, in the order in which they are written.

    Args:
        specs: of ``DEFENCES.parse_chain``; the empty chain is the undefended client.
        view: the client's own run.
        seed_weights: is called with a defence's name before that is built, and puts torch's default generator
            where its initial weights are to come from.
    """
    parts = {}
    for spec in specs:
        seed_weights(spec.entry.name)
        parts[spec.entry.name] = spec.entry.plugin(spec.config, view)
    if len(parts) == 1:
        return next(iter(parts.values()))
    return ComposedDefence(parts) if parts else Defence()


def build_detector(spec: Spec[Detector] | None, view: ClientView) -> Detector:
    """The detector that was asked for; None is the one that sees nothing.

    Raises:
        ConfigError: it cannot work on this run (labels, task).
    """
    return Detector() if spec is None else spec.entry.plugin(spec.config, view)
