"""The report: one page that needs no other file and no network, and what stands beside it.

Oracle: the page parsed as HTML; results made up here.
"""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner

from suture.cli import suture
from suture.launch.output.figures.canvas import drawn
from suture.runtime.errors import ConfigError
from suture.studies.experiments.engine.plan import Request, plan
from suture.studies.experiments.engine.provenance import MACHINE, write_provenance
from suture.studies.experiments.experiment import Picture
from suture.studies.experiments.pages.page import Chapter, to_html
from suture.studies.experiments.registry import EXPERIMENTS
from suture.studies.experiments.report import write_report
from suture.studies.experiments.runs.job import result_path
from suture.studies.experiments.runs.setting import CONFIG, attribution, roles, to_toml


class Page(HTMLParser):
    """Collects what the tests ask for and that every element is closed in order."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text, self.ids = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        told = dict(attrs)
        self.sources += [told[name] for name in ("src", "href") if name in told]
        self.ids += [told["id"]] if "id" in told else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def done(tmp_path):
    """A folder with one experiment at scale smoke, every run made up."""
    experiment = EXPERIMENTS["split-vs-central"]
    setting = plan(experiment, Request(name=experiment.name, scale="smoke"))
    place = tmp_path / experiment.name
    place.mkdir()
    (place / CONFIG).write_text(to_toml(setting))
    (place / MACHINE).write_text(json.dumps({"command": "suture experiment all", "commit": "abc123"}))
    for job in experiment.jobs(setting):
        scores = {"accuracy": 0.625, "balanced_accuracy": 0.6, "auroc": 0.75, "majority_accuracy": 0.5}
        summary = {
            "task": "classification", "weights_sha256": "d" * 64, "attack": {},
            "clients": {"client0": {"test": scores}}, "wire_bytes_per_step": {"up": 1, "down": 1},
        }  # fmt: skip
        path = result_path(place, job.name)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({
            "summary": summary, "net_sha256": "e" * 64, "seconds": 2.0, "cpu_seconds": 1.0,
            "command": [f"suture train --seed {job.seed} --run-dir runs/{job.name}"],
        }))  # fmt: skip
    return tmp_path


def test_a_page_holds_tables_pictures_commands_and_machine_and_needs_nothing_else(done, tmp_path):
    """Oracle: every source is a data URI or a place in the page; the made-up figures are in its text."""
    foreword = tmp_path / "said.txt"
    foreword.write_text("## Findings\n\nSplitting <changes> nothing.")
    assert write_report(done, done / "out", foreword) == ["split-vs-central"]
    page = Page((done / "out" / "index.html").read_text())
    inside = [f"#{name}" for name in page.ids]
    assert page.sources and all(
        re.match("data:image/(png|webp);base64,", s) or s in inside for s in page.sources
    )
    assert "url(" not in page.text and "http" not in page.text.replace("https://", "http")
    for said in ("Findings", "Splitting <changes> nothing.", "0.625", "scale smoke", "commit abc123",
                 "suture train --seed 0 --run-dir runs/split-0", "dddddddddddddddd"):  # fmt: skip
        assert said in page.text
    runs = json.loads((done / "out" / "results.json").read_text())["split-vs-central"]["runs"]
    assert len(runs) == 6 and runs[0]["auroc"] == 0.75 and runs[0]["command"]
    for name in ("table.md", "table.csv", CONFIG, "figures/auroc.png"):
        assert (done / "out" / "split-vs-central" / name).exists()


def test_a_page_says_how_many_runs_are_missing(done):
    """Oracle: one of six results is gone."""
    result_path(done / "split-vs-central", "central-0").unlink()
    write_report(done, done / "out")
    assert "5 of 6 runs are done" in Page((done / "out" / "index.html").read_text()).text


def test_nothing_to_report_is_said(tmp_path):
    """Oracle: the message for people, from the command line too."""
    with pytest.raises(ConfigError, match="holds no experiment with a result; run 'suture experiment all'"):
        write_report(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot read the foreword"):
        _one_experiment(tmp_path)
        write_report(tmp_path, tmp_path / "out", tmp_path / "no-such-file")
    assert "--foreword FILE" in CliRunner().invoke(suture, ["report", "--help"]).output


def _one_experiment(folder):
    setting = plan(EXPERIMENTS["unet-cut"], Request(name="unet-cut", scale="smoke"))
    place = folder / "unet-cut"
    place.mkdir()
    (place / CONFIG).write_text(to_toml(setting))
    job = EXPERIMENTS["unet-cut"].jobs(setting)[0]
    path = result_path(place, job.name)
    path.parent.mkdir(parents=True)
    (path.parent / "metrics.jsonl").write_text("")
    scores = {"jaccard": 0.5, "dice": 0.6, "pixel_accuracy": 0.7}
    summary = {
        "task": "segmentation",
        "weights_sha256": "d",
        "clients": {"client0": {"test": scores}},
        "attack": {},
    }
    path.write_text(
        json.dumps({"summary": summary, "seconds": 1.0, "cpu_seconds": 1.0, "command": [], "net_sha256": ""})
    )


def test_what_a_page_shows_is_escaped(tmp_path):
    """Oracle: a caption and a machine with the signs of HTML come out as text."""
    picture = tmp_path / "a.png"
    with drawn(picture, 2, 2):
        pass
    chapter = Chapter(
        name="x", question="Is 1 < 2 & 3 > 2?", tables=[], pictures=[Picture(picture, 'a "b" <c>')],
        machine={"command": "<rm>", "commit": "<i>"}, runs=[], planned=0,
    )  # fmt: skip
    text = to_html([chapter])
    page = Page(text)
    assert "Is 1 < 2 & 3 > 2?" in page.text and 'a "b" <c>' in page.text and "commit <i>" in page.text
    assert not re.search(r"<(rm|c|i)>", text)


def test_images_of_the_default_sets_are_attributed():
    """Oracle: each licence's name; drawn images have no licence; a person's own set is named."""
    said = {role: attribution(role, told["data"]) for role, told in roles().items()}
    assert "CC BY 4.0" in said["photographs"] and "Porwal" in said["photographs"]
    assert "CC BY 3.0" in said["lungs"] and "V7" in said["lungs"] and "CC BY-SA" in said["digits"]
    assert attribution("photographs", "fundus-phantom") == "Drawn images."
    assert attribution("photographs", "kaggle-dr:/mine") == "Images: kaggle-dr."


def test_every_command_on_a_folder_is_remembered_once(tmp_path):
    """Oracle: the commands in the order in which they were given; machine and commit are those of the first."""
    first, second = (
        Request(name=name, scale="smoke", num_seeds=n) for name, n in (("all", None), ("fsha", 2))
    )
    for request in (first, second, first, second):
        write_provenance(request, tmp_path)
    told = json.loads((tmp_path / MACHINE).read_text())
    assert told["command"] == (
        "suture experiment all --scale smoke; suture experiment fsha --scale smoke --seeds 2"
    )
    assert told["torch"] == torch.__version__ and told["runs at a time"] == 2
