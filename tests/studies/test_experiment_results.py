"""What experiments make of results: intervals, tables and the comparison of weights.

Oracle: Student's t by hand; results made up here, whose means can be worked out by hand.
"""

import csv
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.launch.output.table import Table
from suture.studies.experiments.engine.results import differing, load, write_results
from suture.studies.experiments.experiment import Results, client_mean
from suture.studies.experiments.pages.page import Chapter, to_html
from suture.studies.experiments.registry import EXPERIMENTS, STUDY
from suture.studies.experiments.runs.job import Job, read_result, result_path
from suture.studies.experiments.runs.setting import CONFIG, Setting, to_toml, with_data
from suture.studies.statistics import mean_and_interval, overlaps, share_interval, shown, shown_share


def test_mean_and_interval_are_those_worked_out_by_hand():
    """Oracle: 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12), t(3) = 3.182."""
    mean, half = mean_and_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and half == pytest.approx(3.182 * math.sqrt(5 / 12)) == pytest.approx(2.054, abs=1e-3)
    assert mean_and_interval([0.25, 0.75]) == (0.5, pytest.approx(12.706 * 0.25))
    assert mean_and_interval([0.5] * 5) == (0.5, 0.0)


def test_one_value_has_no_interval():
    """Oracle: nan, which a table leaves out."""
    mean, half = mean_and_interval([0.5])
    assert mean == 0.5 and math.isnan(half)
    assert (
        shown([0.5]) == "0.500"
        and shown([0.25, 0.75]) == "0.500 ± 3.176"
        and shown([0.5, 0.5]) == "0.500"
        and shown([math.nan]) == "–"
    )


