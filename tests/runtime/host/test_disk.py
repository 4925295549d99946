"""What cannot be written is said in one sentence with a remedy that fits.

Oracle: the messages.
"""

import errno
import os

import pytest

from suture.runtime.errors import CheckpointError
from suture.runtime.host.disk import can_do_without, is_the_disk, writing


def _failing(number, name=None):
    raise OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the last whole checkpoint is kept: make room, then start again with --resume"),
        (errno.EDQUOT, "the last whole checkpoint is kept: make room, then start again with --resume"),
        (errno.EROFS, "the last whole checkpoint is kept: mend that, then start again with --resume"),
        (errno.ENOENT, "the run folder was moved or removed while the run went on: put it back"),
        (errno.ESTALE, "the run folder was moved or removed while the run went on: put it back"),
    ],
)
def test_the_remedy_fits_what_went_wrong(number, remedy):
    """Oracle: the system's words, and what a person can do about it."""
    with (
        pytest.raises(CheckpointError, match=f"^cannot write turns.jsonl: {os.strerror(number)}; {remedy}"),
        writing("turns.jsonl"),
    ):
        _failing(number)


def test_the_file_is_the_one_that_the_system_names():
    """Oracle: a name of bytes, as TensorBoard's files have, and none at all."""
    with pytest.raises(CheckpointError, match="^cannot write RUN/events: "), writing():
        _failing(errno.ENOSPC, b"RUN/events")
    with pytest.raises(CheckpointError, match="^cannot write the run folder: "), writing():
        _failing(errno.ENOSPC)


def test_other_errors_pass():
    """Oracle: a defect stays one."""
    with pytest.raises(ZeroDivisionError), writing():
        raise ZeroDivisionError


def test_a_picture_costs_itself_and_a_line(caplog):
    """Oracle: nothing is raised where the disk is full; where the folder has gone, more than a picture is lost."""
    with can_do_without("RUN/figures"):
        _failing(errno.ENOSPC)
    assert "RUN/figures cannot be written" in caplog.text and "No space left" in caplog.text
    with pytest.raises(CheckpointError, match="moved or removed"), can_do_without("RUN/figures"):
        _failing(errno.ENOENT)


def test_a_missing_file_may_be_a_defect():
    """Oracle: the numbers by hand."""
    assert [
        is_the_disk(OSError(number, "")) for number in (errno.ENOSPC, errno.EIO, errno.ENOENT, errno.EACCES)
    ] == [
        True,
        True,
        False,
        False,
    ]
