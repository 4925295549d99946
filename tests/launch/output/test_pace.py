"""Time left. Oracle: by hand, with a clock that the test moves."""

import pytest

from suture.launch.output.pace import Pace, duration


class Moved:
    """A clock."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Moved:
    return Moved()


def test_nothing_is_said_before_a_whole_round(clock):
    pace = Pace(clock)
    assert pace.seconds_left(5) is None
    pace.round_began(1)
    clock.now += 1000
    assert pace.seconds_left(5) is None


def test_after_a_round_the_others_are_taken_to_be_like_it(clock):
    """Round 1 took 10 s; 3 s of round 2 are over, 4 and 5 wait: 7 + 3 x 10."""
    pace = Pace(clock)
    pace.round_began(1)
    clock.now += 10
    pace.round_began(2)
    clock.now += 3
    pace.round_began(2)
    assert pace.seconds_left(5) == pytest.approx(37)


def test_one_slow_round_of_three_does_not_count(clock):
    pace = Pace(clock)
    for round, seconds in enumerate((10, 200, 12), start=1):
        pace.round_began(round)
        clock.now += seconds
    pace.round_began(4)
    assert pace.seconds_left(5) == pytest.approx(12 + 12)


def test_a_round_that_was_not_seen_from_its_beginning_says_nothing(clock):
    pace = Pace(clock)
    pace.round_began(3, is_whole=False)
    clock.now += 1
    pace.round_began(4)
    assert pace.seconds_left(5) is None
    clock.now += 10
    pace.round_began(5)
    assert pace.seconds_left(5) == pytest.approx(10)


def test_a_round_that_lasts_longer_is_about_to_end(clock):
    pace = Pace(clock)
    pace.round_began(1)
    clock.now += 10
    pace.round_began(2)
    clock.now += 50
    assert pace.seconds_left(2) == 0
    assert pace.seconds_left(3) == pytest.approx(10)


def test_a_duration_is_shown_in_hours_minutes_and_seconds():
    assert (duration(None), duration(3725.4)) == ("?", "1:02:05")
