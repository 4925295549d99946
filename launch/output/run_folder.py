"""The run folder: made for a new run, refused where it holds another, taken up again with ``--resume``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from suture.launch.options.options import SITES_OWN, AskedOptions, RunOptions
from suture.launch.options.toml import check_names, flag, read_toml, to_toml
from suture.launch.output.lock import LOCK_FILE, lock_folder
from suture.models.plugins import split
from suture.models.pretrained import IMAGENET
from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import cannot_write, write_atomically

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


def named_by_time(end: str = "") -> str:
    """Where a run goes for which no folder was named."""
    return f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}{end}"


def holds_run(path: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (path / IDENTITY).exists()


def with_saved(asked: Mapping[str, Any], opens_data: bool = True) -> dict[str, Any]:
    """Options by name as they were given, and where they name a run to resume, all others as that run saved them.

    An option that is given wins where it may change, and is refused where it may not.

    Args:
        asked: what a person gave.
        opens_data: whether this process reads images; else it is not asked where they are.

    Raises:
        ConfigError: there is no such run, what was given differs from it, or a file that it names is not there.
    """
    if not (asked.get("resume") and asked.get("run_dir")):
        return dict(asked)
    path = Path(asked["run_dir"])
    if not holds_run(path):
        if os.environ.get("RANK", "0") != "0":
            return dict(asked)  # on another machine than the server's, whose folder this one does not see
        raise ConfigError(_NO_RUN.format(path=path))
    saved = read_toml(path / CONFIG)
    _refuse_missing(path, {k: v for k, v in saved.items() if k not in asked}, opens_data)
    ours = asked if opens_data else {k: v for k, v in asked.items() if k not in SITES_OWN}
    _refuse_changes(path, AskedOptions(**saved), ours)
    return saved | dict(asked)


def saved_serving(path: Path) -> dict[str, Any]:
    """What ``suture serve`` was given besides the options of the run, when it began the run in this folder.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return dict(_identity(path).get("serve", {}))
    except (ValueError, TypeError, OSError) as error:
        raise _damaged(path, error) from None


def open_folder(options: RunOptions, new_run: str, serving: Mapping[str, Any] | None = None) -> RunFolder:
    """Makes RUN, or with ``--resume`` takes up the run in it.

    Args:
        options: resolved.
        new_run: the id a new run gets.
        serving: what the server of sites is run with besides; `saved_serving` gives it back. Such a server has no
            images, and what it is told of them is not written down.

    Raises:
        ConfigError: the folder holds another run, is in use, cannot be made, or was started with other options.
    """
    path = Path(options.run_dir or named_by_time())
    if options.resume:
        return _resume(path, options, serving)
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
    _write(path / CONFIG, to_toml(options, _NOTE.format(path=path), () if serving is None else SITES_OWN))
    identity = {"run": new_run, "clients": options.clients, "started_in": str(Path.cwd())}
    _write(path / IDENTITY, json.dumps(identity | ({"serve": dict(serving)} if serving else {})))
    return RunFolder(path, new_run, resumed=False, lock=lock)


def keep_classes(place: RunFolder, classes: Sequence[str]) -> RunFolder:
    """Writes down which classes the run's sites agreed on, for a server that is started again.

    Raises:
        ConfigError: it cannot be written.
    """
    identity = _identity(place.path) | {"classes": [*classes]}
    _write(place.path / IDENTITY, json.dumps(identity))
    return replace(place, classes=tuple(classes))


def keep_num_classes(place: RunFolder, num_classes: int) -> None:
    """Writes down how many classes the run's images have, which no option says.

    Raises:
        ConfigError: it cannot be written.
    """
    identity = json.loads((place.path / IDENTITY).read_text(encoding="utf-8")) | {"num_classes": num_classes}
    _write(place.path / IDENTITY, json.dumps(identity))


def _refuse_occupied(path: Path) -> None:
    if any(entry.name != LOCK_FILE for entry in path.iterdir()):
        raise ConfigError(f"{path} is not empty; go on with its run with --resume, or name another --run-dir")


def _resume(path: Path, options: RunOptions, serving: Mapping[str, Any] | None) -> RunFolder:
    if not holds_run(path):
        raise ConfigError(_NO_RUN.format(path=path))
    lock = lock_folder(path)
    try:
        identity = _identity(path)
        run, classes = str(identity["run"]), tuple(map(str, identity.get("classes", ())))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, error) from None
    before = AskedOptions(**check_names(read_toml(path / CONFIG), str(path / CONFIG)))
    others = () if serving is None else SITES_OWN
    now = {one.name: getattr(options, one.name) for one in fields(AskedOptions) if one.name not in others}
    _refuse_changes(path, before, now)
    _write(path / CONFIG, to_toml(options, _NOTE.format(path=path), others))
    if dict(serving or {}) != identity.get("serve", {}):
        _write(path / IDENTITY, json.dumps(identity | {"serve": dict(serving or {})}))
    return RunFolder(path, run, resumed=True, lock=lock, classes=classes)


def _identity(path: Path) -> dict[str, Any]:
    """What RUN/run.json says.

    Raises:
        ValueError, OSError: it is no JSON, or cannot be read.
    """
    said = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise ValueError("it is no table")
    return said


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path / IDENTITY} is damaged ({error}); the run cannot be identified")


def _refuse_changes(path: Path, before: AskedOptions, asked: Mapping[str, Any]) -> None:
    """Refuses options that may not change while a run goes on, and did."""
    for option in fields(AskedOptions):
        if option.name not in asked or option.metadata.get("free"):
            continue
        was, now = getattr(before, option.name), asked[option.name]
        if option.name == "data":
            was, now = split(str(was))[0], split(str(now))[0]  # the images may have moved
        if was != now:
            raise ConfigError(
                f"{path} was started with {option.name} = {was}, got {now}; leave --{flag(option)} out to go on with "
                "its own, or begin another run with another --run-dir"
            )


def _refuse_missing(path: Path, saved: Mapping[str, Any], opens_data: bool) -> None:
    """Refuses to go on where a file that the saved options name is not there, most often for want of another folder."""
    schedule, _, replayed = str(saved.get("schedule", "")).partition(":")
    named = {
        "data": split(str(saved.get("data", "")))[1] or "" if opens_data else "",
        "weights": "" if saved.get("weights") == IMAGENET else saved.get("weights", ""),
        "handoff_key": saved.get("handoff_key", ""),
        "schedule": replayed if schedule == "replay" else "",
    }
    for name, file in named.items():
        if not file or Path(file).exists():
            continue
        where = _identity(path).get("started_in", "")
        elsewhere = bool(where) and not Path(file).is_absolute() and where != str(Path.cwd())
        remedies = [f"resume in {where}" if elsewhere else "bring it back"]
        if name in ("data", "handoff_key"):  # the others may not be given anew
            remedies.append(f"give --{name.replace('_', '-')} with where it is now")
        raise ConfigError(
            f"{path} was started{f' in {where}' if where else ''} with {name} = {saved[name]}, and there is no {file} "
            f"{f'in {Path.cwd()}' if elsewhere else 'any more'}; {', or '.join(remedies)}"
        )


def _write(file: Path, text: str) -> None:
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise cannot_write(file, error, "name another --run-dir") from None


_NO_RUN = "{path} holds no run to resume; leave out --resume, or name the folder of a run"
_NOTE = """All options of the run in {path}. `--config {path}/config.toml` repeats it.
What the server must not know (initial bottom, data order, augmentation) also follows from the clients'
hand-off key: for the same weights repeat it with the same --handoff-key."""
