"""What sites drew their runs from, read where they keep it, to play the same turns again in one process; and the exit
codes after which a site is not started again.
"""

import json
from pathlib import Path

from suture.launch.build import SiteOwn
from suture.launch.site.secret import run_secret
from suture.runtime.records.tracking import METRICS_FILE, read_events

ANY_SIZE = (
    "least_patients = 0\nleast_images = 0\nrepeats = 50\nbatch_size = [2, 512]\nimage_size = [8, 512]\n"
)
"""A policy for runs of a few drawn images, which are interrupted again and again."""


def _final() -> set[int]:
    unit = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "suture-join@.service"
    (codes,) = [
        line for line in unit.read_text().splitlines() if line.startswith("RestartPreventExitStatus=")
    ]
    return {0, *map(int, codes.partition("=")[2].split())}


FINAL = _final()
"""Exit codes after which systemd leaves a site alone: it is done, or only a person can mend it."""


def own_of(kits: Path, run: Path, name: str) -> SiteOwn:
    """What a site drew everything from but the initial weights."""
    return SiteOwn(run_secret(kits / name / "state", name, _run_id(run)), None, None)


def initial_secret(kits: Path, run: Path) -> bytes:
    """What the initial weights were drawn from: the secret of the site that made the first hand-off key, or made it
    anew.
    """
    events = read_events(run / METRICS_FILE)
    founders = [e["client"] for e in events if e["event"] == "epoch" and e["number"] == 1]
    return own_of(kits, run, founders[-1]).secret


def _run_id(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["run"])
