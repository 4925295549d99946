"""What tests of whole runs share: ranks that are gone after a test."""

import pytest
from commands import Ranks


@pytest.fixture
def ranks():
    """Makes `Ranks` that are gone after the test."""
    made: list[Ranks] = []

    def make(world: int) -> Ranks:
        made.append(Ranks(world))
        return made[-1]

    yield make
    for group in made:
        group.kill()
