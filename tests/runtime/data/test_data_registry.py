"""Every registered source is opened from a small fixture in its real layout and held to the same contract."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from small_files import write_dicom

from suture.runtime.data.client_data import ClientData
from suture.runtime.data.partition import PartitionConfig, partition
from suture.runtime.data.registry import SOURCES, DataConfig, open_source, split_spec
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.errors import ConfigError, DataError


def grey(seed, height=20, width=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def kaggle_dr(root, png):
    rows = [",Unnamed: 0,image,level"]
    for i in range(24):
        name = f"{i // 2}_{('left', 'right')[i % 2]}"
        png(
            root / "resized_train_cropped" / "resized_train_cropped" / f"{name}.jpeg",
            np.dstack([grey(i)] * 3),
        )
        rows.append(f"{i},{i},{name},{i % 5}")
    (root / "trainLabels_cropped.csv").write_text("\n".join(rows) + "\n")
    return root


def kaggle_cxr(root, png):
    base = root / "Lung Segmentation"
    for i in range(1, 13):
        mask = (grey(i) > 128).astype(np.uint8) * 255
        png(base / "CXR_png" / f"MCUCXR_{i:04d}_0.png", grey(i))
        png(base / "masks" / f"MCUCXR_{i:04d}_0.png", mask)
        png(base / "CXR_png" / f"CHNCXR_{i:04d}_1.png", grey(i))
        png(base / "masks" / f"CHNCXR_{i:04d}_1_mask.png", mask)
    return root


def medmnist(root, png):
    arrays = {}
    for split, count in (("train", 20), ("val", 6), ("test", 12)):
        arrays[f"{split}_images"] = np.stack([grey(i, 28, 28) for i in range(count)])
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    np.savez(root / "tiny.npz", **arrays)
    return root / "tiny.npz"


def idx(root, png):
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = np.stack([grey(i, 28, 28) for i in range(count)])
        labels = (np.arange(count) % 10).astype(np.uint8)
        content = struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes()
        (root / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        content = struct.pack(">II", 0x801, count) + labels.tobytes()
        (root / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return root


def image_folder(root, png):
    for i in range(12):
        for place, site in enumerate(("north", "south")):
            for label, name in enumerate(("ill", "well")):
                # Never the same picture: of two classes it is refused.
                png(root / site / name / f"{name}{i}.png", grey(4 * i + 2 * place + label, 20, 14))
    return root


def findings(root, png):
    rows = ["image,edema,effusion"]
    for i in range(30):
        png(root / f"f{i}.png", grey(i))
        rows.append(f"f{i},{i % 2},{i // 2 % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def dicom(root, png):
    pydicom = pytest.importorskip("pydicom")
    assert pydicom
    for i in range(16):
        write_dicom(root / "files" / f"d{i}.dcm", grey(i).astype(np.uint16))
    (root / "labels.csv").write_text("image,level\n" + "".join(f"d{i},{i % 2}\n" for i in range(16)))
    return root


def nothing(root, png):
    return None


FIXTURES = {
    "fundus-phantom": nothing,
    "chest-phantom": nothing,
    "kaggle-dr": kaggle_dr,
    "kaggle-cxr": kaggle_cxr,
    "medmnist": medmnist,
    "mnist": idx,
    "fashion-mnist": idx,
    "image-folder": image_folder,
    "findings": findings,
    "dicom": dicom,
}


@pytest.fixture(params=sorted(SOURCES))
def source(request, tmp_path, png) -> Source:
    assert request.param in FIXTURES, "a new source needs a fixture in its real layout"
    path = FIXTURES[request.param](tmp_path, png)
    spec = request.param if path is None else f"{request.param}:{path}"
    columns = "finding=edema,finding=effusion" if request.param == "findings" else None
    return open_source(spec, grades="binary", need=20, seed=0, columns=columns)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 33])
def test_a_source_reads_what_it_promises(source, size, channels):
    image, target = source.read(len(source.examples) - 1, size, channels)
    assert image.shape == (channels, size, size) and image.dtype == torch.uint8
    assert image.is_contiguous() and image.float().std() > 0
    if source.task is Task.SEGMENTATION:
        assert target.shape == (1, size, size) and target.dtype == torch.float32
        assert set(target.unique().tolist()) == {0.0, 1.0}
        assert len(source.classes) == 2 and source.examples[0].label is None
    elif source.task is Task.MULTI_LABEL:
        assert target.shape == (len(source.classes),) and target.dtype == torch.int64
        assert target.nonzero().flatten().tolist() == list(source.examples[-1].findings)
    else:
        assert target.shape == () and target.dtype == torch.int64
        assert int(target) == source.examples[-1].label
    again, _ = source.read(len(source.examples) - 1, size, channels)
    assert torch.equal(image, again)


def test_a_source_can_be_divided_and_batched(source):
    per_class = len(source.classes) if source.task is Task.CLASSIFICATION else 1
    many = 2 if per_class == 2 else 10
    config = PartitionConfig(train_images=many, validation_images=0, test_images=2)
    shares = partition(source, config, 2, 0)
    data = ClientData(source, shares[0], image_size=16, channels=3, normalisation="imagenet", augment="light")
    (batch,) = data.train_batches(
        many, torch.Generator().manual_seed(1), lambda number: torch.Generator().manual_seed(number)
    )
    assert batch.inputs.shape == (many, 3, 16, 16) and bool(batch.inputs.isfinite().all())


OWN = """
from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.data.registry import SourceEntry
EYES = SourceEntry("eyes", "drawn", "", lambda request: FundusPhantom(request.need, request.seed))
FILES = SourceEntry("files", "from a path", "PATH", lambda request: FundusPhantom(len(list(request.path.iterdir())), 0))
"""


def test_a_source_of_ones_own_is_opened_by_its_entry(tmp_path):
    """Oracle: the file, written above; a path follows the name as it does with every source."""
    (tmp_path / "own.py").write_text(OWN)
    name = f"module:{tmp_path}/own.py"
    assert len(open_source(f"{name}:EYES", grades="binary", need=8, seed=0).examples) == 8
    entry, path = split_spec(f"{name}:FILES:{tmp_path}")
    assert (entry.name, path) == (f"{name}:FILES", str(tmp_path))
    assert open_source(f"{name}:FILES:{tmp_path}", grades="binary", need=7, seed=0).examples
    for spec, words in (
        (f"{name}:FILES", "own.py:FILES needs a path: .*own.py:FILES:PATH"),
        (f"{name}:EYES:x", "own.py:EYES takes no path"),
        (f"{name}:SourceEntry", "data .*own.py:SourceEntry: must be a SourceEntry, got <class"),
        ("fundus-phantm", "unknown data source 'fundus-phantm'; .*; did you mean fundus-phantom"),
    ):
        with pytest.raises(ConfigError, match=words):
            DataConfig(spec=spec)


def test_names_and_descriptions_are_there_for_the_help(source):
    assert SOURCES[source.name].description
    assert all(entry.name == name for name, entry in SOURCES.items())


@pytest.mark.parametrize("name", sorted(name for name, entry in SOURCES.items() if entry.argument))
def test_a_missing_path_and_an_empty_folder_are_refused_with_a_remedy(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} needs a path: {name}:"):
        DataConfig(spec=name)
    with pytest.raises(DataError, match=r"nowhere does not exist; give the path"):
        open_source(f"{name}:{tmp_path / 'nowhere'}", grades="binary", need=4, seed=0)
    with pytest.raises(DataError, match=r"; (give|sort|move)"):
        open_source(f"{name}:{tmp_path}", grades="binary", need=4, seed=0)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ConfigError, match=r"unknown data source 'cifar'; known: fundus-phantom, .*mnist:PATH"
    ):
        DataConfig(spec="cifar:/data")


def test_a_phantom_takes_no_path():
    with pytest.raises(ConfigError, match="fundus-phantom takes no path, got 'fundus-phantom:x'"):
        DataConfig(spec="fundus-phantom:x")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"classes": "some"}, "classes must be binary or all"),
        ({"image_size": 7}, r"image size must lie in 8\.\.4096 pixels, got 7"),
    ],
)
def test_other_fields_are_checked(field, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**field)


def test_a_tilde_is_the_home_folder(tmp_path, png, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder(tmp_path, png)))
    assert open_source("image-folder:~", grades="binary", need=4, seed=0).classes == ("ill", "well")


class Listed(Source):
    """Nothing but an index."""

    def read(self, index: int, size: int, channels: int):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "holds no images; check the path"),
        ([Example("a", "a", 0), Example("a", "b", 0)], "1 image names occur more than once, such as 'a'"),
        ([Example("a", "a", 2)], r"has label 2; labels must lie in 0\.\.1 \(x, y\)"),
        ([Example("a", "a", None)], "has label None"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(examples, message):
    with pytest.raises(DataError, match=message):
        Listed("listed", Task.CLASSIFICATION, ("x", "y"), examples)


def test_no_data_is_read_when_a_source_is_imported():
    """A source's module must not import pydicom, which most users do not have."""
    import subprocess
    import sys

    program = "import sys; import suture.runtime.data.registry; sys.exit('pydicom' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60).returncode == 0
