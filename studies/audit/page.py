"""audit.md: a table a cut that a hospital can read, what it says, and every column of the judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from suture.launch.output.table import Table, bullets
from suture.studies.audit.report import (
    KINDS,
    MEASURES,
    Group,
    Interval,
    Result,
    grouped,
    objections,
    strongest_alive,
)

_SHOWN = {"held_out": "held-out", "train": "training"}
_BESIDE = ("mean image", "shuffled", "shuffled pairs", "untrained client")
_DIGITS = {"psnr": 1, "mse": 4, "mse_median": 4, "mse_worst_tenth": 4}


def to_markdown(
    results: Sequence[Result], about: Mapping[str, Any], frontier: str, galleries: Mapping[str, str]
) -> str:
    """The page: page.md, filled.

    Args:
        results: run by run.
        about: what was run.
        frontier: file name of the frontier's picture.
        galleries: by cut, of the reconstructions; a cut without has none.
    """
    by_cut: dict[str, list[Group]] = {}
    for group in grouped(results):
        by_cut.setdefault(group.cut, []).append(group)
    scores = results[0]["attackers"]["static"]["scores"]["held_out"]["attack"]
    return (
        (files(__package__) / "page.md")
        .read_text(encoding="utf-8")
        .format(
            **about,
            ended=f"; {about['note']}" if about.get("note") else "",
            num_images=scores["num_images"],
            frontier=frontier,
            cuts="\n".join(_of_cut(cut, groups, galleries) for cut, groups in by_cut.items()).rstrip(),
            verdicts=bullets(verdicts(grouped(results))),
            columns="\n".join(
                _every_column(cut, groups).to_markdown(level=3) for cut, groups in by_cut.items()
            ),
        )
    )


def _of_cut(cut: str, groups: Sequence[Group], galleries: Mapping[str, str]) -> str:
    mean_mse, mean_ssim = (groups[0].leak(name, "static", row="mean image")[0] for name in ("mse", "ssim"))
    chance = float(groups[0].results[0]["attackers"]["static"]["scores"]["held_out"]["attack"]["chance"])
    majorities = [result["majority"] for group in groups for result in group.results]
    majority = "" if None in majorities else f"majority class {sum(majorities) / len(majorities):.3f}, "
    parts = [
        f"## Cut {cut}",
        f"Beside it: {majority}mean image MSE {mean_mse:.4f} and SSIM {mean_ssim:.3f}, re-identification by chance "
        f"{chance:.3f}.",
        Table([_cells(group) for group in groups]).to_markdown().rstrip(),
    ]
    if cut in galleries:
        parts.append(f"![truth over reconstruction, cut {cut}]({galleries[cut]})")
    return "\n\n".join(parts) + "\n"


def _cells(group: Group) -> dict[str, object]:
    return {
        "defence": group.defence,
        group.results[0]["metric_name"]: _shown(group.metric, 3),
        "MSE static": _shown(group.leak("mse", "static"), 4),
        "MSE adaptive": _shown(group.leak("mse", "adaptive"), 4),
        "SSIM static": _shown(group.leak("ssim", "static"), 3),
        "SSIM adaptive": _shown(group.leak("ssim", "adaptive"), 3),
        "worst tenth SSIM, adaptive": _shown(group.leak("ssim_worst_tenth", "adaptive"), 3),
        "re-identified static": _shown(group.leak("reidentified", "static"), 2),
        "re-identified adaptive": _shown(group.leak("reidentified", "adaptive"), 2),
        "in training, SSIM adaptive": _shown(group.leak("ssim", "adaptive", kind="train"), 3),
        "void": f"**{group.num_void} of {len(group.results)}**" if group.num_void else "",
    }


def verdicts(groups: Sequence[Group]) -> list[str]:
    """A sentence a cut and defence, on the strongest setting that keeps the classifier alive."""
    said = []
    for cut in dict.fromkeys(group.cut for group in groups):
        here = [group for group in groups if group.cut == cut]
        plain = next((group for group in here if group.family == "none"), None)
        for family in dict.fromkeys(group.family for group in here if group.family != "none"):
            best = strongest_alive([group for group in here if group.family == family])
            if best.num_void:
                said.append(f"Cut {cut}, {family}: **void at every strength tried**.")
                continue
            against, only = objections(best)
            if against:
                said.append(
                    f"Cut {cut}, {family}: **no verdict**, for `{best.defence}`: {'; '.join(against)}."
                )
                continue
            text = f"**Descriptive only** ({'; '.join(only)}). " if only else ""
            text += (
                f"Cut {cut}, {family}: at best `{best.defence}`, SSIM {best.worst('ssim')[0]:.3f} and "
                f"re-identification {best.worst('reidentified')[0]:.2f} under the stronger attacker, "
                f"{best.results[0]['metric_name']} {best.metric[0]:.3f}"
            )
            if plain is not None:
                text += (
                    f" (undefended {plain.worst('ssim')[0]:.3f}, {plain.worst('reidentified')[0]:.2f}, "
                    f"{plain.metric[0]:.3f})"
                )
            static = best.leak("ssim", "static")[0]
            if best.worst("ssim")[0] - static > 0.05:
                text += f"; the static attacker alone would suggest SSIM {static:.3f}"
            said.append(text + ".")
    return said


def _shown(interval: Interval, digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return mean if low == high else f"{mean} ({low} to {high})"


def _every_column(cut: str, groups: Sequence[Group]) -> Table:
    """Means over the seeds.

    The mean image, the attacker's answers to shuffled smashed data and to an untrained client stand below each
    defence, of the adaptive attacker; so each number has beside it what no smashed data would give.
    """
    rows: list[dict[str, object]] = []
    for group in groups:
        majority = group.results[0]["majority"]
        told = {
            "defence": group.defence,
            group.results[0]["metric_name"]: f"{group.metric[0]:.3f}",
            "majority": "" if majority is None else f"{majority:.3f}",
        }
        for kind in KINDS:
            for attacker, row in _rows(group, kind):
                named = {"images": _SHOWN[kind], "attacker": attacker if row == "attack" else f"*{row}*"}
                rows.append(told | named | _scores(group, attacker, kind, row))
                told = dict.fromkeys(told, "")
    return Table(rows, f"Cut {cut}")


def _rows(group: Group, kind: str) -> Iterator[tuple[str, str]]:
    attackers = list(group.results[0]["attackers"])
    yield from ((attacker, "attack") for attacker in attackers)
    last = group.results[0]["attackers"][attackers[-1]]["scores"].get(kind, {})
    yield from ((attackers[-1], row) for row in _BESIDE if row in last)


def _scores(group: Group, attacker: str, kind: str, row: str) -> dict[str, object]:
    means = {name: group.leak(name, attacker, kind=kind, row=row)[0] for name in MEASURES}
    return {name.replace("_", " "): f"{mean:.{_DIGITS.get(name, 3)}f}" for name, mean in means.items()}
