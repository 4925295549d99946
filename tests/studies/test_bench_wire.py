"""``suture bench wire``: what it counts, what it writes and what it refuses; no time is asserted."""

from dataclasses import replace

import pytest
from torch import nn

from suture.launch.options.options import AskedOptions
from suture.runtime.errors import ConfigError
from suture.studies.bench.wire import WirePlan, default_options, measure_steps, page, run_command


def tiny_net(num_outputs):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_outputs),
    )


def test_every_format_takes_its_steps_and_its_bytes_are_counted():
    """Oracle: by hand. Batch 2, 4 x 8 x 8 at the cut; labels are int64, int8 has 4 scales."""
    net = {"model": f"module:{__name__}:tiny_net", "cut": "1", "image_size": 16, "batch_size": 2}
    rows = measure_steps(replace(default_options(), **net), WirePlan(wires=("fp32", "int8"), steps=10))
    assert [len(row["seconds"]) for row in rows.values()] == [10, 10]
    assert (rows["fp32"]["up"], rows["fp32"]["down"]) == (2048 + 16, 2048)
    assert (rows["int8"]["up"], rows["int8"]["down"]) == (512 + 16 + 16, 512 + 16)


def test_the_page_says_what_was_found():
    """Oracle: the line, by hand; 2,500,000 bytes take a fifth of a second at 100 Mbit/s."""
    scores = {"held_out": {"attack": {"ssim": 0.5}, "mean image": {"ssim": 0.25}}}
    point = {"metric_name": "accuracy", "metric": 0.75, "majority": 0.5}
    point |= {"attackers": {"static": {"scores": scores}}}
    row = {"seconds": [0.1, 0.2, 0.3], "up": 1_500_000, "down": 1_000_000, "points": [point]}
    where = {"date": "today", "processor": "p", "cores": 2, "torch": "2", "load_before": [0.0]}
    options = replace(default_options(), data="kaggle-dr:/home/ward/photographs")
    text = page(options, WirePlan(), where, dict.fromkeys(WirePlan().wires, row))
    line = "| fp32 | 1,500,000 | 1,000,000 | 0.200 (0.100 to 0.300) | 1.00 | 0.200 | 0.750 | 0.500 | 0.250 |"
    assert line in text and "(always the commoner class: 0.500)" in text
    assert "**The times say nothing**" in text and "**The leaks say nothing**" not in text
    assert "kaggle-dr:PATH" in text and "/home/ward" not in text


def test_what_it_cannot_measure_is_refused():
    """Oracle: the words."""
    with pytest.raises(ConfigError, match="steps must be at least 10, got 9"):
        WirePlan(steps=9)
    with pytest.raises(ConfigError, match="seeds must be at least 1, got 0"):
        WirePlan(seeds=0)
    with pytest.raises(ConfigError, match="bench wire brings formats and attack itself"):
        run_command(AskedOptions(wire="bf16"), WirePlan(), None)
