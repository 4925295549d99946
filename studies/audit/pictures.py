"""An audit's pictures: the frontier, and for each cut what its attackers saw beside the truth.

points/NAME.npz holds a few held-out images of one run and what the attackers made of them, uint8 (N, C, H, W).

Shape legend: N images; C, H, W image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suture.launch.output.figures.attacks import gallery
from suture.launch.output.figures.frontier import Dot, Lines, frontier
from suture.studies.audit.report import VOID_MARGIN, Group, strongest_alive
from suture.threats.judging.judge import Verdict

FRONTIER = "frontier.png"
_NUM_SHOWN = 8


def keep_samples(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Writes the first held-out images of the first client, and every attacker's answer to them.

    Args:
        path: NPZ to write.
        verdicts: by attacker, of one run.
    """
    kept: dict[str, Tensor] = {}
    for name, verdict in verdicts.items():
        by_round = next(iter(verdict.pairs.values()))
        pairs = by_round.get(verdict.chosen_round) or by_round[max(by_round)]
        kept |= {
            "truth": pairs.truth[:_NUM_SHOWN],
            name: pairs.rebuilt[:_NUM_SHOWN],
            "mean image": verdict.mean,
        }
    bytes_of = {name: images.mul(255).round().clamp(0, 255).to(torch.uint8) for name, images in kept.items()}
    np.savez_compressed(path, **{name: images.numpy() for name, images in bytes_of.items()})  # type: ignore[arg-type]


def gallery_name(cut: str) -> str:
    """File name of a cut's picture."""
    return re.sub(r"[^\w.-]+", "_", f"pictures_cut{cut}.png")


def draw_gallery(groups: Sequence[Group], samples: Mapping[str, Path], path: Path, *, caption: str) -> None:
    """One cut: the truth, then a row an attacker of the undefended run and of each defence, then the mean image.

    A defence is shown at the strength that the audit names for it (`strongest_alive`), void if there is no other.

    Args:
        groups: of one cut.
        samples: by defence, what `keep_samples` wrote in runs of one seed; a defence without is left out.
        path: PNG to write.
        caption: written below.
    """
    rows: list[tuple[str, Tensor]] = []
    mean = None
    for family in dict.fromkeys(group.family for group in groups):
        group = strongest_alive([own for own in groups if own.family == family])
        file = samples.get(group.defence)
        if file is None or not file.exists():
            continue
        with np.load(file) as found:
            images = {name: torch.from_numpy(found[name]).float() / 255 for name in found.files}
        truth, mean = images.pop("truth"), images.pop("mean image")
        if not rows:
            rows.append(("truth", truth))
        void = " (void)" if group.is_void else ""
        named = "undefended" if family == "none" else group.defence
        rows += [(f"{named}{void}\n{attacker}", rebuilt) for attacker, rebuilt in images.items()]
    if mean is not None:
        rows.append(("mean image", mean.expand_as(rows[0][1])))
        gallery(
            rows,
            path,
            title=f"cut {groups[0].cut}: held-out images as the server can rebuild them",
            caption=caption,
        )


def draw_frontier(groups: Sequence[Group], path: Path, *, caption: str) -> None:
    """Task metric against what the stronger attacker gets, see `frontier`."""
    lines = {}
    for group in reversed(groups):
        majority = group.results[0]["majority"]
        void_up_to = None if majority is None else float(majority) + VOID_MARGIN
        chance = group.leak("chance", "static")[0]
        lines[group.cut] = Lines(group.leak("ssim", "static", row="mean image")[0], chance, void_up_to)
    frontier(
        [
            Dot(g.cut, g.family, g.rank, g.metric, g.worst("ssim"), g.worst("reidentified"), g.is_void)
            for g in groups
        ],
        lines,
        path,
        metric=str(groups[0].results[0]["metric_name"]),
        caption=caption,
    )
