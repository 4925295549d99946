"""The reader of the wire under coverage-guided fuzzing, where atheris is installed (pip install atheris).

Oracle: libFuzzer's exit code, which is not 0 where an input raised anything but a WireError.
"""

import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_fuzzer_that_sees_the_code_finds_nothing(tmp_path):
    """Starts from good messages, for twenty seconds; hypothesis does without in tests/runtime/test_codec.py."""
    pytest.importorskip("atheris", reason="needs atheris, which is no dependency: pip install atheris")
    script = ROOT / "tests" / "runtime" / "fuzz_codec.py"
    fuzzed = subprocess.run(
        [sys.executable, str(script), "-max_total_time=20"], cwd=tmp_path, capture_output=True, text=True
    )
    assert fuzzed.returncode == 0, fuzzed.stderr[-2000:]
    tries = next(line for line in fuzzed.stderr.splitlines() if line.startswith("Done "))
    assert int(tries.split()[1]) > 1000
