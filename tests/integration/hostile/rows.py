"""The rows of the one table that `make hostile` prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One attack and what came of it.

    Attributes:
        attack: what was tried.
        by: who tried it.
        sent: whether it left the attacker, and the other side answered or ended the connection.
        came: what came of it, in the words of whoever refused.
        honest: how it ended for the honest members.
    """

    attack: str
    by: str
    sent: bool
    came: str
    honest: str


class Table:
    """All rows, by section."""

    def __init__(self) -> None:
        self.sections: dict[str, list[Row]] = {}

    def add(self, section: str, row: Row) -> None:
        self.sections.setdefault(section, []).append(row)
