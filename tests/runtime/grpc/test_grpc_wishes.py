"""A site that waits for a turn over gRPC, and whose people want it to go.

Oracle: the time that it takes; the run goes on, and its weights are those of the replay.
"""

import threading
import time

from house import LONG, joins, local, running

from suture.launch.site import join
from suture.launch.site.wishes import SiteWishes, Wanted
from suture.runtime.client.wishes import NoWishes, Parting, Wish
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.participant.leaving import part
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Replay
from suture.runtime.session import take_part, take_turns


class Wanting(NoWishes):
    """Wants a pause between two turns, from some time on."""

    def __init__(self) -> None:
        self.wanted = threading.Event()

    def between_turns(self, awaits_mean: bool) -> None:
        if self.wanted.is_set():
            raise Parting(Wish.PAUSE)


def test_a_waiting_call_is_dropped_and_the_seat_is_free(house):
    """Oracle: it waits for a site that is not there; a second after the wish it is gone, and may come back."""
    made, wishes = house(2), Wanting()
    member = Participant(made.member(0).client, GrpcExchange(made.line()), NoClientObserver(), wishes)
    join.join(member, {})
    threading.Timer(0.5, wishes.wanted.set).start()
    began = time.monotonic()
    try:
        take_turns(member)
    except Parting as parting:
        assert 0.4 < time.monotonic() - began < 2.0
        part(member, parting)
    assert made.coordinator.membership.lost == ["client0"]
    member.exchange.close()
    join.join(Participant(member.client, GrpcExchange(made.line()), NoClientObserver()), {})
    assert made.coordinator.membership.present() == ["client0"]


def test_a_site_pauses_and_goes_on_in_the_same_process_and_the_weights_are_the_replays(house, tmp_path):
    """Oracle: the turns that counted, played in one process; the site that pauses is lost once and joins twice."""
    made = house(2, rounds=4, run_dir=tmp_path / "run")
    first, second = made.member(0), made.member(1)
    (state := tmp_path / "state").mkdir()
    wishes, asked = SiteWishes(state, "client1", "run"), []

    def pause_once(step: int, name: str) -> None:
        if name == "client1" and not asked:
            asked.append(step)
            Wanted("run", Wish.PAUSE).write(state)
            threading.Thread(target=end_it).start()
            time.sleep(1.0)  # the turn is not over before the site has looked

    def end_it() -> None:
        made.events.wait("lost")
        Wanted.forget(state)

    made.events.at_step = pause_once
    config = joins("client1", f"127.0.0.1:{made.port}", LONG)
    wishes.watch()
    with running(
        lambda: join.take_part(
            second.client, NoClientObserver(), made.config("client1"), {}, config, wishes=wishes
        )
    ):
        take_part(slowed(first), {})
    wishes.close()
    assert made.ended.wait(LONG) and made.error is None and asked
    assert [fields["client"] for fields in made.events.named("lost")] == ["client1"]
    assert len([1 for fields in made.events.named("joined") if fields["client"] == "client1"]) == 2
    assert made.coordinator.run_state.totals.rolled_back <= 1
    replay = Replay(tmp_path / "run" / "turns.jsonl")
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 2, 4, False, replay)


def slowed(member: Participant) -> Participant:
    """A site whose training turns take a while, so that the run is not over before the other one is back."""
    commit = member.exchange.commit

    def slowly(handoff) -> None:
        time.sleep(1.0)
        commit(handoff)

    member.exchange.commit = slowly
    return member
