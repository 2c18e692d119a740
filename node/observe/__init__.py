"""The only way to log: business events with names, fields and, where refused, a reason.

A shell emits an `Event` (the catalogue is `node.chronicle`); the `Observer` stamps it,
counts it under its name and reason, and hands it to whoever subscribed: a JSON-lines file,
a console, a test. No secret can be written by accident (`node.observe.plain`).
"""

from node.observe.observer import Event, Level, Observer, Record, Subscriber, utc_now
from node.observe.sinks import Console, JsonLines, Memory

__all__ = [
    "Console",
    "Event",
    "JsonLines",
    "Level",
    "Memory",
    "Observer",
    "Record",
    "Subscriber",
    "utc_now",
]
