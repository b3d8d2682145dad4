"""What a plugin is written with.

Authors see records; what crosses the sandbox's border are whole batches in packed columns (one byte string and where its
items end), and only the columns that are asked for: that makes it fast.

    class Plugin:
        def __init__(self, config): ...         # the plugin's `config`, parsed; raises BadConfig where it is of no use
        def transform(self, record, output): .. # returns KEEP or DROP; raises Refuse, Retry or Permanent
        def shutdown(self): ...                 # optional: before an orderly end

An instance lives as long as the router likes: what it remembers is a cache, never a store. Where a batch ends is the
router's choice, so what becomes of a record must not depend on its neighbours.
"""

import json
import sys
import traceback
from functools import cached_property, partial

KEEP = 0
"""The record goes on as it is, besides what was emitted from it."""
DROP = 1
"""The record does not go on; what was emitted from it does."""
DEFAULT = ""
"""The route's default destinations, whatever an earlier plugin said."""


class BadConfig(Exception):
    """Raised by `__init__`: the configuration is of no use, and why. The operator reads it."""


class Refuse(Exception):
    """Raised by `transform`: this record cannot be processed, and why. It alone meets the route's `on_error`."""


class Retry(Exception):
    """Raised by `transform`: not now, and why. The whole batch is given again later."""


class Permanent(Exception):
    """Raised by `transform`: never, and why. The router halves the batch to find the record to blame; prefer Refuse."""


class Log:
    """Lines in the router's log, with the record's topic, partition and offset. `print` does the same as `log.info`."""

    LEVELS = ("trace", "debug", "info", "warn", "error")

    def __init__(self):
        self.current = None  # index of the record at hand
        self.write = lambda level, message, about: print(f"{level}: {message}", file=sys.stderr)
        for level in self.LEVELS:
            setattr(self, level, partial(self._line, level))

    def _line(self, level, message):
        self.write(level, str(message), self.current)


log = Log()


class Record:
    """One record. Everything is read when asked for."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch, index):
        self._batch = batch
        self._index = index

    @property
    def key(self):
        """The key, bytes; None is not the same as empty."""
        return self._batch.keys.get(self._index)

    @property
    def value(self):
        """The value, bytes; None is a tombstone, which says that the key is deleted."""
        return self._batch.values.get(self._index)

    def header(self, name):
        """The last header of that name, bytes; None where there is none or its value is null."""
        return self._batch.header(name).get(self._index)

    def headers(self):
        """Every header in order, repeats included: `(name, bytes or None)`.

        Crosses the border for each record: for one that is known by name, `header` is much cheaper."""
        return self._batch.host.headers(self._index)

    @property
    def timestamp(self):
        """Milliseconds since 1970-01-01 UTC; None where the record has none."""
        timestamp = self._batch.timestamps[self._index]
        return None if timestamp == -1 else timestamp

    @property
    def offset(self):
        """The record's offset in its partition."""
        return self._batch.offsets[self._index]

    @property
    def topic(self):
        """The topic that the record was read from."""
        return self._batch.topic

    @property
    def partition(self):
        """The partition that the record was read from."""
        return self._batch.partition


class Output:
    """Takes what a transform makes of the records of one batch. The items of one record go out in the order of the calls.

    Items are gathered in groups, each of which becomes one call of the host. Those of one record only ever go to the group
    of the item before or a later one: order is kept, and a batch that all goes one way is one call."""

    def __init__(self):
        self._groups = []
        self._source = 0
        self._at = 0

    def emit(self, value, destination=DEFAULT):
        """Sends an item made of the record at hand to `destination`, a name of the route. `value`: bytes, a string, or None
        (a tombstone). The item keeps the record's key, headers and timestamp unless they are set on what is returned."""
        group = self._group(destination, False)
        group.sources.append(self._source)
        group.values.append(value)
        return Item(group, len(group.sources) - 1)

    def forward(self, destination):
        """Sends the record at hand there as it is, without a copy."""
        self._group(destination, True).sources.append(self._source)

    def _group(self, destination, forward):
        for place in range(self._at, len(self._groups)):
            group = self._groups[place]
            if group.destination == destination and group.forward == forward:
                break
        else:
            place, group = len(self._groups), _Group(destination, forward)
            self._groups.append(group)
        self._at = place
        return group

    def _start_record(self, index):
        self._source = index
        self._at = 0

    def _finish(self, host):
        for group in self._groups:
            if group.forward:
                host.forward(group.destination, group.sources)
                continue
            base = host.emit(group.destination, group.sources, group.values)
            for (kind, *name), runs in group.changes:
                for first, items in runs:
                    getattr(host, kind)(base + first, *name, items)


class _Group:
    def __init__(self, destination, forward):
        self.destination = destination
        self.forward = forward
        self.sources = []
        self.values = []
        self.changes = []  # ((kind, name of a header), runs)


