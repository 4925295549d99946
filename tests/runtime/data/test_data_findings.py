"""Several findings an image: a table with a column a finding, and an npz with as many labels."""

import numpy as np
import pytest
from PIL import Image

from suture.runtime.data.class_names import mapped, matched
from suture.runtime.data.medmnist import open_medmnist
from suture.runtime.data.registry import open_source
from suture.runtime.data.site_shares import SharesConfig, site_share
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError, DataError

COLUMNS = "image=file,finding=Edema,finding=Pleural Effusion"
ROWS = ["a,1,0,p1", "b,0,1.0,p1", "c,1,1,p2", "d,0,0,p3"]


def write(folder, rows=ROWS, heading="file,Edema,Pleural Effusion,patient"):
    folder.mkdir(exist_ok=True)
    for shade, name in enumerate("abcd"):
        Image.fromarray(np.full((8, 8), 40 * shade, np.uint8)).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("\n".join([heading, *rows]) + "\n")
    return folder


def opened(folder, columns=COLUMNS):
    return open_source(f"findings:{folder}", grades="binary", need=1, seed=0, columns=columns)


def test_a_table_of_findings_is_read(tmp_path):
    """Oracle: by hand."""
    source = opened(write(tmp_path / "in"))
    assert source.task is Task.MULTI_LABEL and source.classes == ("Edema", "Pleural Effusion")
    assert [(one.key, one.patient, one.findings) for one in source.examples] == [
        ("a", "p1", (0,)),
        ("b", "p1", (1,)),
        ("c", "p2", (0, 1)),
        ("d", "p3", ()),
    ]
    assert [source.read(index, 8, 1)[1].tolist() for index in range(4)] == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert not source.mirror


@pytest.mark.parametrize(
    ("rows", "columns", "error", "words"),
    [
        (
            ["a,1,0,p", "b,,0,p"],
            COLUMNS,
            DataError,
            "line 3: Edema must be 0 or 1, got ''; what is uncertain",
        ),
        (["a,1,-1,p"], COLUMNS, DataError, "line 2: Pleural Effusion must be 0 or 1, got '-1'"),
        (ROWS, "image=file,finding=Mass", DataError, "has no column 'Mass'; its columns are: file, Edema"),
        (ROWS, "image=file", ConfigError, "must be told which columns are findings: --columns finding=edema"),
        (ROWS, "finding=Edema,finding=Edema", ConfigError, "names a column twice"),
    ],
)
def test_what_is_no_finding_is_refused(rows, columns, error, words, tmp_path):
    """Oracle: the message."""
    with pytest.raises(error, match=words):
        opened(write(tmp_path / "in", rows), columns)


def test_a_site_has_the_runs_findings_in_the_runs_order(tmp_path):
    """Oracle: by hand; a finding that the site says nothing of is not absent, and refused."""
    source = opened(write(tmp_path / "in"))
    turned = matched(mapped(source, {"Pleural Effusion": "effusion"}), ("effusion", "Edema"))
    assert [turned.read(index, 8, 1)[1].tolist() for index in range(4)] == [[0, 1], [1, 0], [1, 1], [0, 0]]
    with pytest.raises(DataError, match="says nothing of Mass, which the run looks for"):
        matched(source, ("Edema", "Mass", "Pleural Effusion"))
    with pytest.raises(DataError, match="has images of Edema, which is no class of the run"):
        matched(source, ("Pleural Effusion",))


def test_a_site_divides_its_images_by_patient(tmp_path):
    """Oracle: no patient is in two sets, and all images are in one."""
    source = opened(write(tmp_path / "in"))
    share = site_share(source, SharesConfig(validation=0, test=0.3), 0)
    sets = [{source.examples[i].patient for i in part} for part in (share.train, share.test)]
    assert not sets[0] & sets[1] and sorted((*share.train, *share.test)) == [0, 1, 2, 3]


def npz(path, width=14, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (6, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (6, width))
    np.savez(path, **arrays | changes)
    return path


def test_an_npz_with_a_row_of_zeros_and_ones_an_image_is_findings(tmp_path):
    """Oracle: its labels; ChestMNIST's names by the file's own name, numbers else."""
    path = npz(tmp_path / "chestmnist_64.npz")
    source, labels = open_medmnist(path), np.load(path)["train_labels"]
    assert (
        source.task is Task.MULTI_LABEL and source.classes[0] == "atelectasis" and len(source.classes) == 14
    )
    assert source.read(2, 28, 1)[1].tolist() == labels[2].tolist()
    assert sum(one.official_test for one in source.examples) == 6
    assert open_medmnist(npz(tmp_path / "other.npz")).classes[:2] == ("finding 0", "finding 1")


def test_a_label_that_is_neither_0_nor_1_is_refused(tmp_path):
    """Oracle: the message."""
    with pytest.raises(DataError, match="where an image may have several findings, a 0 or a 1 for each"):
        open_medmnist(npz(tmp_path / "a.npz", train_labels=np.full((6, 14), 2)))
