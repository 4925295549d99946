"""What the first site says settles the terms, for itself and for all who ask later.

Oracle: the terms that the main thread settled; who was heard first.
"""

import pytest

from suture.runtime.errors import WireError
from suture.runtime.grpc.service import MODES, TERMS
from suture.runtime.wire.messages import Hello, Refusal, Terms

OPEN, SETTLED = Terms("run", {"lr": "0.1"}), Terms("run", {"lr": "0.1", "classes": '["a", "b"]'})


def proposal(name: str, *classes: str) -> Hello:
    return Hello(name, {"classes": ",".join(classes)}, num_images=0, num_batches=0)


@pytest.mark.parametrize("tls", MODES)
def test_the_first_of_two_sites_that_ask_at_once_settles_the_terms_for_both(house, tls):
    """Oracle: both answers are the settled ones, and the one that was heard is one of the two."""
    made = house(2, plays=False, terms=OPEN, tls=tls)
    asking = [
        made.line(name, tls=tls).begin(TERMS, [proposal(name, *order)])
        for name, order in (("client0", "ab"), ("client1", "ba"))
    ]
    assert made.server.first_hello() in (proposal("client0", "a", "b"), proposal("client1", "b", "a"))
    made.server.settle(SETTLED)
    assert [answer() for answer in asking] == [SETTLED, SETTLED]
    assert made.line("client0", tls=tls).begin(TERMS, [])() == SETTLED, "whoever asks later"


def test_who_only_asks_is_answered_at_once_and_settles_nothing(house):
    """Oracle: the terms as they are at the start; the first is another site."""
    made = house(2, plays=False, terms=OPEN)
    assert made.line("client0").begin(TERMS, [])() == OPEN
    waits = made.line("client1").begin(TERMS, [proposal("client1", "a", "b")])
    assert made.server.first_hello().client == "client1"
    made.server.settle(SETTLED)
    assert waits() == SETTLED


def test_what_is_not_sound_is_refused_to_that_site_alone(house):
    """Oracle: its answer; the next one is the first."""

    def sound(hello: Hello) -> None:
        if hello.agreement["classes"] == "x":
            raise WireError(f"{hello.client} said 'x' of the run's classes; refused")

    made = house(2, plays=False, terms=OPEN, first_is_sound=sound)
    for endpoint in (TERMS, "hello"):
        answer = made.line("client0").begin(endpoint, [proposal("client0", "x")])()
        assert answer == Refusal("WireError", "client0 said 'x' of the run's classes; refused")
    waits = made.line("client1").begin(TERMS, [proposal("client1", "a", "b")])
    assert made.server.first_hello().client == "client1"
    made.server.settle(SETTLED)
    assert waits() == SETTLED


def test_a_site_speaks_for_itself_only(house):
    """Oracle: the answer names the certificate's name; nothing is settled."""
    made = house(2, plays=False, terms=OPEN)
    for message in ([proposal("client1", "a", "b")], ["a"], [None, None]):
        answer = made.line("client0").begin(TERMS, message)()
        assert answer.error == "WireError" and "client0: terms: it must name the site that" in answer.message
    assert made.line("client0").begin(TERMS, [])() == OPEN
