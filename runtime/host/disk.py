"""A disk that is full, or a run folder that has gone: one sentence that says what to do, in place of a traceback."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suture.runtime.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

log = logging.getLogger(__name__)


def is_the_disk(error: OSError) -> bool:
    """Whether the disk fails, whatever the program does; that a file is missing may also be the program's defect."""
    return error.errno in (*_FULL, errno.EIO, errno.EROFS)


def cannot_write(what: Path | str, error: OSError) -> CheckpointError:
    """The error of a run that cannot write a file or folder ``what`` any more."""
    if error.errno in _GONE:
        remedy = (
            "the run folder was moved or removed while the run went on: put it back and start again with --resume, "
            "or start a new run"
        )
    else:
        mend = "make room" if error.errno in _FULL else "mend that"
        remedy = f"the last whole checkpoint is kept: {mend}, then start again with --resume"
    return CheckpointError(f"cannot write {what}: {error.strerror or error}; {remedy}")


@contextmanager
def writing(what: Path | str | None = None) -> Iterator[None]:
    """Whatever fails to write in here raises a `CheckpointError`; also a decorator.

    Args:
        what: is written; None for whatever file the system's error names.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(what or os.fsdecode(error.filename or "the run folder"), error) from error


@contextmanager
def can_do_without(what: str) -> Iterator[None]:
    """Whatever fails to be written in here costs no more than itself; a person is told.

    Raises:
        CheckpointError: the run folder has gone, and everything else with it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise cannot_write(what, error) from error
        log.warning("%s cannot be written (%s): going on without", what, error)
