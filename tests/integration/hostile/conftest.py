"""The one table of `make hostile`: every attack of every file here, printed when all have been played."""

from collections.abc import Iterator

import pytest
from forker import Forker, open_forker
from rows import Table

_ROWS = pytest.StashKey["Table"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = Table()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """Takes the rows."""
    return pytestconfig.stash[_ROWS]


@pytest.fixture(scope="session")
def warm() -> Iterator[Forker]:
    """The process from which members are forked."""
    with open_forker() as forker:
        yield forker


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for section, rows in config.stash[_ROWS].sections.items():
        terminalreporter.section(f"{section}: {len(rows)}", "-")
        terminalreporter.line(f"{'attack':56} {'by':16} sent {'what came of it':74} honest members")
        for row in rows:
            came = " ".join(row.came.split())
            sent = "yes" if row.sent else "NO"
            terminalreporter.line(
                f"{_cut(row.attack, 56):56} {_cut(row.by, 16):16} {sent:4} {_cut(came, 74):74} {row.honest}"
            )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
