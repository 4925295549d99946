"""Whose images a figure shows: what a CC BY licence asks for, for the sets that experiments take by default."""

from __future__ import annotations

from suture.models.plugins import split
from suture.studies.experiments.runs.setting import ROLES

_BY_ROLE = {
    "photographs": (
        "Photographs: Indian Diabetic Retinopathy Image Dataset (IDRiD), Porwal, Pachade, Kokare 2018, "
        "doi 10.3390/data3030025, CC BY 4.0; cropped, padded and made smaller here."
    ),
    "lungs": (
        "X-rays: COVID-19 Image Data Collection (Cohen et al. 2020, arXiv:2006.11988), of it Winther et al., Hannover "
        "Medical School, doi 10.6084/m9.figshare.12275009, CC BY 3.0, and BMC and Thno articles, CC BY 4.0; masks: V7 "
        "Labs, CC BY 4.0; padded and made smaller here."
    ),
    "digits": "Digits: MNIST, LeCun et al., CC BY-SA 3.0.",
}


def attribution(role: str, spec: str) -> str:
    """The sentence below a figure.

    Args:
        role: of the data.
        spec: what the images were taken from.
    """
    if spec == ROLES[role][0]:
        return _BY_ROLE[role]
    name = split(spec)[0]
    return "Drawn images." if name.endswith("-phantom") else f"Images: {name}."
