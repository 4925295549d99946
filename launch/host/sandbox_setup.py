"""Closing a rank's sandbox: whether, what is done before, what stays open, and the line that says so."""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from suture.launch.options.options import RunOptions
from suture.runtime.data.registry import split_spec
from suture.runtime.errors import ConfigError
from suture.runtime.host import sandbox

log = logging.getLogger(__name__)


def enclose(
    options: RunOptions,
    folder: Path,
    *,
    read: Iterable[Path] = (),
    write: Iterable[Path] = (),
    links: Iterable[Path] = (),
    ports: sandbox.Ports | None = None,
    kept: str = "",
) -> None:
    """Closes this process's sandbox as ``--sandbox`` says, before RPC, gRPC and whatever else starts threads.

    Whatever the rank needs of the disk it has read by now: images, weights, keys.

    Args:
        options: the run's.
        folder: this rank's own, made where missing; temporary files go there too.
        read: files that stay readable.
        write: other folders that stay readable and writable; made where missing.
        links: folders in which symbolic links may be made; made where missing.
        ports: TCP ports that stay, None for all; see `sandbox.Ports`.
        kept: what the line is to add, such as how much was read into memory.

    Raises:
        ConfigError: ``--sandbox on`` and it cannot be closed; or the data would stay within reach.
    """
    if options.sandbox == "off":
        return
    if options.attack_spec() is not None:
        log.info("sandbox left open: in a lab (--attack) the judge, started at the end, reads the images")
        return
    if (reason := sandbox.missing()) is not None:
        if options.sandbox == "on":
            raise ConfigError(f"sandbox is on, but {reason}; use --sandbox auto to go on without it")
        log.warning("sandbox left open: %s", reason)
        return
    write, links = [folder, *write], list(links)
    for place in (*write, *links):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {place}: {error.strerror}; give this rank a --run-dir of its own"
            ) from None
    path = split_spec(options.data)[1]
    data = Path(path).expanduser() if path else None
    there = data is not None and data.exists()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.resolve())
    load_the_lazy()
    older = sandbox.other_threads()
    sandbox.close(read=read, write=write, links=links, ports=ports)
    if there and data is not None and (how := sandbox.still_reaches(data)) is not None:
        raise ConfigError(
            f"the sandbox does not shut off {data}: {how}; keep the images apart from Python's files and the run "
            "folder, or use --sandbox off"
        )
    log.info(
        "sandbox closed (Landlock %d): reads Python's files only, writes %s%s%s%s",
        sandbox.version(),
        " and ".join(map(str, write)),
        _shown(ports),
        f"; {kept}" if kept else "",
        f"; older threads, outside: {', '.join(older)}" if older else "",
    )


def _shown(ports: sandbox.Ports | None) -> str:
    if ports is None:
        return ""
    if sandbox.version() < 4:
        return "; this kernel's Landlock knows no ports: all stay open"
    connects = " or ".join(map(str, ports.connect)) or "no"
    listens = " or ".join(map(str, ports.listen)) or "no"
    return f"; connects to {connects} port, listens on {listens} port"


_LAZY = (
    "contourpy",
    "matplotlib.backends.backend_agg",
    "matplotlib.font_manager",
    "tensorboard.compat.proto.event_pb2",
    "torch.utils.tensorboard",
    "torchmetrics.functional.classification",
)


def load_the_lazy() -> None:
    """Loads what a rank would import when it first uses it: by then the sandbox may not let it.

    Caches of matplotlib and torch lie outside, and so may a package that is not installed beside the others.
    """
    for name in _LAZY:
        importlib.import_module(name)
    # A first optimizer step imports torch._dynamo, which asks for a folder for its cache.
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()
