"""More ranks than memory holds are refused before any is started."""

import pytest

from suture.launch.host import memory_check
from suture.launch.options.options import AskedOptions
from suture.launch.start import agent
from suture.models.registry import build
from suture.runtime.errors import ConfigError


def options(**given):
    return AskedOptions(**{"model": "resnet18", "cut": "3", "image_size": 32} | given).resolved()


def test_the_estimate_counts_ranks_weights_gradients_and_moments():
    """Oracle: the weights themselves; cut 3 leaves a 7x7 convolution and its norm with each client."""
    split = build("resnet18", cut=3, num_outputs=2)
    sizes = {
        name: 4 * sum(p.numel() for p in part.parameters())
        for name, part in (("bottom", split.bottom), ("top", split.top))
    }
    assert sizes["bottom"] == 4 * (64 * 3 * 49 + 128)
    adam = memory_check.estimate(options(clients=3))
    assert adam == 4 * memory_check.RANK_BYTES + 4 * (3 * sizes["bottom"] + sizes["top"])
    sgd = memory_check.estimate(options(clients=3, optimizer="sgd"), forked=True)
    assert sgd == 4 * memory_check.FORKED_RANK_BYTES + 2 * (3 * sizes["bottom"] + sizes["top"])


def test_a_run_that_cannot_fit_starts_no_rank(monkeypatch):
    """Oracle: need, what is free and remedy are named; nothing is launched, which would fail without a patched agent."""
    monkeypatch.setattr(memory_check, "free_memory", lambda: 10**9)
    begun = []
    monkeypatch.setattr(agent.fork_server, "begin", lambda: begun.append(True))
    said = r"clients is 64: 65 processes need at least 6\.7 GB of memory, 1\.0 GB are free here; use fewer --clients"
    with pytest.raises(ConfigError, match=said):
        agent.start_ranks(options(clients=64))


def test_a_container_limit_counts(monkeypatch, tmp_path):
    """Oracle: the machine's free memory is the upper bound; a run of a few ranks fits where tests can run."""
    assert 0 < memory_check.free_memory() < 2**50
    memory_check.check_memory(options(clients=1), forked=True)
