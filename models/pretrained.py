"""Weights to start from: a file of one's own, or those that torchvision publishes (``--weights imagenet``).

torchvision names its weights and downloads them into torch's cache ($TORCH_HOME/hub/checkpoints); a file that lies
there is used without a network. Its name holds the first digits of its SHA-256, which are compared each time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from suture.models.foreign import TORCHVISION
from suture.models.weights_file import read_state_dict

IMAGENET = "imagenet"
_OTHER_PIXELS = ("googlenet", "inception_v3")


def weights_file(model: str, weights: str) -> Path:
    """The file that ``--weights`` means for the net ``model``; downloads it where it is torchvision's and not there.

    Raises:
        ValueError: there is no such file, or none to download; the message names the remedy.
    """
    if weights != IMAGENET:
        path = Path(weights)
        if not path.is_file():
            raise ValueError(
                f"weights {weights} is no file; name a state dict saved by torch.save or safetensors, or write "
                f"{IMAGENET} for torchvision's"
            )
        return path
    return _download(_published(model))


def initial_state_dict(model: str, weights: str) -> dict[str, Tensor]:
    """The state dict that ``--weights`` means, on the CPU.

    Raises:
        ValueError: as `weights_file`, or the file holds something else.
    """
    path = weights_file(model, weights)
    with torch.device("cpu"):
        if weights == IMAGENET:
            # By torchvision's own loading, which knows the names that older files have.
            with torch.random.fork_rng(devices=[]):
                net = torchvision.models.get_model(_kind(model), weights=_published(model))
            return dict(net.state_dict())
        return _read_safetensors(path) if path.suffix == ".safetensors" else read_state_dict(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    load = _safetensors()
    try:
        return load(path)
    except Exception as error:  # what the file makes it raise: its header's and the system's errors
        raise ValueError(f"cannot read weights from {path}: {str(error).splitlines()[0]:.200}") from None


def _safetensors() -> Callable[[Path], dict[str, Tensor]]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            "a .safetensors file needs the package safetensors: pip install suture[pretrained]"
        ) from None
    return load_file


def _kind(model: str) -> str:
    return model.removeprefix(TORCHVISION)


def _published(model: str) -> Any:
    """torchvision's own entry for its best weights of the net.

    Raises:
        ValueError: it has none that fit.
    """
    kind = _kind(model)
    if kind in _OTHER_PIXELS:
        raise ValueError(
            f"weights {IMAGENET}: torchvision's {kind} wants its pixels scaled in another way than all other nets; use "
            "another net, or give --weights FILE"
        )
    if model.startswith(TORCHVISION) and kind in torchvision.models.list_models(
        module=torchvision.models.segmentation
    ):
        raise ValueError(
            f"weights {IMAGENET}: torchvision's weights of {kind} are of COCO and have an auxiliary output; give "
            "--weights FILE, a state dict of the whole net"
        )
    try:
        return torchvision.models.get_model_weights(kind).DEFAULT
    except ValueError:
        raise ValueError(
            f"weights {IMAGENET} are torchvision's, and it has none for {model}; use a net of torchvision, or give "
            "--weights FILE"
        ) from None


def _download(published: Any) -> Path:
    name = Path(urlparse(published.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            published.get_state_dict(progress=False, check_hash=True)
        except Exception as error:  # no network, a proxy's page, a full disk, another hash
            raise ValueError(
                f"weights {IMAGENET}: cannot download {published.url}: {str(error).splitlines()[0]:.200}; bring the "
                f"file to {path}, or give --weights FILE"
            ) from None
    wanted = re.search(r"-([0-9a-f]{8,})\.", name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if wanted is not None and not found.startswith(wanted[1]):
        raise ValueError(
            f"weights {IMAGENET}: {path} is damaged: its SHA-256 begins {found[:8]} and its name says {wanted[1]}; "
            "remove it, and it is fetched again"
        )
    return path