class Item:
    """An item just emitted; each method changes one thing about it."""

    __slots__ = ("_group", "_index", "_header")

    def __init__(self, group, index):
        self._group = group
        self._index = index
        self._header = 0

    def key(self, key):
        """Sets the key: bytes, a string or None."""
        return self._set(("set_keys",), key, 0)

    def timestamp(self, timestamp):
        """Sets the timestamp, milliseconds since 1970-01-01 UTC."""
        return self._set(("set_timestamps",), timestamp, 0)

    def partition(self, partition):
        """Sets the partition, for a destination with `partition: plugin`."""
        return self._set(("set_partitions",), partition, 0)

    def topic(self, topic):
        """Names the topic, for a destination with a `topic_pattern`, which it must match."""
        return self._set(("set_topics",), topic, 0)

    def header(self, name, value):
        """Sets a header: where the first of that name stands (else last), in place of all of that name."""
        return self._set_header("set_header", name, value)

    def remove_header(self, name):
        """Removes all headers of that name."""
        return self._set_header("set_header", name, None)

    def add_header(self, name, value):
        """Adds a header after those that are there; None gives it a null value."""
        return self._set_header("add_header", name, value)

    def _set_header(self, kind, name, value):
        # Headers have an order: the next change of this item comes after this one.
        self._header = 1 + self._place((kind, name), value, self._header)
        return self

    def _set(self, change, value, start):
        self._place(change, value, start)
        return self

    def _place(self, change, value, start):
        changes = self._group.changes
        for place in range(start, len(changes)):
            if changes[place][0] == change:
                break
        else:
            place = len(changes)
            changes.append((change, []))
        # A run: what was set on an item and those after it without a gap.
        runs = changes[place][1]
        if not runs or runs[-1][0] + len(runs[-1][1]) != self._index:
            runs.append((self._index, []))
        runs[-1][1].append(value)
        return place


# ---- Behind the scenes: what a component exports, and what stands in for it in a test. ----


class Column:
    """Byte strings back to back, as they cross the border."""

    __slots__ = ("_bytes", "_ends", "_nulls")

    def __init__(self, column):
        self._bytes = column.bytes
        self._ends = column.ends
        self._nulls = frozenset(column.nulls)

    def get(self, index):
        if index in self._nulls:
            return None
        return self._bytes[self._ends[index - 1] if index else 0 : self._ends[index]]


def pack(items):
    """Bytes, strings and Nones as (bytes, ends, nulls)."""
    parts, ends, nulls, end = [], [], [], 0
    for index, item in enumerate(items):
        if item is None:
            nulls.append(index)
        else:
            part = item.encode() if isinstance(item, str) else item
            parts.append(part)
            end += len(part)
        ends.append(end)
    return b"".join(parts), ends, nulls


class _Batch:
    """The host's batch with the columns fetched so far."""

    def __init__(self, host):
        self.host = host
        self.len = host.len()
        self._headers = {}

    keys = cached_property(lambda self: Column(self.host.keys(0, self.len)))
    values = cached_property(lambda self: Column(self.host.values(0, self.len)))
    timestamps = cached_property(lambda self: self.host.timestamps(0, self.len))
    offsets = cached_property(lambda self: self.host.offsets(0, self.len))
    topic = cached_property(lambda self: self.host.topic())
    partition = cached_property(lambda self: self.host.partition())

    def header(self, name):
        column = self._headers.get(name)
        if column is None:
            column = self._headers[name] = Column(self.host.header(0, self.len, name))
        return column


class Component:
    """A plugin as the router calls it. `host`: its interface `output`, which takes lists and packs them."""

    def __init__(self, plugin_class, host):
        self._class = plugin_class
        self._host = host
        self._plugin = None

    def configure(self, config):
        self._plugin = self._told(lambda: self._class(json.loads(config)))

    def shutdown(self):
        if hasattr(self._plugin, "shutdown"):
            self._plugin.shutdown()

    def process(self, records):
        return self._told(lambda: self._process(records))

    def _process(self, records):
        batch = _Batch(records)
        output = Output()
        verdicts = bytearray(batch.len)
        for index in range(batch.len):
            log.current = index
            output._start_record(index)
            verdicts[index] = self._verdict(Record(batch, index), output, partial(records.refuse, index))
        output._finish(self._host)
        return bytes(verdicts)

    def _verdict(self, record, output, refuse):
        try:
            verdict = self._plugin.transform(record, output)
        except Refuse as refusal:
            refuse(str(refusal))
            return 2
        if verdict not in (KEEP, DROP):
            raise TypeError(f"transform returned {verdict!r}: return KEEP or DROP")
        return verdict

    def _told(self, run):
        """Whatever is no answer of the interface is a bug of the plugin: logged, then a trap."""
        try:
            return run()
        except (BadConfig, Retry, Permanent):
            raise
        except BaseException:
            log.error(traceback.format_exc())
            raise
        finally:
            log.current = None
