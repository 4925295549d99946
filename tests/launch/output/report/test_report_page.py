"""The page: what stands on it, read back from its HTML, for runs of every kind; and that names stay names."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from suture.launch.output.report import RunState, pages_of, write_report
from suture.launch.output.report.intervals import auroc_interval, wilson
from suture.launch.output.report.lines import MetricsReader
from suture.launch.output.report.numbers import gather
from suture.launch.output.report.page import to_html
from suture.runtime.training.objectives import objective

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)>"
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """A page taken apart: its elements, the text of each kind, and whether every element is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        shown = " ".join(data for tag, data in self.texts if tag not in ("style", "script"))
        return re.sub(r"\s+", " ", shown)

    def tags(self, name: str) -> list[dict]:
        return [attrs for tag, attrs in self.elements if tag == name]


def write_run(folder: Path, lines: list[dict], *, summary: dict | None = None, **options: object) -> Path:
    """A run's folder with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": "resnet18", "cut": "3", "epochs": 4, "data": "image-folder:/secret/place"} | options
    (folder / "config.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    (folder / "run.json").write_text(json.dumps({"run": "abc", "clients": 2, "num_classes": 2}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def lines_of(names=("ward_a", "ward_b"), rounds=3, batches=4, test=True) -> list[dict]:
    """Lines of a run: losses 1/step; validation AUROC 0.6 + round / 10, but 0.7 in the last round."""
    lines: list[dict] = [{"event": "begun", "clients": list(names)}]
    step = turn = 0
    for round in range(1, rounds + 1):
        for name in names:
            turn += 1
            for _ in range(batches):
                step += 1
                lines.append(train(step, round, turn, name, 1 / step))
        for name in names:
            turn += 1
            value = 0.7 if round == rounds else 0.6 + round / 10
            for phase in ("validation", "test") if test and round == rounds else ("validation",):
                lines.append(
                    {
                        "step": step,
                        "round": round,
                        "turn": turn,
                        "client": name,
                        "phase": phase,
                        "loss": 0.5,
                        "auroc": value,
                        "accuracy": 0.75,
                        "balanced_accuracy": 0.7,
                        "majority_accuracy": 0.6,
                        "num_images": 40.0 if phase == "test" else 10.0,
                    }
                )
    return lines


def train(step, round, turn, client, loss) -> dict:
    """One training line."""
    return {"step": step, "round": round, "turn": turn, "client": client, "phase": "train", "loss": loss}


def html_of(folder: Path, state: RunState | None = None, view="server", **facts: object) -> str:
    """The page of what lies there."""
    reader = MetricsReader(folder / "metrics.jsonl")
    numbers = gather(folder, view, reader, state or RunState(), facts, {})
    return to_html(numbers, {"suture": "0.1.0"})


def test_the_table_has_the_scores_with_their_n_and_intervals(tmp_path):
    """Oracle: the numbers written; the intervals by the formulas, whose own tests have published values."""
    page = Page(html_of(write_run(tmp_path / "run", lines_of())))
    cells = [attrs["data-label"] for attrs in page.tags("td")]
    assert cells.count("test AUROC") == cells.count("test accuracy") == 3  # two sites and all of them
    low, high = wilson(30, 40)
    assert page.text.count(f"0.750 {low:.2f} to {high:.2f}") == 2
    low, high = auroc_interval(0.7, 24, 16)
    assert page.text.count(f"0.700 {low:.2f} to {high:.2f}") == 2
    low, high = wilson(60, 80)
    assert f"all sites – 20 80 0.700 mean of sites 0.750 {low:.2f} to {high:.2f} 0.600" in page.text
    losses = [1 / step for step in range(17, 21)]
    assert f"ward_a – 10 {sum(losses) / 4:.3f} 0.500 0.700 0.700 40" in page.text


def test_the_head_says_net_task_state_and_the_best_round(tmp_path):
    """Oracle: by hand: round 2 has the highest mean; nothing of the data's place is told."""
    folder = write_run(tmp_path / "run", lines_of())
    text = Page(html_of(folder, RunState(round=4, seconds_left=200.0, text="ward_b trains"))).text
    for told in ("resnet18, cut 3", "running: round 4 of 4, ward_b trains", "3 min 20 s", "classification"):
        assert told in text
    assert "0.700 round 3, mean of sites; best 0.800 in round 2" in text and "best: round 2" in text
    assert "image-folder" in text and "secret" not in text
    stopped = Page(html_of(folder, RunState(phase="stopped", text="the disk is full"))).text
    assert "stopped in round 3 of 4: the disk is full" in stopped


