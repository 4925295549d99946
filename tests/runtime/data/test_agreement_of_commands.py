"""``suture check``, ``train`` and ``predict``, each as a person types it, say the same of the same folder.

One folder for each of the eight kinds of docs/data.md. Oracle: numbers of images and patients by hand, and each other.
"""

import csv
import json
import re
import sys

import numpy as np
import pytest
from forked import run
from PIL import Image
from small_files import pictures, write_dicom, write_folders
from test_agreement import NAMES, masks, not_utf_8, semicolons, sets, strewn, turned_and_transparent

from suture.cli import suture
from suture.launch.options.outcome import outcome
from suture.runtime.errors import DataError

NET = """
from collections import OrderedDict
from torch import nn

def net(num_outputs):
    return nn.Sequential(OrderedDict(
        first=nn.Conv2d(3, 4, 3, stride=4), act=nn.Tanh(),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), last=nn.Linear(4, num_outputs)))
"""


def strewn_and_copied(root):
    """Two pictures of one content, besides what lies in folders of pictures."""
    strewn(root)
    (root / "well" / "again.png").write_bytes((root / "well" / "patient1.png").read_bytes())
    (root / "well" / "._a.png").rename(root / "well" / ".hidden.png")


def frames(root):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(turned(root) / "ill" / "patient0.png", save_all=True,
                                                   append_images=[Image.fromarray(np.ones((9, 9), np.uint8))])  # fmt: skip


def turned(root):
    turned_and_transparent(root)
    return root


def dicom(root):
    """Eight patients with two pictures each, of which one says that text is burned in; a report and a text file."""
    rows = ["image,level"]
    for place, (across, pixels) in enumerate(pictures(1, 16)):
        burned = {"BurnedInAnnotation": "YES"} if place == 3 else {}
        write_dicom(root / f"x{place}.DCM", pixels.astype(np.uint16), PatientID=f"p{place // 2}", **burned)
        rows.append(f"x{place}.dcm,{int(across)}")
    (root / "labels.csv").write_text("\n".join([*rows, rows[1]]) + "\n")
    write_dicom(root / "report", pixels.astype(np.uint16))
    content = (root / "report").read_bytes()
    (root / "report").write_bytes(
        content.replace(b"1.2.840.10008.5.1.4.1.1.1\0", b"1.2.840.10008.5.1.4.1.1.66")
    )


def arrays(root):
    """Sixteen images and a copy of each of the first two, in one file."""
    root.mkdir()
    images = np.stack([pixels for _, pixels in pictures(1, 16)])
    labels = np.arange(18) % 2
    np.savez(root / "a.npz", train_images=np.concatenate([images, images[:2]]), train_labels=labels)


KINDS = {
    "1 nothing dropped": ("image-folder", strewn_and_copied, "fold:1/2", (19, 18), 19, "copies of others"),
    "2 orientation": ("image-folder", frames, "fold:1/2", (16, 16), 16, "1 pictures: hold several pages or frames"),
    "3 DICOM": ("dicom", dicom, "fold:1/2", (16, 8), 16, "1 pictures: say that text is burned into them"),
    "4 masks": ("kaggle-cxr", masks, "fold:1/2", (16, 16), 32, "the mask holds the labels 0, 1, 2"),
    "5 trees": ("image-folder", sets, "all", (32, 32), 32, ""),
    "6 tables": ("kaggle-dr", semicolons, "fold:1/2", (16, 16), 16, ""),
    "7 names": ("image-folder", not_utf_8, "fold:1/2", (16, 16), 16, ""),
    "8 arrays": ("medmnist", arrays, "fold:1/2", (18, 16), None, "2 images are copies of others"),
}  # fmt: skip


def typed(*arguments):
    """What a command prints, with one blank in place of line ends, and its exit code."""
    done = run([sys.executable, "-m", "suture", *map(str, arguments)], capture_output=True, timeout=120)
    return " ".join((done.stdout + done.stderr).decode().split()), done.returncode


def checked(capsys, data):
    """The same of ``suture check``, in this process."""
    code = outcome(lambda: suture.main(["check", data, "--image-size", "32"], standalone_mode=False))
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split()), code


@pytest.mark.parametrize("kind", KINDS)
def test_check_train_and_predict_agree(tmp_path, capsys, kind):
    source, write, partition, (images, patients), files, said = KINDS[kind]
    folder, out = tmp_path / "data", tmp_path / "run"
    write(folder)
    data = f"{source}:{folder}" + ("/a.npz" if source == "medmnist" else "")
    (tmp_path / "own.py").write_text(NET)
    net = ["--model", f"module:{tmp_path}/own.py:net", "--cut", "act"]
    net = ["--width", 2] if source == "kaggle-cxr" else net

    page, code = checked(capsys, data)
    assert code == 0, page
    log, code = typed("train", "--data", data, *net, "--partition", partition, "--image-size", 32, "--batch-size", 4, "--clients", 1,
          "--epochs", 1, "--exchange", "local", "--threads", 1, "--checkpoints", "off", "--run-dir", out)  # fmt: skip
    assert code == 0, log
    summary = json.loads((out / "clients" / "client0" / "summary.json").read_text())
    assert f"images {images} of {patients} patients" in page
    assert (sum(summary["images"].values()), sum(summary["patients"].values())) == (images, patients)
    assert [note for note in summary["data_notes"] if " ".join(note.split()) not in page] == [], page
    assert any(said in note for note in [*summary["data_notes"], ""])
    if files is None:
        return
    told, code = typed("predict", out, folder, "--out", tmp_path / "predicted")
    assert code == 0, told
    with (tmp_path / "predicted" / "predictions.csv").open(encoding="utf-8") as table:
        assert len(list(csv.reader(table))) - 1 == files
    in_pictures = {note for note in summary["data_notes"] if re.match(r"\d+ pictures: (hold|say)", note)}
    assert all(note in told for note in in_pictures)
    if source == "image-folder":
        unused = [note for note in summary["data_notes"] if note.startswith("not used: ")]
        assert all(note in told for note in unused) and ("not used" in told) == bool(unused)


def test_a_picture_that_cannot_be_read_is_named_alike_by_check_and_training(tmp_path, capsys):
    """Oracle: the reason, word for word; the code of bad data."""
    folder = write_folders(tmp_path / "data", NAMES, 1, 16)
    (folder / "ill" / "patient0.png").write_bytes(b"")
    small = ["--model", "resnet18", "--image-size", 32, "--exchange", "local", "--clients", 1]
    data = f"image-folder:{folder}"
    trained = typed("train", "--data", data, "--partition", "fold:1/2", *small, "--run-dir", tmp_path / "run")
    for page, code in (checked(capsys, data), trained):
        assert code == DataError.exit_code
        assert f"cannot read image {folder}/ill/patient0.png: it is empty" in page
