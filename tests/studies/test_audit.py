"""The audit: its plan, what it makes of results, and a tiny one from end to end."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from suture.launch.options.options import AskedOptions
from suture.runtime.errors import ConfigError, SutureError
from suture.runtime.state.handoff import parse_key
from suture.studies.audit.page import to_markdown, verdicts
from suture.studies.audit.plan import (
    MOST_STRENGTHS,
    STRENGTHS,
    Point,
    fitting_strengths,
    parse_cuts,
    parse_defences,
    points,
)
from suture.studies.audit.point import Means, options_of
from suture.studies.audit.report import grouped, has_converged, is_void, to_csv
from suture.studies.audit.run import AuditConfig, audit_options, run_audit, seed_key
from suture.studies.statistics import share_interval
from suture.threats.registry import DEFENCES


def _result(
    defence: str, rank: int, seed: int, metric: float, static: float, adaptive: float
) -> dict[str, Any]:
    """A run whose attackers reach these SSIMs."""

    def scores(ssim: float) -> dict[str, float]:
        names = (
            "mse",
            "psnr",
            "reidentified",
            "mse_median",
            "ssim_median",
            "mse_worst_tenth",
            "ssim_worst_tenth",
        )
        return dict.fromkeys(names, 0.5) | {"ssim": ssim, "chance": 0.01, "num_images": 100.0}

    def attacker(ssim: float) -> dict[str, Any]:
        rows = {"attack": scores(ssim), "mean image": scores(0.3)}
        rows["shuffled pairs"] = scores(0.3) | {"reidentified": 0.01}
        return {
            "scores": {"held_out": rows, "train": copy.deepcopy(rows)}, "stopped": "", "cpu_seconds": 1.0,
            "learning": {"ended": "plateau", "budget": "150 passes", "curve": []},
        }  # fmt: skip

    return {
        "cut": "4",
        "family": defence.partition(":")[0],
        "defence": defence,
        "rank": rank,
        "seed": seed,
        "metric_name": "accuracy",
        "metric": metric,
        "majority": 0.5,
        "void": is_void(metric, 0.5),
        "attackers": {"static": attacker(static), "adaptive": attacker(adaptive)},
        "key": f"key{seed}",
        "weights_sha256": "",
        "seconds": 1.0,
    }


@pytest.mark.parametrize("name", DEFENCES)
def test_every_registered_defence_has_five_strengths_that_it_accepts(name: str) -> None:
    """Oracle: the registry parses each; rule 6 asks for five."""
    assert len(STRENGTHS[name]) == MOST_STRENGTHS
    configs = [DEFENCES.parse(f"{name}:{strength}").config for strength in STRENGTHS[name]]
    assert len(set(configs)) == MOST_STRENGTHS


def test_defences_are_named_bare_or_as_whole_specs() -> None:
    """Oracle: commas inside a SPEC do not part it."""
    text = "none,dcor,noise:kind=laplace,clip=1,dropout:p=0.2+quantise"
    assert parse_defences(text) == ("none", "dcor", "noise:kind=laplace,clip=1", "dropout:p=0.2+quantise")
    assert parse_cuts(" 1, 3,layer2 ") == ("1", "3", "layer2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "defences names nothing"),
        ("none,fog", "unknown defence 'fog'; known: dcor"),
        ("noise,noise", "noise is named 2 times"),
        ("noise:scale=-1", "scale must be at least 0"),
    ],
)
def test_defences_that_cannot_be_audited_are_refused(text: str, message: str) -> None:
    """Oracle: the message, before anything is run."""
    with pytest.raises(ConfigError, match=message):
        parse_defences(text)


def test_the_plan_covers_everything_once_and_says_something_about_each_defence_early() -> None:
    """Oracle: counting; undefended runs first, then the middle strength of every cut and defence."""
    plan = points(("1", "3"), ("none", "dcor", "noise:scale=3"), range(3), MOST_STRENGTHS)
    assert len(plan) == len({point.name for point in plan}) == 2 * 3 * (1 + 5 + 1)
    assert all(point.defence == "none" for point in plan[:6])
    assert {(point.cut, point.family) for point in plan[6:18]} == {
        (cut, family) for cut in ("1", "3") for family in ("dcor", "noise:scale=3")
    }
    assert [point.defence for point in plan if point.family == "dcor"][::6] == [
        f"dcor:alpha={alpha}" for alpha in ("1", "10", "0.1", "3", "0.3")
    ]


def test_the_budget_chooses_as_many_strengths_as_fit() -> None:
    """Oracle: 1 undefended and s strengths, 3 seeds, 60 s each: 5 strengths need 18 minutes, 2 need 9."""
    given = (("1",), ("none", "noise"), range(3), 60.0)
    assert fitting_strengths(*given, 18 * 60) == 5
    assert fitting_strengths(*given, 18 * 60 - 1) == 4
    assert fitting_strengths(*given, 9 * 60) == 2
    assert fitting_strengths(*given, 1) == 1


@pytest.mark.parametrize(
    ("metric", "majority", "void"),
    [(0.52, 0.5, True), (0.53, 0.5, False), (0.4, 0.5, True), (0.1, None, False)],
)
def test_a_classifier_within_two_points_of_the_majority_class_is_void(
    metric: float, majority: float | None, void: bool
) -> None:
    """Oracle: rule 6."""
    assert is_void(metric, majority) is void


def test_a_group_is_judged_by_the_stronger_attacker_seed_by_seed() -> None:
    """Oracle: by hand; the larger of the two in each seed, then mean, smallest, largest; of shares `share_interval`."""
    (group,) = grouped(
        [_result("noise:scale=1", 2, 0, 0.9, 0.2, 0.6), _result("noise:scale=1", 2, 1, 0.8, 0.4, 0.2)]
    )
    assert group.worst("ssim") == pytest.approx((0.5, 0.4, 0.6))
    assert group.metric == share_interval([0.9, 0.8]) and group.metric[0] == pytest.approx(0.85)
    assert group.worst("reidentified") == share_interval([0.5, 0.5], 100)


def test_void_points_are_marked_and_never_recommended() -> None:
    """Oracle: the strongest setting hides most and is void; the verdict names the one below it."""
    results = [
        _result("none", 0, 0, 0.95, 0.8, 0.9),
        _result("noise:scale=1", 2, 0, 0.9, 0.3, 0.6),
        _result("noise:scale=4", 4, 0, 0.51, 0.1, 0.1),
        _result("dcor:alpha=10", 4, 0, 0.5, 0.1, 0.1),
    ]
    noise, dcor = verdicts(grouped(results))
    assert "`noise:scale=1`, SSIM 0.600" in noise
    assert noise.startswith("**Descriptive only** (1 of at least 5 keys). Cut 4, noise: at best")
    assert "the static attacker alone would suggest SSIM 0.300" in noise
    assert "void at every strength tried" in dcor
    about: dict[str, Any] = dict.fromkeys(
        ("command", "model", "data", "image_size", "clients", "train_images", "epochs", "aux_images"), "x"
    )
    about |= {"done": 4, "planned": 9, "attackers": Means().parameters()}
    page = to_markdown(results, about, "frontier.png", {})
    assert page.count("**1 of 1**") == 2
    # The long table: each of four defences, static and adaptive and the mean image, on two sets of images.
    assert page.count("| *mean image* |") == 4 * 2
    assert "mean image MSE 0.5000 and SSIM 0.300" in page


def _five(change: Callable[[dict[str, Any], int], None] = lambda result, seed: None) -> list[str]:
    """What is said of a defence over five seeds that ``change`` has spoilt."""
    results = [_result("noise:scale=1", 2, seed, 0.9, 0.3, 0.6) for seed in range(5)]
    for seed, result in enumerate(results):
        change(result, seed)
    return verdicts(grouped(results))


def test_a_verdict_needs_five_keys_a_plateau_and_a_control_that_falls() -> None:
    """Oracle: five sound results have a plain verdict; each fault, planted, takes it away or says what it is worth."""
    (said,) = _five()
    assert said.startswith("Cut 4, noise: at best `noise:scale=1`")

    def cut_short(result: dict[str, Any], seed: int) -> None:
        if seed == 3:
            result["attackers"]["static"]["learning"]["ended"] = "still learning"

    def control_reads(result: dict[str, Any], seed: int) -> None:
        result["attackers"]["adaptive"]["scores"]["held_out"]["shuffled pairs"]["mse"] = 0.4

    def control_names(result: dict[str, Any], seed: int) -> None:
        result["attackers"]["adaptive"]["scores"]["held_out"]["shuffled pairs"]["reidentified"] = 0.2

    def no_control(result: dict[str, Any], seed: int) -> None:
        del result["attackers"]["adaptive"]["scores"]["held_out"]["shuffled pairs"]

    def one_key(result: dict[str, Any], seed: int) -> None:
        result["key"] = "the same"

    def old(result: dict[str, Any], seed: int) -> None:
        del result["key"]

    fallen = "**no verdict**, for `noise:scale=1`: a decoder trained on shuffled pairs does not fall to the mean image."
    assert _five(cut_short)[0].endswith("still learning when its budget ended: the static attacker.")
    assert "SSIM" not in _five(cut_short)[0] and "**no verdict**" in _five(cut_short)[0]
    assert all(fallen in _five(fault)[0] for fault in (control_reads, control_names, no_control))
    for fault in (one_key, old):
        assert _five(fault)[0].startswith("**Descriptive only** (its seeds share one key). ")


@pytest.mark.parametrize(
    ("by_round", "converged"),
    [
        ([0.5, 0.7, 0.8, 0.9, 0.9, 0.9], False),
        ([0.5, 0.8, 0.9, 0.9, 0.9, 0.905], True),
        ([0.9, 0.9, 0.9], True),
        ([0.9, 0.9], False),
        ([], False),
        ([0.5, 0.6, 0.7], False),
    ],
)
def test_a_victim_that_still_gains_has_not_converged(by_round: list[float], converged: bool) -> None:
    """Oracle: by hand: thirds of the rounds, a point."""
    assert has_converged(by_round) is converged


def test_each_seed_has_a_key_of_its_own() -> None:
    """Oracle: they differ, are the same each time, and are hand-off keys."""
    keys = [seed_key("ab" * 32, seed) for seed in range(5)]
    assert len({*keys, "ab" * 32}) == 6 and keys == [seed_key("ab" * 32, seed) for seed in range(5)]
    assert all(len(parse_key(key, "")) == 32 for key in keys)


def test_the_csv_has_a_line_for_every_run_attacker_set_and_row() -> None:
    """Oracle: counting and reading back."""
    rows = list(csv.DictReader(io.StringIO(to_csv([_result("none", 0, 3, 0.95, 0.8, 0.9)]))))
    assert len(rows) == 2 * 2 * 3
    chosen = [
        row
        for row in rows
        if (row["attacker"], row["images"], row["row"]) == ("adaptive", "held_out", "attack")
    ]
    assert [float(row["ssim"]) for row in chosen] == [0.9]


@pytest.mark.parametrize("given", [{"attack": "fsha"}, {"defence": "noise"}, {"unsplit": True}])
def test_an_audit_brings_attacks_and_defences_itself(given: dict[str, Any]) -> None:
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="an audit brings attacks and defences itself"):
        audit_options(AskedOptions(**given))


def test_effort_makes_both_attackers_train_longer_and_changes_nothing_else() -> None:
    """Oracle: the SPECs of the attacks; too little is refused."""
    point, base = Point("4", "none", "none", 0, 0), AskedOptions(held_out_images=8)
    one, four = (options_of(point, base, Means(aux_images=9, effort=n), "adaptive") for n in (1, 4))
    assert one.attack is not None and "epochs=150" in one.attack
    assert four.attack == one.attack.replace("epochs=150", "epochs=600")
    with pytest.raises(ConfigError, match="effort must be at least 1, got 0"):
        Means(effort=0)


def test_what_a_person_sets_wins_over_the_audits_defaults() -> None:
    """Oracle: the options."""
    options = audit_options(AskedOptions(epochs=9, model="resnet34"))
    assert (options.epochs, options.model, options.image_size) == (9, "resnet34", 32)


def test_a_tiny_audit_goes_on_where_it_stopped_and_refuses_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the files; a finished point is not run again, a missing one is, with the same weights."""
    options = AskedOptions(
        data="fundus-phantom",
        image_size=16,
        clients=1,
        train_images=16,
        test_images=8,
        held_out_images=8,
        epochs=3,
        batch_size=8,
        threads=1,
    )
    config = AuditConfig(
        cuts=("4",), families=("none", "quantise:bits=1"), num_seeds=1, means=Means(aux_images=16)
    )
    run_audit(config, options, tmp_path)
    names = [Point("4", "none", "none", 0, 0).name, "cut4_quantise_bits=1_seed0"]
    files = [tmp_path / "points" / f"{name}.json" for name in names]
    before = [json.loads(file.read_text()) for file in files]
    for name in ("audit.csv", "audit.md", "frontier.png", "pictures_cut4.png"):
        assert (tmp_path / name).stat().st_size > 0
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    run_audit(config, options, tmp_path)
    again = [json.loads(file.read_text()) for file in files]
    assert files[0].stat().st_mtime_ns == kept
    assert again[1]["weights_sha256"] == before[1]["weights_sha256"]
    assert again[1]["attackers"]["adaptive"]["scores"] == before[1]["attackers"]["adaptive"]["scores"]
    scores = again[1]["attackers"]["static"]["scores"]["held_out"]
    assert {"attack", "mean image", "shuffled", "untrained client"} <= set(scores)
    adaptive = again[1]["attackers"]["adaptive"]
    control = adaptive["scores"]["held_out"]
    assert control["shuffled pairs"]["mse"] > 0.8 * control["mean image"]["mse"]
    assert adaptive["learning"]["ended"] in ("plateau", "still learning") and adaptive["steps"] > 0
    assert len(again[1]["metric_by_round"]) == 3 and set(again[1]["attackers"]) == {"static", "adaptive"}
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in scores.values())
    with pytest.raises(ConfigError, match="holds an audit with other options"):
        run_audit(config, AskedOptions(**{**vars(options), "epochs": 4}), tmp_path)


