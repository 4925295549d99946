"""A run's classes by name, as one text of what its sites agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from suture.runtime.data.class_names import problem_of
from suture.runtime.errors import WireError

CLASSES = "classes"


def written_classes(classes: Sequence[str]) -> str:
    """The text for ``classes``; see `read_classes`."""
    return json.dumps([*classes])


def read_classes(agreement: Mapping[str, str], who: str) -> tuple[str, ...]:
    """The classes that a peer names.

    Raises:
        WireError: they are no names of classes.
    """
    said = agreement.get(CLASSES, "")
    try:
        classes = json.loads(said)
    except (ValueError, RecursionError):
        classes = None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or problem_of(classes):
        raise WireError(f"{who} said {said!r:.80} of the run's classes; refused: expected their names")
    return tuple(classes)
