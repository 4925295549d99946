"""``suture bench security`` measures what it says.

Oracle: counting; the table's own arithmetic.
"""

import pytest

from suture.launch.options.options import AskedOptions
from suture.runtime.errors import ConfigError
from suture.studies.bench import security


def test_everything_is_measured_as_often_as_asked(monkeypatch):
    """Oracle: the number of repetitions; a small net in the place of the large ones."""
    monkeypatch.setattr(security, "HANDOFF_CUT", "4")
    options = AskedOptions(model="resnet18", image_size=32, batch_size=2, exchange="local", threads=1)
    costs = security.measure(options, 10)
    lists = [costs.step, costs.plain, costs.checked, *costs.handoff.values()]
    assert [len(times) for times in lists] == [10] * 5 and all(t > 0 for times in lists for t in times)
    assert list(costs.handoff) == list(costs.signed) == list(costs.handoff_bytes) == ["3", "4"]
    assert all(len(times) == 10 and min(map(min, times)) > 0 for times in costs.signed.values())


def test_fewer_repetitions_than_a_median_needs_are_refused():
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="repeats must be at least 10, got 9"):
        security.measure(AskedOptions(), 9)