def test_a_finished_run_tells_what_its_summary_says(tmp_path):
    """Oracle: by hand."""
    summary = {
        "task": "classification",
        "clients_data": {"ward_a": {"train": 1234, "validation": 9, "test": 9, "kind": "dicom"}},
        "wall_seconds": 3725.0,
        "best_round": 1,
        "images_per_second": 12.34,
        "wire_bytes_per_step": {"up": 5.2e6, "down": 160e3},
        "peak_memory_bytes": {"server": 1.4e9, "ward_a": 5e8, "ward_b": 6e8},
        "turns": 12,
        "rolled_back_turns": 1,
        "weights_sha256": "ab" * 32,
        "seconds": {"hand_off": 61.0},
    }
    folder = write_run(tmp_path / "run", lines_of(), summary=summary)
    text = Page(html_of(folder, RunState(phase="finished"))).text
    for told in (
        "finished after 4 rounds",
        "1,234",
        "dicom",
        "1 h 02 min",
        "best: round 1",
        "12.3",
        "5.2 MB up, 160 kB down",
        "server 1.4 GB; ward_b 600 MB, the most of a site",
        "12, 1 more rolled back",
        "ab" * 32,
        "hand off, all turns 1 min 01 s",
    ):
        assert told in text
    assert "best: round 2" in Page(html_of(folder)).text  # while it runs again, a summary is of before


def test_segmentation_has_its_own_scores_and_says_why_there_are_no_intervals(tmp_path):
    """Oracle: by hand."""
    scores = {"loss": 0.3, "dice": 0.9, "jaccard": 0.81, "pixel_accuracy": 0.97, "num_images": 8.0}
    lines = [
        {"step": 4, "round": 1, "turn": turn, "client": "a", "phase": phase} | scores
        for turn, phase in enumerate(("validation", "test"), 1)
    ]
    page = Page(html_of(write_run(tmp_path / "run", lines, model="unet", cut="2")))
    assert "a – 8 – 0.300 0.810 0.900 8 0.810 0.900 0.970" in page.text
    assert (
        "no intervals" in page.text
        and "AUROC" not in page.text
        and " to " not in page.text.split("Sites")[1][:200]
    )
    assert objective("segmentation").metrics == ("jaccard",)


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path, rounds):
    """Oracle: by hand; a run without any file, too."""
    page = Page(html_of(write_run(tmp_path / "run", lines_of(rounds=rounds, test=False))))
    assert page.text.count("nothing measured yet") == (0 if rounds else 3)
    assert "Test images are scored at the end" in page.text
    (tmp_path / "empty").mkdir()
    empty = Page(html_of(tmp_path / "empty"))
    assert "no site has joined yet" in empty.text and "before the first round" in empty.text


def test_damaged_files_and_values_of_other_types_leave_a_page(tmp_path):
    """Oracle: what can be read is there; nothing raises."""
    folder = write_run(tmp_path / "run", lines_of())
    (folder / "config.toml").write_text("epochs = [")
    (folder / "run.json").write_text("{")
    wrong = {
        "clients": 3,
        "clients_data": {"ward_a": 4},
        "wall_seconds": "long",
        "best_round": True,
        "images_per_second": None,
        "wire_bytes_per_step": [1],
        "peak_memory_bytes": {"server": "much", "x": float("nan")},
        "turns": -1,
        "weights_sha256": ["a"],
        "versions": 3,
        "seconds": {"a": "b"},
        "task": ["classification"],
    }
    (folder / "summary.json").write_text(json.dumps(wrong))
    assert "0.750" in Page(html_of(folder, RunState(phase="finished"))).text
    lines = [line | {"num_images": "many", "accuracy": [1], "auroc": {}} for line in lines_of()[1:]]
    write_run(tmp_path / "other", lines)
    Page(html_of(tmp_path / "other"))


