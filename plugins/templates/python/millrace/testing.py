"""Runs a plugin in Python, without WebAssembly: records in; verdicts and items out, as the router would have them."""

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Optional

from millrace import Component, pack


@dataclass
class Given:
    """A record to give to a plugin; strings stand for their UTF-8."""

    value: Optional[bytes] = None
    key: Optional[bytes] = None
    headers: list = field(default_factory=list)
    timestamp: int = -1

    def __post_init__(self):
        self.value, self.key = _bytes(self.value), _bytes(self.key)
        self.headers = [(name, _bytes(value)) for name, value in self.headers]


@dataclass
class Sent:
    """An item as it goes out."""

    source: int
    destination: str
    key: Optional[bytes]
    value: Optional[bytes]
    headers: list
    timestamp: int
    partition: Optional[int] = None
    topic: Optional[str] = None


@dataclass
class Outcome:
    """Of one batch: a verdict each (0 kept, 1 dropped, 2 refused), reasons by index, items in the order they go out."""

    verdicts: list
    reasons: dict
    items: list


def run(plugin_class, config, records):
    """Gives `records` to a plugin as one batch, offsets 0, 1, 2 … of partition 0 of the topic `test`."""
    batch, host = _Batch(records), _Host(records)
    component = Component(plugin_class, host)
    component.configure(json.dumps(config))
    verdicts = list(component.process(batch))
    return Outcome(verdicts, batch.reasons, sorted(host.sent, key=lambda item: item.source))


def _bytes(value):
    return value.encode() if isinstance(value, str) else value


def _column(items):
    return SimpleNamespace(**dict(zip(("bytes", "ends", "nulls"), pack(items))))


class _Batch:
    def __init__(self, records):
        self._records = records
        self.reasons = {}
        self.refuse = self.reasons.__setitem__
        self.topic = lambda: "test"
        self.partition = lambda: 0
        self.len = lambda: len(records)
        self.offsets = lambda start, end: list(range(start, end))
        self.timestamps = lambda start, end: [record.timestamp for record in records[start:end]]
        self.keys = lambda start, end: _column(record.key for record in records[start:end])
        self.values = lambda start, end: _column(record.value for record in records[start:end])
        self.headers = lambda index: list(records[index].headers)

    def header(self, start, end, name):
        return _column(dict(record.headers).get(name) for record in self._records[start:end])


class _Host:
    """Does with a plugin's calls what the router does."""

    def __init__(self, records):
        self._records = records
        self.sent = []

    def _send(self, destination, source):
        record = self._records[source]
        self.sent.append(Sent(source, destination, record.key, record.value, list(record.headers), record.timestamp))
        return self.sent[-1]

    def emit(self, destination, sources, values):
        first = len(self.sent)
        for source, value in zip(sources, values):
            self._send(destination, source).value = _bytes(value)
        return first

    def forward(self, destination, sources):
        for source in sources:
            self._send(destination, source)

    def _each(self, first, name, values):
        self.sent[first : first + len(values)] = (
            replace(item, **{name: _bytes(value)}) for item, value in zip(self.sent[first:], values)
        )

    def set_keys(self, first, keys):
        self._each(first, "key", keys)

    def set_timestamps(self, first, timestamps):
        self._each(first, "timestamp", timestamps)

    def set_partitions(self, first, partitions):
        self._each(first, "partition", partitions)

    def set_topics(self, first, topics):
        self._each(first, "topic", topics)

    def set_header(self, first, name, values):
        for item, value in zip(self.sent[first:], values):
            names = [other for other, _ in item.headers]
            place = names.index(name) if name in names else len(names)
            item.headers = [header for header in item.headers if header[0] != name]
            if value is not None:
                item.headers.insert(place, (name, _bytes(value)))

    def add_header(self, first, name, values):
        for item, value in zip(self.sent[first:], values):
            item.headers.append((name, _bytes(value)))