def test_an_audit_whose_second_run_fails_reports_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: table and picture of the run that ended, and the error; pictures are not drawn after every run."""
    ended = [_result("none", 0, 0, 0.95, 0.8, 0.9)]

    def play(*arguments: Any) -> dict[str, Any]:
        if not ended:
            raise SutureError("the second run fails")
        assert not (tmp_path / "frontier.png").exists()
        return ended.pop()

    monkeypatch.setattr("suture.studies.audit.run.run_point", play)
    config = AuditConfig(cuts=("4",), families=("none",), num_seeds=2, means=Means(aux_images=16))
    with pytest.raises(SutureError, match="the second run fails"):
        run_audit(config, AskedOptions(clients=1, threads=1), tmp_path)
    assert "1 of 2 runs are done" in (tmp_path / "audit.md").read_text()
    assert (tmp_path / "frontier.png").stat().st_size > 0


def test_the_frontier_is_drawn_with_void_points_and_without_a_majority_class(tmp_path: Path) -> None:
    """Oracle: a PNG of the size asked for, for one cut and for two, and nothing left beside it."""
    from PIL import Image

    from suture.launch.output.figures.frontier import Dot, Lines, frontier

    def dot(cut: str, family: str, rank: int, is_void: bool) -> Dot:
        return Dot(cut, family, rank, (0.9, 0.8, 1.0), (0.5, 0.4, 0.6), (0.2, 0.1, 0.3), is_void)

    for cuts in (("1",), ("1", "layer2")):
        dots = [
            dot(cut, family, rank, rank > 0)
            for cut in cuts
            for family in ("none", "noise")
            for rank in (0, 1)
        ]
        path = tmp_path / "frontier.png"
        frontier(dots, dict.fromkeys(cuts, Lines(0.3, 0.01, None)), path, metric="dice", caption="caption")
        with Image.open(path) as image:
            assert image.size == (round(150 * max(6.5, 4.2 * len(cuts))), 1080)
        assert list(tmp_path.iterdir()) == [path]
