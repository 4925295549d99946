"""The run folder: made for a new run, refused where it holds another, taken up again with ``--resume``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO

from launch.config import RunOptions
from launch.lock import LOCK_FILE, lock_folder
from launch.written import check_names, read_toml, to_toml
from runtime.checkpoint import cannot_write, write_atomically
from runtime.errors import ConfigError

CONFIG, IDENTITY = "config.toml", "run.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and identity.

    Attributes:
        path: RUN.
        run: the run's id, bound to every hand-off.
        resumed: whether it held this run before.
        lock: keeps other processes out of the folder for as long as it is open; see `lock_folder`.
        classes: their names, where the run's sites agreed on them at joining; else empty.
    """

    path: Path
    run: str
    resumed: bool
    lock: IO[str]
    classes: tuple[str, ...] = ()


def holds_run(path: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (path / IDENTITY).exists()


def open_folder(options: RunOptions, new_run: str) -> RunFolder:
    """Makes RUN, or with ``--resume`` takes up the run in it.

    Args:
        options: resolved.
        new_run: the id a new run gets.

    Raises:
        ConfigError: the folder holds another run, is in use, cannot be made, or was started with other options.
    """
    path = Path(options.run_dir or f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if options.resume:
        return _resume(path, options)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / LOCK_FILE).exists():
            _refuse_occupied(path)  # no lock file is left in a folder that is none of a run's
        lock = lock_folder(path)
        _refuse_occupied(path)
    except OSError as error:
        raise ConfigError(
            f"cannot make run folder {path}: {error.strerror}; name another --run-dir"
        ) from None
    _write(path / CONFIG, to_toml(options, _NOTE.format(path=path)))
    _write(path / IDENTITY, json.dumps({"run": new_run, "clients": options.clients}))
    return RunFolder(path, new_run, resumed=False, lock=lock)


def keep_classes(place: RunFolder, classes: Sequence[str]) -> RunFolder:
    """Writes down which classes the run's sites agreed on, for a server that is started again.

    Raises:
        ConfigError: it cannot be written.
    """
    identity = json.loads((place.path / IDENTITY).read_text()) | {"classes": [*classes]}
    _write(place.path / IDENTITY, json.dumps(identity))
    return replace(place, classes=tuple(classes))


def keep_num_classes(place: RunFolder, num_classes: int) -> None:
    """Writes down how many classes the run's images have, which no option says.

    Raises:
        ConfigError: it cannot be written.
    """
    identity = json.loads((place.path / IDENTITY).read_text()) | {"num_classes": num_classes}
    _write(place.path / IDENTITY, json.dumps(identity))


def _refuse_occupied(path: Path) -> None:
    if any(entry.name != LOCK_FILE for entry in path.iterdir()):
        raise ConfigError(f"{path} is not empty; go on with its run with --resume, or name another --run-dir")


def _resume(path: Path, options: RunOptions) -> RunFolder:
    if not (path / IDENTITY).exists():
        raise ConfigError(f"{path} holds no run to resume; leave out --resume, or name the folder of a run")
    lock = lock_folder(path)
    try:
        identity = json.loads((path / IDENTITY).read_text())
        run, classes = str(identity["run"]), tuple(map(str, identity.get("classes", ())))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path / IDENTITY} is damaged ({error}); the run cannot be identified") from None
    before = RunOptions(**check_names(read_toml(path / CONFIG), str(path / CONFIG)))
    for option in fields(RunOptions):
        was, now = getattr(before, option.name), getattr(options, option.name)
        if option.name == "data":
            was, now = str(was).partition(":")[0], str(now).partition(":")[0]  # the images may have moved
        if not option.metadata.get("free") and was != now:
            raise ConfigError(
                f"{path} was started with {option.name} = {was}, got {now}; resume with the same, "
                f"for example with --config {path / CONFIG}"
            )
    _write(path / CONFIG, to_toml(options, _NOTE.format(path=path)))
    return RunFolder(path, run, resumed=True, lock=lock, classes=classes)


def _write(file: Path, text: str) -> None:
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise cannot_write(file, error, "name another --run-dir") from None


_NOTE = """All options of the run in {path}. `--config {path}/config.toml` repeats it.
What the server must not know (initial bottom, data order, augmentation) also follows from the clients'
hand-off key: for the same weights repeat it with the same --handoff-key."""
