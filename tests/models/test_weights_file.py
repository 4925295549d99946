"""Files of weights as other programs save them: taken, or refused with the command that works, and never unpickled."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18  # type: ignore[import-untyped, unused-ignore]

from suture.models.registry import build, load_weights, whole_state_dict
from suture.models.weights_file import read_state_dict


class _Trap:
    """An object that does something when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = resnet18(num_classes=2)
    return module


def loaded(path: Path, net: nn.Module) -> bool:
    """Whether a split net holds the net's weights after it has loaded the file."""
    split = build("resnet18", cut="layer2.0", num_outputs=2)
    load_weights(split, read_state_dict(path))
    theirs = net.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in whole_state_dict(split).items())


WRAPPERS = {
    "bare": lambda net: net.state_dict(),
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled and parallel": lambda net: {f"_orig_mod.module.{k}": v for k, v in net.state_dict().items()},
    "with optimizer": lambda net: {
        "epoch": 3,
        "model": net.state_dict(),
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
    },
    "Lightning": lambda net: {"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}, "epoch": 3},
    "with moving averages": lambda net: {
        "state_dict_ema": {k: v * 0 for k, v in net.state_dict().items()},
        "state_dict": net.state_dict(),
    },
    "another name": lambda net: {"backbone_weights": net.state_dict()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_dict_is_taken_bare_or_wrapped(
    tmp_path: Path, net: nn.Module, wrapper: str, zipped: bool
) -> None:
    """Oracle: the net's own weights."""
    torch.save(WRAPPERS[wrapper](net), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert loaded(tmp_path / "w.pt", net)


def test_a_net_whose_own_names_share_a_first_word_keeps_it(tmp_path: Path) -> None:
    """Oracle: the names in the message are those of the file."""
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt")) == ["features.0.weight"]


def test_several_state_dicts_of_unknown_names_are_refused(tmp_path: Path, net: nn.Module) -> None:
    torch.save({"a": net.state_dict(), "b": net.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"hold several state dicts \(a, b\); save the one"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda net: net, "it is a pickled module, which is never unpickled here"),
        (lambda net: {"model": net}, "it is a pickled module"),
        (
            lambda net: {"state_dict": net.state_dict(), "args": argparse.Namespace(lr=1)},
            "beside tensors it holds objects of argparse.Namespace, which are never unpickled here",
        ),
    ],
    ids=["module", "module in a dict", "arguments"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_with_a_command(
    tmp_path: Path, net: nn.Module, content: object, what: str, zipped: bool
) -> None:
    path = tmp_path / "it's a model.pt"
    torch.save(content(net), path, _use_new_zipfile_serialization=zipped)  # type: ignore[operator]
    with pytest.raises(ValueError, match=what) as refused:
        read_state_dict(path)
    assert "weights_only argument" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["module", "arguments", "script"])
def test_the_command_that_is_named_makes_a_file_that_is_taken(
    tmp_path: Path, net: nn.Module, kind: str
) -> None:
    """Oracle: the net's own weights, through the command as it can be typed."""
    path = tmp_path / "it's a model.pt"
    if kind == "script":
        torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(1, 3, 32, 32)), path)
    else:
        torch.save(net if kind == "module" else {"model": net.state_dict(), "a": argparse.Namespace()}, path)
    with pytest.raises(ValueError, match="if you trust who made it") as refused:
        read_state_dict(path)
    typed = shlex.split(str(refused.value).partition("says: ")[2].partition(", and give")[0])
    assert typed[0] == "python"
    subprocess.run([sys.executable, *typed[1:]], cwd=tmp_path, check=True, timeout=120)
    assert loaded(tmp_path / "weights.pt", net)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(tmp_path: Path, zipped: bool) -> None:
    """Oracle: the file that unpickling would make."""
    torch.save(
        {"state_dict": _Trap(tmp_path / "run")}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ValueError, match="never unpickled here"):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty; copy it again"),
        (b"<!DOCTYPE html>", "it is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"no weights at all", "it is damaged or no file of torch.save; copy it again"),
    ],
)
def test_other_files_are_refused_with_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_state_dict(tmp_path / "w.pt")


def test_a_file_cut_short_is_damaged(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="it is damaged or no file of torch.save; copy it again$"):
        read_state_dict(tmp_path / "w.pt")


def test_another_zip_is_no_file_of_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(ValueError, match="it is damaged or no file of torch.save"):
        read_state_dict(tmp_path / "w.pt")
