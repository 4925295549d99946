"""What is written down, what still counts after a roll-back or a resume, and what TensorBoard makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped, unused-ignore]
    EventAccumulator,
)

from suture.runtime.errors import CheckpointError, WireError
from suture.runtime.records.tracking import ClientPictures, Tracker, read_events, read_metrics


def _points(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a curve as TensorBoard itself shows it."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, round(event.value, 4)) for event in accumulator.Scalars(tag)]


def _train(tracker: Tracker, turn: int, steps: range, client: str = "client0", offset: float = 0.0) -> None:
    for step in steps:
        tracker.train_step(step, round=1, turn=turn, client=client, loss=step + offset, num_images=4)


def test_each_line_is_one_object_with_the_fields_of_the_contract(tmp_path: Path) -> None:
    """Oracle: the contract of RUN/metrics.jsonl, read with plain json while the tracker is still open."""
    tracker = Tracker(tmp_path / "run")
    tracker.train_step(1, 1, 1, "client0", 0.5, 4)
    tracker.scores(1, 1, 2, "client0", "test", {"loss": 0.4, "accuracy": 0.75})
    tracker.event("lost", client="client1", reason="missed heartbeat")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tracker.close()
    assert lines == [
        {"step": 1, "round": 1, "turn": 1, "client": "client0", "phase": "train", "loss": 0.5, "images": 4},
        {
            "step": 1,
            "round": 1,
            "turn": 2,
            "client": "client0",
            "phase": "test",
            "loss": 0.4,
            "accuracy": 0.75,
        },
        {"event": "lost", "client": "client1", "reason": "missed heartbeat"},
    ]


def test_clients_have_the_same_tags_in_folders_of_their_own(tmp_path: Path) -> None:
    """Oracle: what TensorBoard's own reader finds."""
    tracker = Tracker(tmp_path)
    _train(tracker, 1, range(1, 3), "client0")
    _train(tracker, 2, range(3, 5), "client1")
    for turn, client in ((3, "client0"), (4, "client1")):
        tracker.scores(4, 1, turn, client, "test", {"loss": 0.25, "accuracy": 0.5})
    tracker.close()
    board = tmp_path / "tensorboard"
    assert _points(board / "client0", "loss/train") == [(1, 1.0), (2, 2.0)]
    assert _points(board / "client1", "loss/train") == [(3, 3.0), (4, 4.0)]
    for client in ("client0", "client1"):
        assert _points(board / client, "loss/test") == [(4, 0.25)]
        assert _points(board / client, "test/accuracy") == [(4, 0.5)]


def test_a_rolled_back_turn_no_longer_counts_but_its_lines_stay(tmp_path: Path) -> None:
    """Oracle: the lines written, those of the first attempt at turn 2 left out, in jsonl and TensorBoard."""
    tracker = Tracker(tmp_path)
    _train(tracker, 1, range(1, 3))
    _train(tracker, 2, range(3, 6), offset=0.5)
    tracker.event("rolled_back", turn=2, client="client0", reason="lease ran out")
    _train(tracker, 2, range(3, 5))
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    assert [line["loss"] for line in read_metrics(path)] == [1, 2, 3, 4]
    assert len(path.read_text().splitlines()) == 8
    assert read_events(path) == [
        {"event": "rolled_back", "turn": 2, "client": "client0", "reason": "lease ran out"}
    ]
    assert _points(tmp_path / "tensorboard" / "client0", "loss/train") == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_resumed_run_has_no_doubles(tmp_path: Path) -> None:
    """Oracle: the curve of a run that did not crash: turn 1 of the first process, then the second's turns.

    client1 never comes back; what it wrote after the point of resumption is gone from its curve as well.
    """
    first = Tracker(tmp_path)
    _train(first, 1, range(1, 4))
    _train(first, 2, range(4, 8), offset=0.5)
    _train(first, 3, range(8, 10), "client1")
    first.close()
    second = Tracker(tmp_path, resume_step=3)
    second.event("resumed", after_turn=1, step=3)
    _train(second, 2, range(4, 6))
    second.close()
    expected = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == expected
    points = _points(tmp_path / "tensorboard" / "client0", "loss/train")
    assert points == [(step, float(step)) for step in range(1, 6)]
    assert _points(tmp_path / "tensorboard" / "client1", "loss/train") == []


