"""Whose image is this? What names say where no table does."""


def patient_of(stem: str) -> str:
    """The stem without a final _left or _right (two eyes of one person); else the whole stem."""
    for side in ("_left", "_right"):
        if stem.endswith(side):
            return stem.removesuffix(side)
    return stem
