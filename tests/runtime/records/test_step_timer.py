"""Where a step's time goes: parts that add up, and a timer that does nothing."""

import pytest

from suture.runtime.data.client_data import Batch
from suture.runtime.records import step_timer
from suture.runtime.records.step_timer import WAITING, NoStepTimer, RunningStepTimer
from suture.runtime.scheduler import Turn, TurnKind

TURN = Turn(TurnKind.TRAIN, round=1, number=3, client="a")


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    held = Clock()
    monkeypatch.setattr(step_timer, "time", held)
    return held


def batches(clock, count):
    for number in range(count):
        clock.now += 1
        yield Batch(inputs=None, targets=None, number=number, keys=())


def test_a_part_inside_another_stops_its_clock(clock):
    """Oracle: a clock moved by hand; parts add up to what passed inside the outermost."""
    watch = RunningStepTimer()
    with watch.part("backward"):
        clock.now += 2
        with watch.part(WAITING):
            clock.now += 5
        clock.now += 3
    lap = watch.take()
    assert lap.seconds == {"backward": 5.0, WAITING: 5.0} and lap.spans == [(WAITING, 102.0, 107.0)]
    assert watch.take().seconds == {}


def test_each_step_is_kept_with_its_loader_and_its_window(clock):
    """Oracle: a clock moved by hand: a second in the loader, four in the step; the bottom is one of them."""

    def train(batches):
        for batch in batches:
            with watch.part("bottom"):
                clock.now += 1
            clock.now += 3
            yield batch

    kept = []
    watch = RunningStepTimer(lambda turn, batch, lap: kept.append((turn.number, batch, lap)))
    done = watch.steps(TURN, train(watch.loading(batches(clock, 2))))
    assert [batch.number for batch in done] == [0, 1]
    assert [(turn, batch, lap.seconds) for turn, batch, lap in kept] == [
        (3, number, {"loader": 1.0, "bottom": 1.0}) for number in (0, 1)
    ]
    assert [lap.window for _, _, lap in kept] == [(100.0, 105.0), (105.0, 110.0)]


def test_a_step_that_fails_leaves_nothing_open(clock):
    """Oracle: what is measured afterwards is only its own."""
    watch = RunningStepTimer()
    with pytest.raises(ValueError), watch.part("bottom"):
        raise ValueError
    watch.take()
    clock.now += 7
    with watch.part("head"):
        clock.now += 1
    assert watch.take().seconds == {"head": 1.0}


def test_no_stopwatch_hands_the_batches_on_untouched(clock):
    """Oracle: identity."""
    source = batches(clock, 1)
    watch = NoStepTimer()
    assert watch.loading(source) is source and watch.steps(TURN, source) is source
    with watch.part("anything"):
        pass
