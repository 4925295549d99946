"""What a run writes and prints holds no file name, pixel or labels of an image, outside the client's own folder.

Oracle: names, rows of pixels and rows of labels that occur nowhere else, looked for in every byte of the run folder and of
both streams; controls find what is there.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, suture
from PIL import Image

from suture.launch.lab.judging import build_witnesses, read_run, run_key

PATIENTS = [f"zz{number:02}patient" for number in range(12)]
KINDS = ("sicklings", "healthies")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run of two clients over RPC on a small folder of images."""
    place = tmp_path_factory.mktemp("told")
    noise = np.random.default_rng(0)
    for kind in KINDS:
        (place / "images" / kind).mkdir(parents=True)
        for patient in PATIENTS:
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / kind / f"{patient}{kind[0]}.png")
    options = [
        *TINY,
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--train-images",
        "8",
        "--validation-images",
        "2",
        "--test-images",
        "2",
    ]
    options += [
        "--clients",
        "2",
        "--data",
        f"image-folder:{place / 'images'}",
        "--run-dir",
        str(place / "run"),
    ]
    ended = suture("train", *options)
    assert ended.code == 0, ended.err
    return place / "run", ended


def told(text: bytes) -> list[str]:
    return [name for name in PATIENTS if name.encode() in text]


def outside(folder: Path) -> list[Path]:
    """All that a run leaves, but for the clients' own folders."""
    found = [path for path in folder.rglob("*") if path.is_file() and "clients" not in path.parts]
    assert len(found) > 5
    return found


@pytest.fixture(scope="module")
def private(run):
    """The middle row of every image, as its file and as a batch has it, and the labels of every batch, as bytes."""
    folder, _ = run
    options, _ = read_run(folder)
    files = [np.asarray(Image.open(path))[16] for path in (folder.parent / "images").rglob("*.png")]
    pixels = [row.tobytes() for row in files] + [row[:, 0].tobytes() for row in files]
    labels = []
    for witness in build_witnesses(options, run_key(options, folder, None)):
        for batch in witness.train_batches(1):
            pixels += [row.numpy().tobytes() for row in batch.inputs[:, 0, 16]]
            given = batch.targets.tolist()
            labels += [
                batch.targets.numpy().tobytes(),
                str(given).encode(),
                str(given).replace(" ", "").encode(),
            ]
    assert len(pixels) == 2 * 24 + 2 * 8 and len(labels) == 2 * 3
    return pixels, labels


def found(private: tuple[list[bytes], list[bytes]], text: bytes) -> bool:
    return any(secret in text for kind in private for secret in kind)


def test_no_pixel_and_no_labels_are_written_or_printed(run, private):
    """Oracle: the images, and the batches as the judge rebuilds them."""
    folder, ended = run
    assert not found(private, (ended.out + ended.err).encode())
    assert [str(path) for path in outside(folder) if found(private, path.read_bytes())] == []


def test_the_search_finds_pixels_and_labels_as_torch_would_write_them(private, tmp_path):
    """A control: a row, and a batch's labels, saved by torch among other things; and labels that were printed."""
    pixels, labels = private
    for secret, kind in ((pixels[-1], torch.float32), (labels[0], torch.int64)):
        saved = torch.frombuffer(bytearray(secret), dtype=kind)
        torch.save({"a": torch.randn(5), "b": saved}, tmp_path / "saved.pt")
        assert found(private, (tmp_path / "saved.pt").read_bytes())
    assert found(
        private, f"labels {torch.frombuffer(bytearray(labels[0]), dtype=torch.int64).tolist()}".encode()
    )


def test_no_patient_is_named_outside_a_clients_own_folder(run):
    """Oracle: the names of all images' files; TensorBoard's and the checkpoints' bytes are searched, too."""
    folder, ended = run
    assert not told((ended.out + ended.err).encode())
    searched = outside(folder)
    assert {str(path): told(path.read_bytes()) for path in searched if told(path.read_bytes())} == {}
    assert not [path for path in folder.rglob("*") if told(str(path.relative_to(folder)).encode())]


def test_the_search_finds_what_is_there(run):
    """A control: the classes' names are agreed on and are found, as the client's model keeps them."""
    folder, _ = run
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KINDS[0].encode() in kept
