"""MedMNIST's npz and MNIST's IDX files."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from suture.runtime.data.idx import open_fashion_mnist, open_mnist
from suture.runtime.data.medmnist import open_medmnist
from suture.runtime.errors import DataError


def npz(path, colour=False, **changes):
    arrays = {}
    for number, (split, count) in enumerate((("train", 6), ("val", 2), ("test", 4))):
        shape = (count, 28, 28, 3) if colour else (count, 28, 28)
        arrays[f"{split}_images"] = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


@pytest.mark.parametrize("colour", [False, True])
def test_an_npz_is_read_and_its_test_part_kept_for_testing(tmp_path, colour):
    path = npz(tmp_path / "a.npz", colour)
    source = open_medmnist(path)
    assert [e.official_test for e in source.examples] == [False] * 8 + [True] * 4
    assert source.classes == ("0", "1", "2")
    assert len({e.patient for e in source.examples}) == 12
    image, label = source.read(9, 28, 3)
    stored = np.load(path)["test_images"][1]
    assert np.array_equal(image.numpy()[0], stored[..., 0] if colour else stored)
    assert int(label) == 1


def test_labels_without_a_second_axis_and_a_missing_val_are_taken(tmp_path):
    path = npz(tmp_path / "a.npz", val_images=None, train_labels=np.array([0, 1, 2, 0, 1, 2]))
    assert len(open_medmnist(path).examples) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "has no arrays train_images and train_labels; it holds: train_labels"),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "3D and float sets are not supported"),
        ({"train_images": np.zeros((6, 28, 28))}, "must be uint8 .*got float64"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "its parts have labels of different widths"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "6 train images but 5 labels"),
        ({"train_labels": np.full((6, 1), 0.5)}, "must be one whole number an image, got float64"),
        ({"train_labels": np.array([{}] * 6)}, "cannot read .*: it is no npz of plain arrays"),
        ({"train_labels": np.full((6, 1), -1)}, "has label -1; labels must be whole numbers from 0"),
    ],
)
def test_an_npz_of_another_kind_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_medmnist(npz(tmp_path / "a.npz", **changes))


def test_a_damaged_npz_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz")
    content = path.read_bytes()
    for damage in (
        b"",
        b"no archive",
        content[: len(content) // 2],
        content[:300] + b"x" * 200 + content[500:],
    ):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"cannot read .*a\.npz.*give MedMNIST's \.npz file"):
            open_medmnist(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match="is a single array, not an npz"):
        open_medmnist(tmp_path / "b.npy")


def write_idx(folder, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 12), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
        }
        for name, content in files.items():
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("opener", "nested", "mirror"),
    [
        (open_mnist, "MNIST/raw", False),
        (open_fashion_mnist, "FashionMNIST/raw", True),
        (open_mnist, "", False),
    ],
)
def test_idx_files_are_found_nested_or_flat_raw_or_zipped(tmp_path, opener, nested, mirror, zipped):
    write_idx(tmp_path / nested, zipped)
    source = opener(tmp_path)
    assert len(source.classes) == 10 and source.mirror == mirror
    assert sum(e.official_test for e in source.examples) == 10
    image, label = source.read(12 + 3, 28, 1)
    expected = np.random.default_rng(10).integers(0, 256, (10, 28, 28), dtype=np.uint8)[3]
    assert np.array_equal(image[0].numpy(), expected) and int(label) == 3


def test_a_missing_idx_file_is_named(tmp_path):
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"mnist: neither t10k-labels-idx1-ubyte nor .*gz lies in"):
        open_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda c: c[:-5], "holds 9403 bytes but its header says 12x28x28"),
        ("train-images-idx3-ubyte", lambda c: c[:6], "is not an IDX file of bytes with 3 dimensions"),
        ("train-labels-idx1-ubyte", lambda c: b"\0\0\x0d\1" + c[4:], "is not an IDX file of bytes with 1"),
        (
            "train-labels-idx1-ubyte",
            lambda c: struct.pack(">II", 0x801, 2) + b"\0\1",
            "holds 12 images but train-labels-idx1-ubyte 2 labels",
        ),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, name, change, message):
    path = write_idx(tmp_path) / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        open_mnist(tmp_path)


def test_a_damaged_gz_is_named(tmp_path):
    path = write_idx(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damage in (b"no gzip", whole[: len(whole) // 2], whole[:200] + b"x" * 100 + whole[300:]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"cannot read .*idx3-ubyte\.gz: .*; fetch it again"):
            open_mnist(tmp_path)


def test_ten_thousand_digits_are_read(real_data):
    source = open_medmnist(real_data / "mnist10k" / "mnist10k.npz")
    assert len(source.examples) == 10_000 and len(source.classes) == 10
    assert sum(e.official_test for e in source.examples) == 4_000


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {f"{s}_images": a[f"{s}_images"][..., None] for s in ("train", "val", "test")},
        lambda a: a | {f"{s}_labels": a[f"{s}_labels"].astype(np.float32) for s in ("train", "val", "test")},
        lambda a: a | {"train_labels": a["train_labels"][:, 0], "test_labels": a["test_labels"].reshape(-1)},
        lambda a: a | {f"{s}_labels": a[f"{s}_labels"].astype(np.int16) for s in ("train", "val", "test")},
    ],
    ids=["one colour", "float labels", "flat labels", "signed labels"],
)
def test_other_shapes_of_the_same_arrays_say_the_same(tmp_path, change):
    """Oracle: the plain file."""
    plain = open_medmnist(npz(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", **change(dict(np.load(tmp_path / "a.npz"))))
    other = open_medmnist(tmp_path / "b.npz")
    assert (other.classes, other.examples) == (plain.classes, plain.examples)
    assert all(np.array_equal(other.read(i, 28, 1)[0], plain.read(i, 28, 1)[0]) for i in range(12))


@pytest.mark.parametrize(("shift", "classes"), [(1, ("1", "2", "3")), (7, ("7", "8", "9"))])
def test_labels_that_do_not_begin_at_zero_keep_their_names(tmp_path, shift, classes):
    """Oracle: no class without images, of which no division could take any."""
    arrays = dict(np.load(npz(tmp_path / "a.npz")))
    source = open_medmnist(
        npz(tmp_path / "b.npz", **{k: v + shift for k, v in arrays.items() if "labels" in k})
    )
    assert source.classes == classes
    assert [one.label for one in source.examples[:6]] == [0, 1, 2, 0, 1, 2]


def test_colours_first_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(
        DataError, match=r"got uint8 \(6, 3, 28, 28\); .*save 0 to 255 as uint8, colours last"
    ):
        open_medmnist(npz(tmp_path / "a.npz", train_images=np.zeros((6, 3, 28, 28), np.uint8)))


@pytest.mark.parametrize(
    "make", [lambda p: p.write_bytes(pickle.dumps([1])), lambda p: np.save(p.open("wb"), [{}])]
)
def test_pickled_arrays_are_refused_without_advice(tmp_path, make):
    """Oracle: numpy's own message, which advises allow_pickle, is not passed on."""
    make(tmp_path / "a.npz")
    with pytest.raises(DataError, match="it holds Python objects, which are never unpickled") as refused:
        open_medmnist(tmp_path / "a.npz")
    assert "allow_pickle" not in str(refused.value)


