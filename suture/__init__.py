"""Split learning for medical imaging: several hospitals train one network, no image leaves its house.

In a checkout the packages stand at the repository's root; installed, inside this one. Either way they are imported as
``suture.models``, ``suture.runtime``, ``suture.threats``, ``suture.launch`` and ``suture.studies``.
"""

from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.cfg").is_file():
    __path__.append(str(_ROOT))
