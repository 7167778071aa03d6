"""Whose turn it is: one thread answers all users, one question after the other, each user in turn."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Event = TypeVar("Event")
Stopped = Callable[[], bool]
Job = Callable[[Stopped], Iterator[Event]]
"""Yields what is to be told to the user; asks `Stopped` often."""


class Ticket(Generic[Event]):
    """One question on its way."""

    def __init__(self, user: str, job: Job[Event]) -> None:
        self.user = user
        self.job = job
        self.error: Exception | None = None
        self._unwanted = threading.Event()
        self._told: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._over = False

    @property
    def over(self) -> bool:
        """Whether everything was told."""
        return self._over

    def cancel(self) -> None:
        """Say that the answer is not wanted any more; it stops before its next token."""
        self._unwanted.set()

    def cancelled(self) -> bool:
        """Tell whether it is not wanted any more."""
        return self._unwanted.is_set()

    def news(self, seconds: float) -> list[Event]:
        """Wait for news for so long at most, and return all there is.

        Raises:
            Exception: what the job raised, once.
        """
        found: list[Event] = []
        try:
            event = self._told.get(timeout=seconds)
            while event is not None:
                found.append(event)
                event = self._told.get_nowait()
            self._over = True
        except queue.Empty:
            return found
        if self.error is not None:
            raise self.error
        return found

    def run(self) -> None:
        """Do the job; called by the thread that answers."""
        try:
            if not self.cancelled():
                for event in self.job(self.cancelled):
                    self._told.put(event)
        except Exception as error:
            self.error = error
        finally:
            self._told.put(None)


class Turns(Generic[Event]):
    """The questions that wait, and the thread that answers them.

    Users are served in turn, one question each: whoever asks ten at once waits behind another's first.
    """

    def __init__(self) -> None:
        """Start no thread yet: see `start`."""
        self._waiting: dict[str, deque[Ticket[Event]]] = {}  # in the order in which users are served
        self._current: Ticket[Event] | None = None
        self._changed = threading.Condition()
        self._closed = False

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._serve, name="answers", daemon=True).start()

    def ask(self, user: str, job: Job[Event]) -> Ticket[Event]:
        """Queue a question."""
        ticket = Ticket(user, job)
        with self._changed:
            self._waiting.setdefault(user, deque()).append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, user: str) -> None:
        """Stop all that a user has asked."""
        with self._changed:
            tickets = [*self._waiting.get(user, ()), *([self._current] if self._current else [])]
        for ticket in tickets:
            if ticket.user == user:
                ticket.cancel()

    def close(self) -> None:
        """Answer no more; what is being answered stops."""
        with self._changed:
            self._closed = True
            if self._current:
                self._current.cancel()
            self._changed.notify()

    def ahead(self, ticket: Ticket[Event]) -> int:
        """Return how many questions are answered before this one; 0 when it is its turn."""
        with self._changed:
            if self._current is ticket or ticket not in self._waiting.get(ticket.user, ()):
                return 0
            own = self._waiting[ticket.user].index(ticket)
            users = list(self._waiting)
            before = users.index(ticket.user)
            others = [
                min(len(self._waiting[user]), own + (place < before))
                for place, user in enumerate(users)
                if user != ticket.user
            ]
            return own + sum(others) + (self._current is not None)

    def _serve(self) -> None:
        """Answer until closed."""
        while (ticket := self._next()) is not None:
            ticket.run()

    def _next(self) -> Ticket[Event] | None:
        """Wait for the next question, whose user goes to the end of the line."""
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            user = next(iter(self._waiting))
            tickets = self._waiting.pop(user)
            self._current = tickets.popleft()
            if tickets:
                self._waiting[user] = tickets
            return self._current