def test_warnings_stand_in_a_box_and_what_happened_in_a_list(tmp_path):
    """Oracle: by hand; a warning that was repeated stands once."""
    warn = {
        "event": "warning",
        "round": 1,
        "client": "ward_b",
        "kind": "outlier",
        "text": "its loss is unlike",
    }
    lines = [
        *lines_of(),
        warn,
        warn | {"round": 3},
        {"event": "lost", "client": "ward_b", "reason": "its line broke"},
        {"event": "rolled_back", "turn": 99, "client": "ward_a+ward_b", "reason": "a frozen site"},
        {"event": "put_out", "client": "ward_b", "reason": "revoked"},
    ]
    text = Page(html_of(write_run(tmp_path / "run", lines))).text
    for told in (
        "1 warning",
        "rounds 1, 3: ward_b: its loss is unlike",
        "ward_b was lost: its line broke",
        "turn 99 of ward_a, ward_b was rolled back: a frozen site",
        "ward_b was put out: revoked",
    ):
        assert told in text
    assert re.search(r"ward_b put out – 10", text)  # the badge in the table
    assert "warning" not in Page(html_of(write_run(tmp_path / "calm", lines_of()))).text


def test_old_scores_of_a_site_that_is_away_say_their_round(tmp_path):
    """Oracle: by hand: the second site's last evaluation closed round 1."""
    lines = [line for line in lines_of(test=False) if line.get("client") != "ward_b" or line["round"] == 1]
    text = Page(html_of(write_run(tmp_path / "run", lines))).text
    assert text.count("scores of round") == 1 and "ward_b scores of round 1 – 10" in text


def test_what_turns_cost_is_added_up(tmp_path):
    """Oracle: by hand: 64 images in 4 s."""
    turn = {"event": "turn", "round": 1, "turn": 1, "client": "ward_a", "kind": "train", "seconds": 2.0}
    turn |= {"waited": 30.0, "images": 32, "bytes_up": 1_500_000, "bytes_down": 2_000}
    lines = [*lines_of(), turn, turn | {"turn": 2}, turn | {"kind": "evaluate", "seconds": 0.5, "waited": 1}]
    text = Page(html_of(write_run(tmp_path / "run", lines))).text
    assert "ward_a 4.0 s 0.5 s 1 min 01 s 16.0 4.5 MB 6.0 kB" in text


def test_a_site_sees_its_own_view(tmp_path):
    """Oracle: by hand: its name, what the caller knows, where its model is."""
    folder = tmp_path / "clients" / "ward_a"
    write_run(folder, lines_of(names=("ward_a",)))
    (folder / "run.json").unlink()
    (folder / "model.pt").touch()
    facts = {"classes": ["healthy", "ill"], "clients_data": {"ward_a": {"train": 410, "kind": "csv"}}}
    page = Page(html_of(folder, view="site", **facts))
    for told in (
        "ward_a: resnet18",
        "a site's own view",
        "This site",
        "healthy, ill",
        "410",
        "csv",
        "model.pt",
    ):
        assert told in page.text
    assert {"href": "model.pt"} in page.tags("a") and "all sites" not in page.text


def test_no_name_or_reason_becomes_markup(tmp_path):
    """Oracle: the page's elements: the same, by name and attribute, as with harmless words; one script, which is ours."""
    harmless = "harmless"

    def page(word: str) -> Page:
        lines = [
            *lines_of(names=(word, "ward_b")),
            {"event": "warning", "round": 1, "client": word, "kind": word, "text": word + " x"},
            {"event": "lost", "client": word, "reason": word},
            {"event": "turn", "client": word, "kind": word, "seconds": 1.0, "images": 1},
        ]
        summary = {
            "weights_sha256": word,
            "disagreement": word,
            "versions": {word: word},
            "seconds": {word: 1},
        }
        folder = write_run(tmp_path / "run", lines, summary=summary, defence=word, model=word)
        state = RunState(phase="stopped", text=word)
        return Page(html_of(folder, state, classes=[word, word], data=word, name=word))

    hostile, calm = page(HOSTILE), page(harmless)
    assert [(tag, sorted(attrs)) for tag, attrs in hostile.elements] == [
        (tag, sorted(attrs)) for tag, attrs in calm.elements
    ]
    assert hostile.text.count("<script>alert(1)</script>") > 10
    assert hostile.tags("script") == []
    running = Page(html_of(tmp_path / "run"))
    assert len(running.tags("script")) == 1 and running.tags("img") == []


