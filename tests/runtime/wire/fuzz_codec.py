"""Coverage-guided fuzzing of what reads the wire, with atheris (PyPI, not a dependency; libFuzzer's options).

    python tests/runtime/wire/fuzz_codec.py -max_total_time=300

Reads the same bytes as the codec's text and as a whole frame. Starts from good messages. It ends with an error, and the
bytes in a file, where they raise anything but a WireError, become something else than the few types that may come out,
or make a tensor that lies outside the frame.
"""

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch

with atheris.instrument_imports(
    include=["suture.runtime.wire.codec", "suture.runtime.wire.frames", "suture.runtime.wire.messages"]
):
    from suture.runtime.errors import WireError
    from suture.runtime.wire import codec, frames

from wire_messages import GOOD, only_known
from wire_messages import read as read_frame

SPARE = [torch.arange(6.0).reshape(1, 2, 3), torch.arange(64, dtype=torch.uint8)]


def read(data: bytes) -> None:
    """One try."""
    read_frame(data)
    try:
        value = codec.decode(data, SPARE)
    except WireError:
        return
    assert only_known(value), value


def main() -> None:
    """Fuzzes until libFuzzer's options say that it is enough."""
    with tempfile.TemporaryDirectory(prefix="suture-fuzz-") as seeds:
        for number, message in enumerate(GOOD):
            (Path(seeds) / f"text{number}").write_bytes(codec.encode(message)[0])
            (Path(seeds) / f"frame{number}").write_bytes(b"".join(frames.pack(message)))
        atheris.Setup([*sys.argv, "-max_len=4096", seeds], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
