"""Events in, records out.

Subscribers are plain callables and see events in the order in which they were emitted.
They are called by the emitter, so they must not block; one that raises is a fault of
ours, or a test that stops a node at this very event, and is let out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import ClassVar

from node.observe.plain import plain


class Level(IntEnum):
    """How much an event matters to an operator."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40

    @classmethod
    def named(cls, name: str) -> Level:
        """Return the level of a setting such as ``info``."""
        return cls[name.upper()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, in the market's words. Subclasses name it and add fields."""

    level: ClassVar[Level] = Level.INFO

    @classmethod
    def event_name(cls) -> str:
        """Return the event's name: ``OfferRejected`` is ``offer_rejected``."""
        return "".join(_snake(cls.__name__))


@dataclass(frozen=True, slots=True)
class Record:
    """An event as subscribers get it."""

    time: datetime
    event: Event
    context: Mapping[str, object]
    """What is known of the emitter, such as its node in a devnet."""

    @property
    def name(self) -> str:
        """Return the event's name, as in ``offer_rejected``."""
        return self.event.event_name()

    def fields(self) -> dict[str, object]:
        """Return context and fields, fit to be written: no secrets, plain JSON values."""
        named = {f.name: getattr(self.event, f.name) for f in dataclasses.fields(self.event)}
        return {name: plain(name, value) for name, value in {**self.context, **named}.items()}

    def document(self) -> dict[str, object]:
        """Return the whole record as one JSON object."""
        return {
            **self.fields(),
            "time": self.time.isoformat(timespec="milliseconds"),
            "level": self.event.level.name.lower(),
            "event": self.name,
        }


Subscriber = Callable[[Record], None]
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the wall clock's time, for an observer that is not given another clock."""
    return datetime.now(UTC)


class Observer:
    """Takes events in, and hands them on. Safe to use from several threads."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._counters: Counter[tuple[str, str]] = Counter()
        self._context: Mapping[str, object] = {}

    def bind(self, **context: object) -> Observer:
        """Return an observer that adds `context` to each event and shares all the rest."""
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound._context = {**self._context, **context}
        return bound

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Hand every later event to `subscriber`; returns a function that ends it."""
        with self._lock:
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._subscribers.remove(subscriber)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Stamp `event`, count it, and hand it to each subscriber in turn."""
        record = Record(self._clock(), event, self._context)
        with self._lock:
            self._counters[record.name, str(getattr(event, "reason", ""))] += 1
            for subscriber in tuple(self._subscribers):
                subscriber(record)

    @property
    def counters(self) -> Mapping[tuple[str, str], int]:
        """Return how often each (event, reason) came; the reason is "" where there is none."""
        with self._lock:
            return dict(self._counters)


def _snake(name: str) -> Iterator[str]:
    for index, letter in enumerate(name):
        if letter.isupper() and index:
            yield "_"
        yield letter.lower()
