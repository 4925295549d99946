"""How commands end: a full disk in one line and a code, a defect in a traceback.

Oracle: the code and what was said.
"""

import errno
import os

import pytest

from suture.launch.options.outcome import outcome
from suture.runtime.errors import CheckpointError


def _failing(number):
    def work():
        raise OSError(number, os.strerror(number), "predictions.csv")

    return work


def test_a_full_disk_is_no_defect(capsys):
    """Oracle: one line that names the file and the remedy."""
    assert outcome(_failing(errno.ENOSPC)) == CheckpointError.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device: 'predictions.csv'; make room" in said


def test_a_missing_file_is_one():
    """Oracle: it is raised, for its traceback."""
    with pytest.raises(FileNotFoundError):
        outcome(_failing(errno.ENOENT))