@pytest.mark.parametrize("torn", ['{"step": 3, "rou', '{"step": 3, "client": "client\\u00', "{", '"half"'])
def test_a_torn_last_line_is_ignored_and_closed_on_reopening(tmp_path: Path, torn: str) -> None:
    """Oracle: the whole lines before and after it."""
    path = tmp_path / "metrics.jsonl"
    first = Tracker(tmp_path)
    _train(first, 1, range(1, 3))
    first.close()
    with path.open("a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    second = Tracker(tmp_path, resume_step=2)
    second.event("resumed", after_turn=1, step=2)
    _train(second, 2, range(3, 4))
    second.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    assert [event["event"] for event in read_events(path)] == ["resumed"]


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    """Oracle: the count of steps; the process is killed without closing anything."""
    code = (
        "import os, sys; from pathlib import Path; from suture.runtime.records.tracking import Tracker\n"
        "tracker = Tracker(Path(sys.argv[1]))\n"
        "for step in range(1, 51): tracker.train_step(step, 1, 1, 'client0', 0.5, 4)\n"
        "os._exit(9)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, timeout=60, check=False)
    assert done.returncode == 9
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 50


_WRITTEN = st.one_of(
    st.tuples(st.just("train"), st.integers(1, 4)),
    st.tuples(st.just("rolled_back"), st.integers(1, 4)),
    st.tuples(st.just("resumed"), st.integers(0, 4)),
)


@settings(max_examples=60, deadline=None)
@given(written=st.lists(_WRITTEN, max_size=20))
def test_what_counts_is_what_no_later_event_voids(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, int]]
) -> None:
    """Oracle: the definition read literally, looking from every line at all events after it."""
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for step, (kind, turn) in enumerate(written):
        if kind == "train":
            records.append({"step": step, "turn": turn, "phase": "train"})
        else:
            records.append({"event": kind, "turn" if kind == "rolled_back" else "after_turn": turn})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def voided(line: dict[str, Any], later: list[dict[str, Any]]) -> bool:
        return any(r.get("event") == "rolled_back" and r["turn"] == line["turn"] for r in later) or any(
            r.get("event") == "resumed" and line["turn"] > r["after_turn"] for r in later
        )

    expected = [r for i, r in enumerate(records) if "phase" in r and not voided(r, records[i + 1 :])]
    assert read_metrics(path) == expected


def test_a_loss_that_is_not_finite_is_still_json(tmp_path: Path) -> None:
    """Oracle: a strict parser; NaN is no JSON."""
    tracker = Tracker(tmp_path)
    tracker.train_step(1, 1, 1, "client0", float("nan"), 4)
    tracker.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "client0\n", "whole run"])
def test_a_client_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Oracle: nothing was written at all."""
    tracker = Tracker(tmp_path / "run")
    with pytest.raises(WireError, match="no plain file name"):
        tracker.train_step(1, 1, 1, name, 0.5, 4)
    tracker.close()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["metrics.jsonl"]


def test_options_and_final_scores_are_one_row_of_the_hparams_tab(tmp_path: Path) -> None:
    """Oracle: TensorBoard's own reader, and the hparams plug-in's data."""
    from tensorboard.plugins.hparams import metadata  # type: ignore[import-untyped, unused-ignore]

    tracker = Tracker(tmp_path)
    options = {"lr": 0.001, "model": "resnet34", "unsplit": False, "data": Path("a"), "attack": None}
    tracker.hparams(options, {"auroc": 0.75, "loss": float("nan")})
    tracker.close()
    folder = tmp_path / "tensorboard" / "whole run"
    assert _points(folder, "whole run/auroc") == [(0, 0.75)]
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    content = accumulator.PluginTagToContent(metadata.PLUGIN_NAME)
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert set(started.hparams) == set(options)
    assert started.hparams["lr"].number_value == 0.001
    assert started.hparams["data"].string_value == "a"


def test_a_line_costs_less_than_fifty_microseconds(tmp_path: Path) -> None:
    """Oracle: the budget, on the best of five runs of 400 lines; TensorBoard's own queue is not counted."""
    tracker = Tracker(tmp_path)
    record = {"step": 1, "round": 1, "turn": 1, "client": "client0", "phase": "train", "loss": 0.123456}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(400):
            tracker._write(record)
        seconds.append((time.perf_counter() - start) / 400)
    tracker.close()
    assert min(seconds) < 50e-6


