"""What a person can get wrong ends in one clear line, a code above zero, no traceback, and nothing left behind.

Oracle: the words of the error (value, bound, remedy), written out here.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, Ranks, refused, suture
from PIL import Image

from suture import cli
from suture.launch.options.outcome import outcome
from suture.runtime.errors import SutureError


@pytest.fixture
def run(capsys, tmp_path):
    """Runs ``suture train --exchange local`` in this process and returns the one line that it ended with."""

    def run_and_read(*arguments: str, code: int) -> str:
        folder = tmp_path / "run"
        command = ["suture", "train", "--exchange", "local", "--run-dir", str(folder), *arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", command)
            ended = outcome(lambda: cli.suture.main(standalone_mode=False))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("suture: ")]
        assert ended == code and len(lines) == 1, (ended, lines)
        assert not folder.exists(), "a run that never began left a folder"
        return lines[0]

    return run_and_read


def _retina_folder(path: Path, levels: dict[str, int], column: str = "level") -> Path:
    images = path / "resized_train_cropped" / "resized_train_cropped"
    images.mkdir(parents=True)
    for number, name in enumerate(levels):
        # Equal files would count as one patient's.
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.jpeg")
    with (path / "trainLabels_cropped.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Unnamed: 0", "image", column])
        writer.writerows([i, i, name, level] for i, (name, level) in enumerate(levels.items()))
    return path


def test_no_such_data_path(run):
    assert "no/such/place does not exist" in run("--data", "kaggle-dr:no/such/place", code=3)


def test_an_empty_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in run("--data", f"image-folder:{tmp_path / 'empty'}", code=3)


def test_a_csv_without_the_column(run, tmp_path):
    folder = _retina_folder(tmp_path / "dr", {"1_left": 0, "2_left": 1}, column="grade")
    line = run("--data", f"kaggle-dr:{folder}", code=3)
    assert "trainLabels_cropped.csv" in line and "level" in line and "grade" in line


def test_a_corrupt_image(run, tmp_path):
    folder = _retina_folder(tmp_path / "dr", {f"{i}_left": i % 2 for i in range(40)})
    broken = next(folder.rglob("7_left.jpeg"))
    for image in folder.rglob("*.jpeg"):
        image.write_bytes(b"\xff\xd8 not a picture but " + image.name.encode())
    sizes = ("--train-images", "8", "--validation-images", "0", "--test-images", "4", "--clients", "1")
    line = run("--data", f"kaggle-dr:{folder}", *sizes, code=3)
    assert "cannot read image" in line and str(broken.parent) in line and "remove or replace" in line


def test_a_mask_of_another_size(run, tmp_path):
    for kind in ("CXR_png", "masks"):
        (tmp_path / "Lung Segmentation" / kind).mkdir(parents=True)
    for number in range(12):
        name = f"MCUCXR_{number:04d}_0.png"
        Image.new("L", (32, 32), number).save(tmp_path / "Lung Segmentation" / "CXR_png" / name)
        Image.fromarray(np.full((32, 20), 255, np.uint8)).save(
            tmp_path / "Lung Segmentation" / "masks" / name
        )
    sizes = "--train-images 4 --validation-images 0 --test-images 2 --clients 1 --image-size 32 --width 4"
    line = run("--data", f"kaggle-cxr:{tmp_path}", *sizes.split(), code=3)
    assert "20" in line and "32" in line and "mask" in line


def test_a_class_with_too_few_images(run, tmp_path):
    folder = _retina_folder(tmp_path / "dr", {f"{i}_left": int(i < 3) for i in range(60)})
    line = run("--data", f"kaggle-dr:{folder}", "--train-images", "16", "--clients", "1", code=3)
    assert "'retinopathy'" in line and "3 are present" in line and "fewer" in line


@pytest.mark.parametrize(
    ("model", "cut", "bound"),
    [
        ("resnet34", "12", "0..8"),
        ("resnet34", "-1", "0..8"),
        ("unet", "5", "1..4"),
        ("resnet18", "layer9", "layer4.1, layer4, avgpool"),
    ],
)
def test_a_cut_out_of_range(run, model, cut, bound):
    data = "chest-phantom" if model == "unet" else "fundus-phantom"
    line = run("--data", data, "--model", model, "--cut", cut, code=2)
    assert cut in line and bound in line


def test_more_clients_than_patients(run, tmp_path):
    folder = _retina_folder(tmp_path / "dr", {f"{i}_left": i % 2 for i in range(6)})
    line = run("--data", f"kaggle-dr:{folder}", "--clients", "9", code=3)
    assert "9 clients" in line and "6 patients" in line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data", "fundus"], ["unknown data source 'fundus'", "fundus-phantom", "kaggle-dr:PATH"]),
        (["--model", "resnet99"], ["resnet34", "unet", "'resnet99'"]),
        (
            ["--model", "unet"],
            ["unet is for segmentation", "fundus-phantom is for classification", "resnet34"],
        ),
        (["--image-size", "4"], ["4"]),
        (["--epochs", "0"], ["epochs must be at least 1, got 0"]),
        (["--lr", "-1"], ["lr must be above 0", "-1"]),
        (["--schedule", "fastest"], ["round-robin, shuffled", "'fastest'"]),
        (["--schedule", "replay:no.jsonl"], ["no.jsonl"]),
        (["--partition", "dirichlet:x"], ["dirichlet", "dirichlet:x"]),
        (["--partition", "by-site"], ["site"]),
        (["--seed", "-3"], ["seed must lie in 0..", "-3"]),
        (["--handoff-key", "no/key"], ["no/key", "suture keygen"]),
        (["--weights", "no/weights.pt"], ["no/weights.pt"]),
        (["--config", "no.toml"], ["no.toml"]),
        (["--pooled"], ["--unsplit"]),
        (["--device", "tpu"], ["auto, cpu, cuda", "'tpu'"]),
    ],
)
def test_an_option_that_cannot_work(run, arguments, parts):
    line = run(*arguments, code=2)
    for part in parts:
        assert part in line


def test_a_config_file_with_an_unknown_option(run, tmp_path):
    (tmp_path / "my.toml").write_text('modle = "resnet34"\n')
    line = run("--config", str(tmp_path / "my.toml"), code=2)
    assert "unknown option 'modle'" in line and "model" in line


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    ended = suture("train", *TINY, "--exchange", "local", "--run-dir", str(tmp_path))
    refused(ended, "is not empty", "--resume", "--run-dir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_other_options_names_both_values(tmp_path):
    options = [
        *TINY,
        "--exchange",
        "local",
        "--clients",
        "1",
        "--epochs",
        "1",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert suture("train", *options).code == 0
    refused(suture("train", *options, "--resume", "--lr", "0.5"), "lr = 0.0003", "0.5")
    missing = suture("train", *TINY, "--exchange", "local", "--run-dir", str(tmp_path / "no"), "--resume")
    refused(missing, "holds no run to resume")
    assert not (tmp_path / "no").exists()


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    ended = suture(
        "train", *TINY, "--clients", "2", "--lr", "1e30", "--optimizer", "sgd", "--run-dir", str(run)
    )
    line = refused(ended, "client0", "round 1", "batch", "--lr")
    assert ended.code == 7, line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["turn_000000.pt"]
    assert not (run / "summary.json").exists()


def test_a_world_of_one(ranks):
    group: Ranks = ranks(1)
    group.start(0)
    refused(group.ended(0), "at least one client", "--nproc_per_node=2")


def test_two_ranks_with_different_options(ranks, tmp_path):
    group: Ranks = ranks(2)
    group.start(0, *TINY, "--run-dir", str(tmp_path / "run"))
    group.start(1, *TINY, "--lr", "0.5")
    line = refused(group.ended(1), "client0 has lr = 0.5", "the server has 0.0003")
    assert group.ended(0).code > 0 and line
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_wrong_handoff_key(ranks, tmp_path):
    """The second client cannot open what the first one sealed; the turn is rolled back and the run stops."""
    group: Ranks = ranks(3)
    group.start(0, *TINY, "--run-dir", str(tmp_path / "run"))
    for rank in (1, 2):
        suture("keygen", str(tmp_path / f"key{rank}"))
        group.start(rank, *TINY, "--handoff-key", str(tmp_path / f"key{rank}"))
    line = refused(group.ended(2), "hand-off of turn 1 does not open", "same --handoff-key")
    assert group.ended(2).code == 5, line
    assert group.ended(0).code > 0 and group.ended(1).code > 0
    assert len((tmp_path / "run" / "turns.jsonl").read_text().splitlines()) == 1


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    """Oracle: the last whole checkpoint is still there and resumes to the uninterrupted run's weights."""
    import torch

    from suture.launch.options.options import AskedOptions
    from suture.launch.roles.one_process import play_locally
    from suture.runtime.state import checkpoint

    torch.set_num_threads(1)
    options = AskedOptions(
        model="resnet18", image_size=32, train_images=8, validation_images=0, test_images=4, batch_size=4,
        epochs=2, clients=2,
    ).resolved()  # fmt: skip
    monkeypatch.setattr("suture.launch.build.new_run_id", lambda: "run")
    (tmp_path / "whole").mkdir()
    expected = play_locally(options, bytes(32), tmp_path / "whole").weights_sha256()

    write, written = checkpoint.write_atomically, []

    def full(path, *chunks):
        if path.suffix == ".pt" and len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, *chunks)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(SutureError, match=r"No space left on device; the last whole checkpoint is kept"):
        play_locally(options, bytes(32), tmp_path)
    monkeypatch.setattr(checkpoint, "write_atomically", write)
    assert not list((tmp_path / "checkpoints").glob(".*")), "half a file was left"
    assert play_locally(options, bytes(32), tmp_path, resume=True).weights_sha256() == expected


def test_one_machine_key_files_are_private(tmp_path):
    path = tmp_path / "key"
    assert suture("keygen", str(path)).code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    refused(suture("keygen", str(path)), "never overwritten")
    shutil.rmtree(tmp_path)
