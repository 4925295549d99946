"""``suture cuts --advise``: a step's time over a line, predicted from what is measured here."""

import dataclasses

import pytest
from click.testing import CliRunner

from suture.cli import suture
from suture.models.cuts import CutRow, cut_table
from suture.runtime.errors import ConfigError
from suture.studies.cut_advice import Advice, Line, advise, notes

ROW = CutRow(
    index=0, name="conv1", smashed_shape=(4, 8, 8), bytes_up=700_000, bytes_down=300_000, client_params=1,
    total_params=2, client_flop_share=0.5,
)  # fmt: skip


def test_a_lines_time_is_bytes_over_bandwidth_and_round_trips():
    """Oracle: by hand: a million bytes at 8 Mbit/s are a second; a round trip is twice the latency."""
    line = Line(bandwidth=8, latency=50, exchange="fused")
    assert line.seconds(ROW, "shared") == pytest.approx(1 + 0.1)
    assert line.seconds(ROW, "home") == pytest.approx(1 + 0.2)
    assert dataclasses.replace(line, exchange="autograd").seconds(ROW, "shared") == pytest.approx(1 + 0.4)


@pytest.mark.parametrize(("model", "labels"), [("unet", None), ("resnet18", "home"), ("torchvision:squeezenet1_1", None)])  # fmt: skip
def test_a_prediction_adds_up_at_every_cut(model, labels):
    """Oracle: the sum, with the client at a quarter of the speed; every cut is there, in order."""
    width, size = (4, 32) if model == "unet" else (None, 32)
    rows = cut_table(model, size, 2, labels=labels, width=width)[1:4]
    line = Line(bandwidth=100, latency=1, client_speed=0.25)
    found = advise(model, rows, line, image_size=size, batch_size=2, labels=labels, width=width)
    assert [advice.row for advice in found] == rows
    for advice in found:
        assert min(advice.client, advice.server, advice.measured) > 0
        assert advice.predicted == pytest.approx(4 * advice.client + advice.server + advice.line)
        assert advice.line == line.seconds(advice.row, "home" if model == "unet" else labels or "shared")


def timed(*predicted):
    return [
        Advice(row=ROW, client=0.1, server=0.1, measured=0.1, line=0.1, predicted=seconds)
        for seconds in predicted
    ]


@pytest.mark.parametrize(
    ("predicted", "words"),
    [
        ((3.0, 1.0, 1.2, 2.0), ["", "fastest", "last within 25% of the fastest", ""]),
        ((1.0, 1.3), ["fastest; none later within 25%", ""]),
        ((1.2, 1.0), ["", "fastest; none later within 25%"]),
    ],
)
def test_the_fastest_and_the_last_that_is_nearly_as_fast_are_marked(predicted, words):
    """Oracle: by hand."""
    assert notes(timed(*predicted)) == words


@pytest.fixture(autouse=True)
def one_sweep(monkeypatch):
    """Enough to see that it works."""
    monkeypatch.setattr("suture.studies.cut_advice._MOST_SWEEPS", 1)


def command(*arguments):
    return CliRunner().invoke(suture, ["cuts", *arguments])


def test_the_command_says_what_is_measured_and_what_is_predicted():
    """Oracle: the words; a line a cut."""
    result = command(
        *"unet --width 4 --image-size 16 --batch-size 2 --advise --bandwidth 10 --latency 5".split()
    )
    assert result.exit_code == 0, result.output
    assert "10 Mbit/s, 5 ms one way" in result.output
    assert result.output.count("(measured)") == 3 and result.output.count("(predicted)") == 2
    assert all(f"enc{number}" in result.output for number in range(1, 5))
    assert "only 'suture audit' measures" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--advise --bandwidth 10", "advise needs the line: give --bandwidth MBIT and --latency MS"),
        ("--latency 10", "bandwidth, latency, client-speed and exchange go with --advise; add it"),
        ("--advise --latency 1 --bandwidth 0", "bandwidth must be above 0, got 0"),
        ("--advise --latency -1 --bandwidth 1", "latency must be at least 0 ms, got -1"),
        ("--advise --latency 1 --bandwidth 1 --client-speed nan", "client-speed must be above 0, got nan"),
        ("--advise --latency 1 --bandwidth 1 --exchange local", "exchange must be one of autograd, fused, got 'local'"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_is_refused(arguments, words):
    """Oracle: the messages, written out."""
    result = command("unet", "--width", "4", "--image-size", "16", *arguments.split())
    assert isinstance(result.exception, ConfigError) and str(result.exception) == words
