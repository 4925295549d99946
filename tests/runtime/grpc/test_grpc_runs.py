"""Whole runs over gRPC on loopback: the weights are those of the run in one process, whatever the line does.

Oracle: `weights_sha256` of the same options over LocalExchange; where a turn was rolled back, of the replay.
"""

import time

import pytest
from house import LONG, joins, local, running
from tiny import NUM_BATCHES, build_client

from suture.launch.site import join
from suture.runtime.errors import UnreachableError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Replay
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.session import take_part
from suture.studies.bench.rigs.breakable import BreakableLine


@pytest.mark.parametrize("home", [False, True])
@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (2, 2)])
def test_a_run_over_grpc_ends_with_the_weights_of_the_run_in_one_process(
    clients, rounds, home, house, tmp_path
):
    """Oracle: as above; every site has the whole model's parts, and nobody was lost."""
    made = house(clients, rounds=rounds, home=home)
    members = [made.member(index, home) for index in range(clients)]
    if clients == 1:
        take_part(members[0], {})
    else:
        with running(lambda: take_part(members[1], {})):
            take_part(members[0], {})
    assert made.ended.wait(LONG) and made.error is None
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", clients, rounds, home)
    assert len({tuple(member.client.digests().items()) for member in members}) == 1
    assert made.events.named("lost") == []


@pytest.mark.parametrize("home", [False, True])
def test_batches_that_overlap_are_taken_in_their_order(home, house, tmp_path, monkeypatch):
    """Oracle: as above, where two batches are under way at once, the most that there may be."""
    overlap = {"num_train": 8, "batch_size": 2, "overlap": True}
    made = house(1, rounds=3, home=home, batch_size=2)
    train, slowly = ClientTurn.train, 0.005

    def train_slowly(*args):
        time.sleep(slowly)
        train(*args)

    monkeypatch.setattr(ClientTurn, "train", train_slowly)
    take_part(
        Participant(build_client(0, home, **overlap), GrpcExchange(made.line()), NoClientObserver()), {}
    )
    assert made.ended.wait(LONG) and made.error is None
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 1, 3, home, **overlap)


@pytest.mark.parametrize("home", [False, True])
def test_a_site_whose_line_breaks_in_a_turn_comes_back_and_the_weights_are_the_replays(home, house, tmp_path):
    """Oracle: the turns that counted, played in one process; the broken one was rolled back and did not count."""
    made = house(1, rounds=3, home=home, run_dir=tmp_path / "run")
    client = build_client(0, home)
    with BreakableLine(f"127.0.0.1:{made.port}") as line:
        broken = []

        def break_once(step: int, name: str) -> None:
            if step in (2, 5) and step not in broken:  # the middle of the first turn, and of the second
                broken.append(step)
                line.break_lines()

        made.events.at_step = break_once
        port = int(line.address.rpartition(":")[2])
        config = joins("client0", line.address, LONG)
        join.take_part(client, NoClientObserver(), made.config(port=port), {}, config)
        assert broken == [2, 5] and line.num_lines >= 3
    assert made.ended.wait(LONG) and made.error is None
    assert len(made.events.named("lost")) == 2 and made.coordinator.run_state.totals.rolled_back == 2
    replay = Replay(tmp_path / "run" / "turns.jsonl")
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 1, 3, home, replay)


def test_the_others_go_on_while_a_site_is_gone_and_the_weights_are_the_replays(house, tmp_path):
    """Oracle: the turns that counted, played in one process: the other site's are among them, in their order."""
    made = house(2, rounds=3, run_dir=tmp_path / "run")
    first, second = made.member(0), made.member(1)
    with BreakableLine(f"127.0.0.1:{made.port}") as line:
        broken = []

        def break_once(step: int, name: str) -> None:
            if name == "client1" and step > 3 * NUM_BATCHES and not broken:  # it has trained one round
                broken.append(step)
                line.break_lines()

        made.events.at_step = break_once
        dialled = made.config("client1", port=int(line.address.rpartition(":")[2]))
        config = joins("client1", line.address, LONG)
        with running(lambda: join.take_part(second.client, NoClientObserver(), dialled, {}, config)):
            take_part(first, {})
    assert made.ended.wait(LONG) and made.error is None and broken
    assert [fields["client"] for fields in made.events.named("lost")] == ["client1"]
    replay = Replay(tmp_path / "run" / "turns.jsonl")
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 2, 3, False, replay)


def test_a_site_that_comes_while_the_server_is_ending_looks_for_it_again(house):
    """Oracle: the error is the search's: the server that answered so is gone a moment later, and may be started again."""
    made = house(2)
    made.server._executor.close()
    config = joins("client0", f"127.0.0.1:{made.port}", 0.6)
    ending = r"no server at .* for 0.6 s \(the server is ending; see its log\)"
    with pytest.raises(UnreachableError, match=ending):
        join.take_part(build_client(0), NoClientObserver(), made.config(), {}, config)
