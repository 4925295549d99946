"""Seconds from the SIGKILL of a member to the next batch of anybody, over `suture serve` and `suture join`.

    python tests/integration/takeover.py [REPEATS]      (default 3; about half a minute each)

A measurement, no test: two sites train a U-Net of width 4 as in tests/integration/faults, started as people do, and
again a quarter of a second after they were killed. The server is killed, and the site that holds the turn; the next line
of a batch in metrics.jsonl tells when training went on.
"""

import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from sites import METRICS, Sites

SITES = ("ward_a", "ward_b")
OPTIONS = {
    "data": "chest-phantom",
    "model": "unet",
    "width": 4,
    "image_size": 32,
    "train_images": 60,
    "batch_size": 3,
    "epochs": 60,
}


def main() -> None:
    """Prints a line for the server and one for a site."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="suture-takeover-") as folder:
        here = Sites(Path(folder), **OPTIONS)
        try:
            here.serve("--clients", str(len(SITES)))
            for name in SITES:
                here.join(name)
            here.until(lambda: here.turns() >= len(SITES))
            for who in ("server", "site"):
                taken = [_seconds_lost(here, who) for _ in range(repeats)]
                every = ", ".join(f"{seconds:.2f}" for seconds in taken)
                print(
                    f"{who} killed: {statistics.median(taken):.2f} s to the next batch ({every})", flush=True
                )
        finally:
            here.stop()


def _seconds_lost(here: Sites, who: str) -> float:
    """Kills the server, or the site whose turn it is, once everybody has trained again since the last time."""
    turns, places = here.turns(), {site: here.events("joined", site) for site in SITES}
    here.until(lambda: here.turns() >= turns + 2 * len(SITES))
    struck = "server" if who == "server" else _batches(here)[-1]["client"]
    killed = time.monotonic()
    here.member(struck).send_signal(signal.SIGKILL)
    in_flight = time.monotonic() + 0.05  # a batch that was under way is none that came after
    here.until(lambda: time.monotonic() > in_flight)
    before = len(_batches(here))
    here.until(lambda: len(_batches(here)) > before)
    seconds = time.monotonic() - killed
    back = SITES if who == "server" else (struck,)
    here.until(lambda: all(here.events("joined", site) > places[site] for site in back))
    return seconds


def _batches(here: Sites) -> list[dict]:
    whole = (here.run / METRICS).read_text().rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line.get("phase") == "train"]


if __name__ == "__main__":
    main()
