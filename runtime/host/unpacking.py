"""How much a compressed file may become in memory: a small one can name more than any machine has."""

import zipfile
from pathlib import Path

MOST_TIMES, ALWAYS_ALLOWED = 200, 2**30
"""Real pictures and weights are not compressed to a two-hundredth; deflate can do a thousandth, with zeros."""


def most_bytes(path: Path) -> int:
    """What a file's content may take when it is unpacked."""
    return max(ALWAYS_ALLOWED, MOST_TIMES * path.stat().st_size)


def bomb(path: Path, unpacked: int) -> str:
    """Why a file that would take so many bytes is not unpacked; empty where it may be."""
    if unpacked <= most_bytes(path):
        return ""
    return (
        f"its {path.stat().st_size} bytes would become {unpacked / 1e9:.1f} GB, over {MOST_TIMES} times as much, as no "
        "real picture's do"
    )


def zip_bomb(path: Path) -> str:
    """`bomb` of a zip file, from its directory; empty for other files."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        return bomb(path, sum(member.file_size for member in archive.infolist()))