def test_closing_leaves_no_thread_and_may_be_repeated(tmp_path: Path) -> None:
    """Oracle: the threads before; each TensorBoard writer has one of its own."""
    before = set(threading.enumerate())
    tracker = Tracker(tmp_path)
    _train(tracker, 1, range(1, 3))
    tracker.flush()
    tracker.hparams({"lr": 0.1}, {})
    tracker.close()
    tracker.close()
    assert set(threading.enumerate()) == before


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path) -> None:
    """Oracle: the message; /dev/full takes no byte. Closing it says nothing more."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    sentence = r"metrics.jsonl: No space left on device; .*: make room, then start again with --resume$"
    with pytest.raises(CheckpointError, match=sentence), Tracker(tmp_path) as tracker:
        tracker.train_step(1, 1, 1, "client0", 0.5, 4)


@pytest.mark.parametrize("spoil", ["removed", "moved", "replaced"])
def test_a_file_that_is_not_there_any_more_is_noticed_at_each_turn(tmp_path: Path, spoil: str) -> None:
    """Oracle: the message; the system itself would go on writing to the file that nobody finds."""
    run = tmp_path / "run"
    with (
        pytest.raises(CheckpointError, match="moved or removed while the run went on"),
        Tracker(run) as tracker,
    ):
        tracker.event("begun")
        tracker.flush()
        if spoil == "removed":
            shutil.rmtree(run)
        elif spoil == "moved":
            run.rename(tmp_path / "elsewhere")
        else:
            (run / "metrics.jsonl").unlink()
            (run / "metrics.jsonl").touch()
        tracker.event("begun")
        tracker.flush()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_tensorboards_thread_reaches_whoever_writes_next(tmp_path: Path) -> None:
    """Oracle: the message, which names the folder that was removed."""
    with (
        pytest.raises(CheckpointError, match="tensorboard/client0/.*moved or removed"),
        Tracker(tmp_path) as tracker,
    ):
        tracker.train_step(1, 1, 1, "client0", 0.5, 4)
        tracker.flush()
        shutil.rmtree(tmp_path / "tensorboard")
        tracker.train_step(2, 1, 1, "client0", 0.5, 4)
        tracker.flush()


def test_what_ends_a_run_is_not_hidden_by_what_closing_meets(tmp_path: Path) -> None:
    """Oracle: the first error comes out, and the second only where there is no first."""
    with pytest.raises(WireError, match="the first"), Tracker(tmp_path / "a") as tracker:
        tracker._lines = _Unclosable(tracker._lines)
        raise WireError("the first")
    with pytest.raises(CheckpointError, match="No space left"), Tracker(tmp_path / "b") as tracker:
        tracker._lines = _Unclosable(tracker._lines)


class _Unclosable:
    def __init__(self, lines: Any) -> None:
        self._lines = lines

    def close(self) -> None:
        self._lines.close()
        raise OSError(28, "No space left on device")


def test_importing_the_module_does_not_import_tensorboard() -> None:
    """Oracle: sys.modules of a fresh process."""
    code = "import suture.runtime.records.tracking, sys; sys.exit(any(m.split('.')[0] == 'tensorboard' for m in sys.modules))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("shape", [(2, 5, 6, 6), (2, 100, 4, 4), (1, 1, 3, 3), (2, 512), (2, 7)])
def test_activations_of_every_shape_become_one_picture(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Oracle: TensorBoard finds one image at that step; only the first image of the batch is in it."""
    generator = torch.Generator().manual_seed(0)
    smashed = torch.randn(shape, generator=generator, requires_grad=True)
    other = torch.cat([smashed[:1], torch.zeros_like(smashed[1:])])
    found = []
    for name, values in (("a", smashed), ("b", other)):
        pictures = ClientPictures(tmp_path / name)
        pictures.activations(7, values)
        pictures.close()
        accumulator = EventAccumulator(str(tmp_path / name))
        accumulator.Reload()
        (image,) = accumulator.Images("smashed data")
        assert image.step == 7
        found.append(image.encoded_image_string)
    assert found[0] == found[1]


@pytest.mark.parametrize("num_channels", [1, 3])
def test_masks_are_shown_beside_their_image(tmp_path: Path, num_channels: int) -> None:
    """Oracle: size of the grid: 3 columns and 2 rows of 8 pixels with 2 pixels of border."""
    pictures = ClientPictures(tmp_path)
    masks = torch.zeros(2, 1, 8, 8)
    pictures.segmentation(3, torch.rand(2, num_channels, 8, 8) * 5 - 2, masks.bool(), masks)
    pictures.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    (image,) = accumulator.Images("image, truth, prediction")
    assert (image.height, image.width) == (2 * 10 + 2, 3 * 10 + 2)
