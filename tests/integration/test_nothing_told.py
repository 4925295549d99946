"""What a run writes and prints holds no file name of an image, outside the client's own folder.

Oracle: names that occur nowhere else, looked for in every byte of the run folder and of both streams; a control finds
the ones that may be there.
"""

import numpy as np
import pytest
from conftest import TINY, suture
from PIL import Image

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
        "--train-images",
        "4",
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


def test_no_patient_is_named_outside_a_clients_own_folder(run):
    """Oracle: the names of all images' files; TensorBoard's and the checkpoints' bytes are searched, too."""
    folder, ended = run
    assert not told((ended.out + ended.err).encode())
    searched = [path for path in folder.rglob("*") if path.is_file() and "clients" not in path.parts]
    assert len(searched) > 5
    assert {str(path): told(path.read_bytes()) for path in searched if told(path.read_bytes())} == {}
    assert not [path for path in folder.rglob("*") if told(str(path.relative_to(folder)).encode())]


def test_the_search_finds_what_is_there(run):
    """A control: the classes' names are agreed on and are found, as the client's model keeps them."""
    folder, _ = run
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KINDS[0].encode() in kept


def test_the_token_is_told_nowhere(run):
    """Oracle: a token's beginning; the file is gone when the clients have read it."""
    folder, ended = run
    assert not (folder / "token").exists()
    assert "token-" not in ended.out + ended.err
    assert not [path for path in folder.rglob("*") if path.is_file() and b"token-" in path.read_bytes()]
