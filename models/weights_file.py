"""A file of weights as other programs save it: a state dict, bare or wrapped; never an object that is unpickled."""

from __future__ import annotations

import pickletools
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_WRAPPED_AS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Under which name a training program keeps the state dict beside its optimizer and the like, the usual ones first."""
_STARTS = (
    (
        b"version https://git-lfs",
        "it is a pointer of Git LFS and not the file; run 'git lfs pull' where it lies",
    ),
    (b"<", "it is a web page, not weights; download the file itself"),
    (b"\x89HDF", "it is an HDF5 file, of Keras perhaps; save a state dict by torch.save"),
)
_PICKLES_BEFORE = 3
"""torch's older files begin with three small pickles: a magic number, a version, and the machine."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict that a file holds.

    Raises:
        ValueError: there is none, or it cannot be read without running what the file says.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the file makes it raise: pickle, zip and OS errors
        raise ValueError(f"cannot read weights from {path}: {why_unreadable(path, error)}") from None
    state = _unwrapped(content, path)
    if state is None:
        raise ValueError(
            f"weights in {path} must be a state dict: names and tensors; save model.state_dict()"
        )
    return state


def why_unreadable(path: Path, error: Exception) -> str:
    """Why torch.load refused a file, in a sentence, with what mends it; torch's own advice is to load it unsafely."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty; copy it again"
    if said := next((said for start, said in _STARTS if head.lstrip().startswith(start)), ""):
        return said
    try:
        names, texts, is_script = _pickled(path)
    except Exception:  # as many kinds as a damaged file can make zipfile and pickletools raise
        return "it is damaged or no file of torch.save; copy it again"
    if is_script:
        return _convert(
            "it is a TorchScript archive", path, "torch.jit.load({}, map_location='cpu').state_dict()"
        )
    load = "torch.load({}, map_location='cpu', weights_only=False)"
    if any(name.startswith("torch.nn.modules.") for name in names):
        return _convert("it is a pickled module, which is never unpickled here", path, f"{load}.state_dict()")
    foreign = sorted(name for name in names if not name.startswith(("torch.", "torch ", "collections.")))
    if not foreign:
        return "it is damaged or no file of torch.save; copy it again"
    key = next((key for key in _WRAPPED_AS if key in texts), "state_dict")
    return _convert(
        f"beside tensors it holds objects of {', '.join(foreign[:3])}, which are never unpickled here",
        path,
        f"{load}['{key}']",
    )


def _convert(what: str, path: Path, state: str) -> str:
    code = f"import sys, torch; torch.save({state.format('sys.argv[1]')}, sys.argv[2])"
    return (
        f'{what}; if you trust who made it, for this runs what the file says: python -c "{code}" '
        f"{shlex.quote(str(path))} weights.pt, and give weights.pt"
    )


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor] | None:
    """The state dict itself or the one beside other things; None where there is none."""
    if _is_state(content):
        return dict(content)
    if not isinstance(content, Mapping):
        return None
    inner = {key: value for key, value in content.items() if isinstance(key, str) and _is_state(value)}
    if len(inner) > 1 and not inner.keys() & set(_WRAPPED_AS):
        raise ValueError(
            f"weights in {path} hold several state dicts ({', '.join(sorted(inner)[:5])}); save the one that is meant"
        )
    chosen = next((key for key in (*_WRAPPED_AS, *inner) if key in inner), None)
    return None if chosen is None else dict(inner[chosen])


def _is_state(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _pickled(path: Path) -> tuple[set[str], set[str], bool]:
    """Which objects a file would make, which texts it holds, and whether it is TorchScript; nothing of it is run."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            names: set[str] = set()
            texts: set[str] = set()
            for _ in range(_PICKLES_BEFORE + 1):
                more, said = _named(file)
                names, texts = names | more, texts | said
                if not file.peek(1):
                    break
            return names, texts, False
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.count("/") == 1]
        pickled = next(name for name in members if name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            return *_named(file), any(name.endswith("/constants.pkl") for name in members)


def _named(file: IO[bytes]) -> tuple[set[str], set[str]]:
    """The objects and the texts of one pickle."""
    names: set[str] = set()
    texts: list[str] = []
    for opcode, argument in _opcodes(file):
        if opcode == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return names, set(texts)


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    return ((opcode.name, argument) for opcode, argument, _ in pickletools.genops(file))
