"""Writing the page while a run goes on: whole at every moment, to its end, and never at the run's cost."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from suture.cli import suture
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output.lock import lock_folder
from suture.launch.output.report import REPORT_FILE, ReportWriter, RunState
from suture.launch.roles.one_process import run_in_one_process
from suture.runtime.errors import CheckpointError, ConfigError


def _line(step: int, loss: float = 0.5) -> str:
    record = {"step": step, "round": step, "turn": step, "client": "a", "phase": "train", "loss": loss}
    return json.dumps(record) + "\n"


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder after its first step."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(_line(1))
    (folder / "run.json").write_text('{"run": "abc", "clients": 1}')
    (folder / "config.toml").write_text('model = "resnet18"\ncut = "3"\nepochs = 9\n')
    return folder


def _wait_for(page: Path, told: str) -> None:
    """Until the page says so; pytest's own timeout is the limit."""
    while not (page.exists() and told in page.read_text()):
        time.sleep(0.01)


def test_the_page_follows_the_run_until_it_has_ended(run):
    """Oracle: by hand: what each page says of the round, of what it was told, and of the end."""
    page = run / REPORT_FILE
    with ReportWriter(run, every=0.01, seconds_left=lambda: 60.0) as writer:
        _wait_for(page, "running: round 1 of 9")
        assert "1 min 00 s" in page.read_text()
        with (run / "metrics.jsonl").open("a") as lines:
            lines.write(_line(2) + _line(3)[:10])
        _wait_for(page, "running: round 2 of 9")
        writer.update(RunState(text="waits for a site", round=5, seconds_left=7.0))
        _wait_for(page, "running: round 5 of 9, waits for a site")
        assert "7.0 s" in page.read_text()
        (run / "summary.json").write_text('{"weights_sha256": "abcdef"}')
    text = page.read_text()
    assert "finished after 9 rounds" in text and "abcdef" in text and "<script>" not in text
    assert not [thread for thread in threading.enumerate() if thread.name == "report"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CheckpointError("no room; make room"), "stopped in round 1 of 9: no room; make room"),
        (
            KeyboardInterrupt(),
            "stopped in round 1 of 9: interrupted; to go on, start it again (other than suture serve: with --resume",
        ),
        (ValueError("odd"), "stopped in round 1 of 9: ValueError: odd"),
    ],
)
def test_a_run_that_stops_says_why(run, error, told):
    """Oracle: by hand; the error goes on, and the run can where it has checkpoints."""
    (run / "checkpoints").mkdir()
    with pytest.raises(type(error)), ReportWriter(run):
        raise error
    assert told in (run / REPORT_FILE).read_text()


def test_who_reads_while_it_is_written_sees_a_whole_page(run):
    """Oracle: every page that was read, of several hundred that were written meanwhile, ends as a page does."""
    writer, ended = ReportWriter(run), threading.Event()
    writer.write(RunState())

    def write() -> None:
        for number in range(300):
            writer.write(RunState(text=f"{number} " + "x" * (number * 7 % 500)))
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not ended.is_set():
        text = (run / REPORT_FILE).read_text()
        assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
        seen.add(text)
    thread.join()
    assert len(seen) > 1 and sorted(p.name for p in run.iterdir() if "report" in p.name) == [REPORT_FILE]


def test_a_page_that_cannot_be_written_costs_the_run_nothing_and_is_told_once(run, tmp_path, caplog):
    """Oracle: by hand: a folder stands in the page's place; then the run's folder has gone; then its lines are damaged."""
    (run / REPORT_FILE).mkdir()
    (run / REPORT_FILE / "file").touch()
    with caplog.at_level(logging.WARNING), ReportWriter(run) as writer:
        for _ in range(3):
            writer.write(RunState())
    assert [r.getMessage() for r in caplog.records if "report.html cannot be written" in r.getMessage()] == [
        caplog.records[0].getMessage()
    ]
    with ReportWriter(tmp_path / "gone"):
        pass
    (run / REPORT_FILE / "file").unlink()
    (run / REPORT_FILE).rmdir()
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe{" * 1000)
    with ReportWriter(run, seconds_left=lambda: 1 / 0):
        _wait_for(run / REPORT_FILE, "running")


def test_a_whole_run_leaves_its_page_and_the_same_weights(tmp_path, capsys):
    """Oracle: the run's own summary, and a run without a page: a writer that does nothing."""
    key = tmp_path / "key"
    key.write_text("00" * 32 + "\n")
    key.chmod(0o600)

    def options(name: str) -> RunOptions:
        return AskedOptions(
            model="resnet18",
            exchange="local",
            clients=2,
            epochs=2,
            image_size=16,
            train_images=8,
            validation_images=4,
            test_images=4,
            batch_size=4,
            profile=True,
            handoff_key=str(key),
            run_dir=str(tmp_path / name),
        )

    run_in_one_process(options("with"))
    summary = json.loads((tmp_path / "with" / "summary.json").read_text())
    page = (tmp_path / "with" / REPORT_FILE).read_text()
    for told in (
        "finished after 2 rounds",
        summary["weights_sha256"],
        "client0",
        "client1",
        "part of a step",
    ):
        assert told in page
    assert page.count("95 %") >= 1 and str(tmp_path / "with" / REPORT_FILE) in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReportWriter, "__enter__", lambda self: self)
        patch.setattr(ReportWriter, "__exit__", lambda self, *error: None)
        run_in_one_process(options("without"))
    assert not (tmp_path / "without" / REPORT_FILE).exists()
    without = json.loads((tmp_path / "without" / "summary.json").read_text())
    assert without["weights_sha256"] == summary["weights_sha256"]


def test_the_command_writes_the_page_of_a_run_that_is_there(run, tmp_path):
    """Oracle: by hand: of one whose process has ended, of one that goes on, elsewhere; what it refuses."""
    done = CliRunner().invoke(suture, ["report", str(run)])
    assert done.exit_code == 0 and f"open {run / REPORT_FILE}" in done.output
    assert "stopped in round 1 of 9: its process has ended" in (run / REPORT_FILE).read_text()
    with lock_folder(run):
        assert CliRunner().invoke(suture, ["report", str(run), "--out", str(tmp_path / "out")]).exit_code == 0
    assert "running: round 1 of 9" in (tmp_path / "out" / REPORT_FILE).read_text()
    refused = CliRunner().invoke(suture, ["report", str(run), "--foreword", "x"]).exception
    assert isinstance(refused, ConfigError) and "foreword is for a report on experiments" in str(refused)
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(suture, ["report", str(run), "--out", str(tmp_path / "file")]).exception
    assert isinstance(refused, ConfigError) and "name another folder with --out" in str(refused)
