"""Two users at once: one question each in turn, nothing mixed up, and an answer that nobody wants is not made."""

import threading
import time

import pytest

from tometune.chatting.turns import Turns


def job(log, name, steps=3, hold=None):
    def run(stopped):
        log.append(name)
        if hold is not None:
            hold.wait(5)
        for step in range(steps):
            if stopped():
                log.append(f"{name} stopped")
                return
            yield (name, step)

    return run


def finished(ticket):
    found = []
    until = time.monotonic() + 5
    while not ticket.over:
        assert time.monotonic() < until
        found += ticket.news(0.05)
    return found


def test_users_are_served_in_turn():
    log, turns = [], Turns()
    tickets = [turns.ask("greedy", job(log, f"greedy {n}")) for n in range(4)]
    tickets += [turns.ask("modest", job(log, f"modest {n}")) for n in range(2)]
    assert [turns.ahead(ticket) for ticket in tickets] == [0, 2, 4, 5, 1, 3]
    turns.start()
    told = [finished(ticket) for ticket in tickets]
    assert log == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3"]
    names = [*(f"greedy {n}" for n in range(4)), "modest 0", "modest 1"]
    assert told == [[(name, step) for step in range(3)] for name in names]
    turns.close()


def test_who_is_served_counts_as_one_ahead():
    log, turns, hold = [], Turns(), threading.Event()
    turns.start()
    first = turns.ask("a", job(log, "a", hold=hold))
    while not log:
        time.sleep(0.01)
    second = turns.ask("b", job(log, "b"))
    assert (turns.ahead(first), turns.ahead(second)) == (0, 1)
    hold.set()
    assert finished(second) == [("b", step) for step in range(3)]
    turns.close()


def test_cancelled_ones_stop_and_those_that_wait_are_not_begun():
    log, turns, hold = [], Turns(), threading.Event()
    turns.start()
    running, waiting = (turns.ask("a", job(log, f"a{n}", hold=hold)) for n in range(2))
    other = turns.ask("b", job(log, "b"))
    while not log:
        time.sleep(0.01)
    turns.cancel("a")
    hold.set()
    assert (finished(running), finished(waiting)) == ([], [])
    assert len(finished(other)) == 3
    assert log == ["a0", "a0 stopped", "b"]
    turns.close()


def test_an_error_reaches_who_asked_and_the_next_is_answered():
    turns = Turns()
    turns.start()

    def broken(_):
        yield 1
        raise RuntimeError("no memory")

    ticket = turns.ask("a", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        finished(ticket)
    assert finished(turns.ask("a", job([], "next"))) == [("next", step) for step in range(3)]
    turns.close()