def test_a_name_cannot_turn_the_direction_of_writing(tmp_path):
    """Oracle: by hand: U+202E and a line feed show as what they are not: nothing invisible is left."""
    text = Page(html_of(write_run(tmp_path / "run", lines_of(names=("ab\u202edc\x07", "b"))))).text
    assert "ab\ufffddc\ufffd" in text and "\u202e" not in text and "\x07" not in text


def test_the_page_needs_no_network_and_no_other_file(tmp_path):
    """Oracle: its elements: nothing is loaded; a policy forbids it all but the page's own style and script."""
    html = html_of(write_run(tmp_path / "run", lines_of()))
    page = Page(html)
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "image", "base", "form")
        assert not {"src", "onload", "onclick", "onerror", "action", "xlink:href"} & set(attrs)
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html
    policy = next(m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy


def test_the_page_can_be_read_without_seeing_it(tmp_path):
    """Oracle: every chart has title and description, every table a caption, every column and row a header."""
    page = Page(html_of(write_run(tmp_path / "run", lines_of())))
    charts = [attrs for attrs in page.tags("svg") if attrs.get("role") == "img"]
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert len(charts) == 3 and all(set(c["aria-labelledby"].split()) <= ids for c in charts)
    assert all(c.get("aria-hidden") == "true" for c in page.tags("svg") if c not in charts)
    assert len(page.tags("caption")) == len(page.tags("table")) == 1
    assert all(th.get("scope") in ("col", "colgroup", "row") for th in page.tags("th"))
    assert "ward_a: 0.700 at round 1, 0.700 at round 3" in page.text
    assert page.tags("html")[0]["lang"] == "en" and len(page.tags("h1")) == 1


def test_a_long_run_of_many_sites_stays_a_small_page(tmp_path):
    """Oracle: the size: 40 sites, 60 rounds, 120,000 batches: under a megabyte; no curve has over 400 points."""
    names = [f"site_{index}" for index in range(40)]
    lines = lines_of(names=names, rounds=60, batches=50, test=True)
    html = html_of(write_run(tmp_path / "run", lines))
    assert len(html.encode()) < 1_000_000
    assert max(path.count("L") for path in re.findall(r'd="([^"]*)"', html)) <= 400
    few = lines_of(rounds=100, batches=100)
    for line in few:
        if line.get("phase") == "train" and line["step"] % 7 == 0:
            line["loss"] = 40.0 if line["step"] == 7000 else None
    html = html_of(write_run(tmp_path / "few", few))
    raw = re.findall(r'class="raw[^"]*" d="([^"]*)"', html)
    assert len(raw) == 2 and all(sum(map(path.count, "ML")) <= 400 for path in raw)
    # The spike of batch 7000 is no mean of its neighbours: it leaves the plot at the top.
    heights = [int(y) for path in raw for y in re.findall(r"[ML]-?\d+ (-?\d+)", path)]
    assert min(heights) < 0 and not math.isnan(sum(heights))


def test_the_pages_of_a_folder_are_found(tmp_path):
    """Oracle: by hand: a server's with a site on its disk, a site's own, a site's --run-dir, and no run."""
    run = write_run(tmp_path / "run", lines_of())
    site = run / "clients" / "ward_a"
    write_run(site, lines_of(names=("ward_a",)))
    (site / "run.json").unlink()
    assert pages_of(run) == [(run, "server"), (site, "site")]
    assert pages_of(site) == [(site, "site")]
    (run / "run.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert pages_of(run) == [(site, "site")] and pages_of(tmp_path) == []
    page = write_report(site, "site", tmp_path / "out" / "deep")
    assert "its process has ended" in Page(page.read_text()).text


def test_a_site_s_training_images_are_those_that_it_joined_with(tmp_path):
    """Oracle: the event; the server sees no other word of them while the run goes on."""
    joined = [{"event": "joined", "client": "ward_a", "images": 77}]
    folder = write_run(tmp_path / "run", [*joined, *lines_of(test=False)])
    numbers = gather(folder, "server", MetricsReader(folder / "metrics.jsonl"), RunState(), {}, {})
    assert {site.name: site.images.get("train") for site in numbers.sites} == {"ward_a": 77, "ward_b": None}
