"""Where the server computes: one thread, one function after the other, and what becomes of those that wait at the end."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from suture.runtime.errors import PeerLostError, WireError
from suture.runtime.host.executor import MainThreadExecutor, SameThread

LONG = 60.0  # seconds that no test waits


def own_thread() -> str:
    return threading.current_thread().name


def test_functions_run_in_the_thread_that_works_one_after_the_other_in_the_order_in_which_they_came():
    """Oracle: the numbers that went in, and the names of the threads; submitted from another thread, as a carrier's are."""
    executor, ended, ran = MainThreadExecutor(), threading.Event(), []

    def submit_all():
        answers = [
            executor.submit(lambda number=number: ran.append((number, own_thread())) or number)
            for number in range(20)
        ]
        executor.submit(ended.set)
        return [answer.result(LONG) for answer in answers]

    with ThreadPoolExecutor(1) as carrier:
        answers = carrier.submit(submit_all)
        assert executor.work(ended, LONG) is True
        assert answers.result(LONG) == list(range(20))
    assert ran == [(number, own_thread()) for number in range(20)]


def test_it_works_for_as_long_as_it_is_told_and_not_after_the_end():
    """Oracle: what had run; a function that is submitted while it works is run without waiting for the next call."""
    executor, ended, ran = MainThreadExecutor(), threading.Event(), []
    executor.submit(lambda: executor.submit(lambda: ran.append("second")) and ran.append("first"))
    assert executor.work(ended, 0.05) is False and ran == ["first", "second"]
    assert executor.work(ended, 0) is False
    executor.submit(lambda: ran.append("third"))
    ended.set()
    assert executor.work(ended, LONG) is True and ran == ["first", "second"]


@pytest.mark.parametrize("error", [WireError("client0: no"), ValueError("a defect")])
def test_an_error_is_its_askers_and_the_thread_works_on(error):
    """Oracle: the error itself, and the function after it."""
    executor, ended = MainThreadExecutor(), threading.Event()

    def fail():
        raise error

    failed, next_one = executor.submit(fail), executor.submit(ended.set)
    assert executor.work(ended, LONG)
    assert failed.exception() is error and next_one.result() is None


def test_what_waits_when_it_closes_and_what_comes_later_fails():
    """Oracle: the error, where a call that waited for ever would keep its carrier from ending; nothing has run."""
    executor, ran = MainThreadExecutor(), []
    with ThreadPoolExecutor(1) as carrier:
        early = carrier.submit(executor.submit, lambda: ran.append("early")).result(LONG)
        executor.close()
        late = carrier.submit(executor.submit, lambda: ran.append("late")).result(LONG)
    for answer in (early, late):
        with pytest.raises(PeerLostError, match="the server is ending; see its log"):
            answer.result(LONG)
    executor.close()
    assert not ran


def test_no_function_is_left_waiting_however_closing_falls():
    """Oracle: each of a thousand that another thread submits while this one closes has an answer: it ran, or it failed."""
    executor, ran = MainThreadExecutor(), []
    begun = threading.Event()

    def submit_all():
        answers = []
        for number in range(1000):
            answers.append(executor.submit(lambda number=number: ran.append(number)))
            begun.set()
        return answers

    with ThreadPoolExecutor(1) as carrier:
        submitted = carrier.submit(submit_all)
        assert begun.wait(LONG)
        executor.work(threading.Event(), 0.001)
        executor.close()
        answers = submitted.result(LONG)
    failures = [answer.exception(LONG) for answer in answers]
    assert ran == [number for number, failure in enumerate(failures) if failure is None]
    assert all(isinstance(failure, PeerLostError) for failure in failures if failure is not None)


def test_an_interrupt_in_a_function_stops_the_thread_and_not_who_asked():
    """Oracle: the thread that works sees its interrupt, the one that asked an error of ours; the next one still runs."""
    executor, ended = MainThreadExecutor(), threading.Event()

    def interrupted():
        raise KeyboardInterrupt

    answer, later = executor.submit(interrupted), executor.submit(ended.set)
    with pytest.raises(KeyboardInterrupt):
        executor.work(ended, LONG)
    with pytest.raises(PeerLostError, match="the server was interrupted"):
        answer.result(0)
    assert not later.done() and executor.work(ended, LONG)


def test_in_one_process_a_function_runs_where_it_is_submitted():
    """Oracle: the thread; an error of ours is the future's, a defect is raised on the spot."""
    executor = SameThread()
    with ThreadPoolExecutor(1, thread_name_prefix="client") as client:
        assert client.submit(executor.submit, own_thread).result(LONG).result(0).startswith("client")
    error = WireError("client0: no")

    def fail(error):
        raise error

    assert executor.submit(lambda: fail(error)).exception(0) is error
    with pytest.raises(ValueError, match="a defect"):
        executor.submit(lambda: fail(ValueError("a defect")))