LAYOUTS = {
    "dots": lambda name: name.replace("-idx", ".idx"),
    "Kaggle's folders": lambda name: f"{name}/{name}",
    "Kaggle's folders of dots": lambda name: f"{name}/{name.replace('-idx', '.idx')}",
    "dots below raw": lambda name: f"raw/{name.replace('-idx', '.idx')}",
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_idx_files_are_found_under_their_other_names(tmp_path, layout, zipped):
    """Oracle: the usual layout."""
    plain, other = write_idx(tmp_path / "plain"), tmp_path / "other"
    for file in list(plain.iterdir()):
        there = other / (LAYOUTS[layout](file.name) + ".gz" * zipped)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(gzip.compress(file.read_bytes()) if zipped else file.read_bytes())
    assert open_mnist(other).examples == open_mnist(plain).examples


def test_whether_an_idx_file_is_compressed_is_told_by_its_content(tmp_path):
    """Oracle: the usual files; a browser has unpacked two and kept their names, and two have lost their ending."""
    expected = open_mnist(write_idx(tmp_path / "plain")).examples
    folder = write_idx(tmp_path / "other")
    for file in list(folder.iterdir()):
        if file.name.startswith("train"):
            file.rename(f"{file}.gz")
        else:
            file.write_bytes(gzip.compress(file.read_bytes()))
    assert open_mnist(folder).examples == expected


def test_what_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    """Oracle: zeros, of which deflate makes a thousandth."""
    monkeypatch.setattr("suture.runtime.host.unpacking.ALWAYS_ALLOWED", 2**20)
    zeros = np.zeros((1000, 100, 100), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=zeros, train_labels=zeros[:, 0, 0])
    with pytest.raises(
        DataError, match=r"cannot read .*a\.npz: its \d+ bytes would become 0\.0 GB, over 200 times"
    ):
        open_medmnist(tmp_path / "a.npz")
    write_idx(tmp_path)
    bomb = struct.pack(">IIII", 0x803, 10**4, 100, 100) + bytes(10**8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.compress(bomb))
    with pytest.raises(DataError, match="cannot read .*train-images-idx3-ubyte: its .* over 200 times"):
        open_mnist(tmp_path)


# Copies --------------------------------------------------------------------------------------------------


def with_copies(path, label):
    """Two training images once more, one of them in the test part under ``label``; the labels are 0, 1, 2, 0, 1, 2."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (count, 8, 8), dtype=np.uint8) for count in (6, 4))
    train[5], test[1] = train[2], train[3]
    return npz(path, train_images=train, test_images=test, test_labels=np.array([1, label, 2, 0]))


@pytest.mark.parametrize("label", [0, 2])
def test_copies_in_an_npz_are_one_patients(tmp_path, label):
    """Oracle: the images that were written twice; one of them is in the test part, so that it is not trained on."""
    from suture.runtime.data.partition import PartitionConfig, partition

    source = open_medmnist(with_copies(tmp_path / "a.npz", label))
    patient = {one.key: one.patient for one in source.examples}
    assert (
        patient["train000005"] == patient["train000002"] and patient["test000001"] == patient["train000003"]
    )
    assert len(set(patient.values())) == 10
    torn = ["1 of the pictures with copies are of two classes, so that one of the labels is wrong"]
    said = ["2 images are copies of others; copies count as one patient's"]
    assert source.notes == said + (torn if label else [])
    (share,) = partition(
        source, PartitionConfig(train_images=3, validation_images=0, test_images=3), num_clients=1, seed=0
    )
    assert "train000003" not in {source.examples[index].key for index in share.train}


def test_idx_files_are_looked_through_for_copies_too(tmp_path):
    write_idx(tmp_path)
    source = open_mnist(tmp_path)
    pictures = {source.content_digest(index) for index in range(len(source.examples))}
    assert len({one.patient for one in source.examples}) == len(pictures)


def test_images_without_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train_images must be .*got uint8 \(6, 0, 8\)"):
        open_medmnist(npz(tmp_path / "a.npz", train_images=np.zeros((6, 0, 8), np.uint8)))