@pytest.mark.parametrize(
    ("count", "t"), [(3, 4.303), (10, 2.262), (11, 2.228), (21, 2.086), (31, 2.042), (200, 1.96)]
)
def test_the_interval_uses_students_t(count, t):
    """Oracle: printed tables of the two-sided 95 % quantile at ``count - 1`` degrees of freedom."""
    values = [float(value) for value in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    assert mean_and_interval(values)[1] == pytest.approx(t * deviation / math.sqrt(count), rel=1e-3)


def test_intervals_that_touch_tell_nothing_apart():
    """Oracle: means .5 and .7 with little and with much spread; single runs never tell anything apart."""
    assert not overlaps([0.5, 0.51, 0.49], [0.7, 0.71, 0.69])
    assert overlaps([0.5, 0.65, 0.35], [0.7, 0.85, 0.55])
    assert overlaps([0.1], [0.9])


def test_the_interval_of_shares_lies_inside_the_unit_interval():
    """Oracle: 40 of 40, in one run (Wilson's: n / (n + z^2)) and in five; none; and shares that Student's t on the
    shares themselves takes beyond 1.
    """
    assert share_interval([1.0], 40) == (1.0, pytest.approx(40 / (40 + 1.96**2), abs=1e-4), 1.0)
    for shares in ([1.0] * 5, [0.0] * 5, [0.13, 0.14, 0.74], [0.98, 1.0, 1.0], [0.5, 0.5]):
        for n in (40, 500, None):
            mean, low, high = share_interval(shares, n)
            assert 0 <= low <= mean <= high <= 1
    mean, low, high = share_interval([1.0] * 5, 40)
    assert 0.8 < low < 0.95 and high == 1.0, "five seeds on the same 40 images are not 200 images"
    mean, half = mean_and_interval([0.13, 0.14, 0.74])
    assert mean - half < 0 < share_interval([0.13, 0.14, 0.74], 40)[1]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_no_share_leaves_its_own_interval(hits):
    """Oracle: arithmetic: the mean, and the bounds of a share."""
    mean, low, high = share_interval([hit / 40 for hit in hits], 40)
    assert mean == pytest.approx(sum(hits) / 40 / len(hits)) and 0 <= low <= mean <= high <= 1


def test_shares_are_shown_with_their_ends():
    """Oracle: the cells; what has no interval has no brackets."""
    assert shown_share([1.0], 2, 40) == "1.00 (0.91 to 1.00)"
    assert shown_share([0.5]) == "0.500" == shown_share([0.5, 0.5])
    assert shown_share([math.nan]) == "–"
    assert shown_share([0.6, 0.61]) == "0.605 (0.540 to 0.666)"


def test_a_table_reads_the_same_in_markdown_and_html_and_on_the_terminal(capsys):
    """Oracle: the cells, escaped where HTML needs it; a bar in a cell parts no columns, an empty note is left out."""
    table = Table([{"a": "x", "b": "1 < 2"}, {"b": "[red]|"}], "T, scale smoke", ["a note", ""])
    lines = [
        "## T, scale smoke",
        "",
        "| a | b |",
        "|---|---|",
        "| x | 1 < 2 |",
        "|  | [red]\\| |",
        "",
        "- a note",
    ]
    assert table.to_markdown().splitlines() == lines
    page = Chapter(name="x", question="?", tables=[table], pictures=[], machine={}, runs=[], planned=0)
    cells = re.findall("<td>(.*?)</td>", to_html([page]))
    assert cells == ["x", "1 &lt; 2", "", "[red]|"]
    table.print()
    shown = capsys.readouterr().out
    assert all(told in shown for told in ("T, scale smoke", "1 < 2", "[red]|", "a note"))


def test_a_line_a_run_has_every_column_of_any_run():
    """Oracle: the union of the columns; floats to six digits."""
    lines = Table([{"arm": "a", "x": 0.5}, {"arm": "b", "y": 2}]).to_csv().splitlines()
    assert lines == ["arm,x,y", "a,0.500000,", "b,,2"]


# Made-up results -----------------------------------------------------------------------------------


def _summary(job: Job, digest: str) -> dict:
    task = "segmentation" if job.options.model == "unet" else "classification"
    base = 0.6 + job.seed / 100
    scores = {
        "classification": {"accuracy": base, "balanced_accuracy": base, "auroc": base + 0.1,
                           "majority_accuracy": 0.5, "loss": 1.0},
        "segmentation": {"jaccard": base, "dice": base + 0.1, "pixel_accuracy": 0.9, "loss": 1.0},
    }[task]  # fmt: skip
    clients = {f"client{i}": {"test": scores} for i in range(job.options.clients)}
    leak = {"mse": 0.01, "ssim": 0.5, "reidentified": 0.9, "chance": 0.01, "num_images": 40}
    verdict = {"scores": {"held_out": {"attack": leak, "mean image": leak | {"mse": 0.02}}}}
    return {
        "task": task, "clients": clients, "weights_sha256": digest, "seed": job.seed,
        "wire_bytes_per_step": {"up": 1_000_000, "down": 500_000}, "images_per_second": 50.0, "wall_seconds": 9.0,
        "attack": verdict if job.options.attack else {},
        "attacks_afterwards": dict.fromkeys(job.afterwards, verdict),
    }  # fmt: skip


@pytest.fixture(params=sorted(EXPERIMENTS))
def made_up(request, tmp_path):
    """An experiment's folder in which every run has a made-up result."""
    experiment = EXPERIMENTS[request.param]
    keys = dict.fromkeys(range(2), "0" * 64)
    data = {role: with_data((), "smoke")[role] for role in experiment.roles}
    setting = Setting(
        experiment=experiment.name, scale="smoke", num_seeds=2, data=data,
        sizes=experiment.sizes("smoke", 1), keys=keys,
    )  # fmt: skip
    (tmp_path / CONFIG).write_text(to_toml(setting))
    for job in experiment.jobs(setting):
        path = result_path(tmp_path, job.name)
        path.parent.mkdir(parents=True)
        (path.parent / "metrics.jsonl").write_text("")
        made = {"summary": _summary(job, "d" * 64), "net_sha256": "e" * 64, "cpu_seconds": 60.0}
        path.write_text(json.dumps(made))
    return tmp_path


def test_every_experiment_makes_its_tables_from_results(made_up):
    """Oracle: means over clients and two seeds by hand; one line a run; the scale in each title."""
    assert write_results(made_up) == []
    experiment, setting, results = load(made_up)
    rows = list(csv.DictReader(io.StringIO((made_up / "table.csv").read_text())))
    assert [(row["arm"], int(row["seed"])) for row in rows] == [
        (job.arm, job.seed) for job in experiment.jobs(setting)
    ]
    text = (made_up / "table.md").read_text()
    assert text.startswith(f"# {experiment.name}: {experiment.question}")
    for table in experiment.tables(setting, results):
        assert "scale smoke" in table.title and table.rows
    if experiment.name != "exchanges":  # which compares digests and averages nothing
        assert "0.605 (0.540 to 0.666)" in text, "logits of .60 and .61, t(1) = 12.706"
    if "attack" in text or experiment.name in ("fsha", "adra"):
        assert "| 0.0100 | 0.50 | 0.500 | 0.90 (0.75 to 0.96) |" in text, "36 of 40, equal in every run"
    for told in json.loads((made_up / "pictures.json").read_text()):
        assert (made_up / "figures" / told["file"]).stat().st_size > 1000


def test_runs_that_must_end_with_the_same_weights_are_compared(made_up):
    """Oracle: one digest altered is named with its pair."""
    results = load(made_up)[2]
    checked = [job for job in results.jobs if job.same_weights_as]
    assert checked, "every experiment repeats one run with real processes"
    path = result_path(made_up, checked[-1].name)
    changed = json.loads(path.read_text())
    changed["summary"]["weights_sha256"] = "f" * 64
    path.write_text(json.dumps(changed))
    (said,) = differing(load(made_up)[2])
    assert f"{checked[-1].name} and {checked[-1].same_weights_as} ended with different weights" in said
    assert write_results(made_up) == [said]


def test_a_table_of_half_the_runs_shows_those(made_up):
    """Oracle: with one arm's results gone the others' lines stay."""
    experiment, setting, _ = load(made_up)
    gone = experiment.jobs(setting)[0].arm
    for job in experiment.jobs(setting):
        if job.arm == gone:
            result_path(made_up, job.name).unlink()
            assert read_result(made_up, job.name) is None
    write_results(made_up)
    arms = {row["arm"] for row in csv.DictReader(io.StringIO((made_up / "table.csv").read_text()))}
    assert arms == {job.arm for job in experiment.jobs(setting)} - {gone}


def test_a_mean_over_clients_leaves_out_who_was_not_tested():
    """Oracle: two of three clients by hand; nan where none was."""
    clients = {"a": {"test": {"dice": 0.5}}, "b": {"test": {"dice": 1.0}}, "c": {}}
    assert client_mean({"clients": clients}, "dice") == 0.75
    assert math.isnan(client_mean({"clients": clients}, "auroc"))


def test_results_hold_what_is_done_in_the_order_of_the_plan(tmp_path):
    """Oracle: three jobs, one without a result."""
    from suture.launch.options.options import AskedOptions

    jobs = [Job(arm=arm, seed=seed, options=AskedOptions()) for seed in (0, 1) for arm in ("a", "b")]
    results = Results(tmp_path, jobs, {"a-0": {"n": 1}, "a-1": {"n": 2}, "b-1": {"n": 3}})
    assert results.arms() == ["a", "b"] and [r["n"] for r in results.of("a")] == [1, 2]
    assert results.run_dir("b") == tmp_path / "runs" / "b-1"


def test_the_published_figures_are_those_of_the_study():
    """Oracle: the figures as the study printed them; every experiment of it has some, every row a sentence."""
    clients = EXPERIMENTS["clients"]
    assert clients.published("3") == [74.0, 62.7, 59.97] and clients.published("5") is None
    assert EXPERIMENTS["cut-layer"].published("7") == [70.8, 62.5]
    assert EXPERIMENTS["unet-cut"].published("3") == {"jaccard": 0.9268, "accuracy": 0.9812}
    for experiment in STUDY:
        own = experiment.file["study"]
        assert set(own.get("rows", {})) <= set(own.get("differences", {}))
