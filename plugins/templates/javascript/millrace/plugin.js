// What a plugin is written with. Authors see records; what crosses the sandbox's border are whole batches in packed columns
// (one byte string and where its items end), and only the columns that are asked for: that makes it fast.
//
//   export default class {
//     constructor(config) { … }             // config: the plugin's `config`, parsed; throw BadConfig where it is of no use
//     transform(record, output) { … }       // returns KEEP or DROP; throws Refuse, Retry or Permanent
//     shutdown() { … }                      // optional: before an orderly end
//   }
//
// An instance lives as long as the router likes: what it remembers is a cache, never a store. Where a batch ends is the
// router's choice, so what becomes of a record must not depend on its neighbours.

/** The record goes on as it is, besides what was emitted from it. */
export const KEEP = 0;
/** The record does not go on; what was emitted from it does. */
export const DROP = 1;
/** The route's default destinations, whatever an earlier plugin said. */
export const DEFAULT = '';

/** Thrown by the constructor: the configuration is of no use, and why. The operator reads it. */
export class BadConfig extends Error {}
/** Thrown by `transform`: this record cannot be processed, and why. It alone meets the route's `on_error`. */
export class Refuse extends Error {}
/** Thrown by `transform`: not now, and why. The whole batch is given again later. */
export class Retry extends Error {}
/** Thrown by `transform`: never, and why. The router halves the batch to find the record to blame; prefer `Refuse`. */
export class Permanent extends Error {}

/** Lines in the router's log, with the record's topic, partition and offset. `console` does the same. */
export const log = Object.fromEntries(
  ['trace', 'debug', 'info', 'warn', 'error'].map((level) => [level, (message) => writeLog(level, String(message))]),
);

const utf8 = new TextEncoder();
const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Bytes as text; a TypeError where they are not UTF-8. */
export function text(bytes) {
  return strictUtf8.decode(bytes);
}

// Gives the memory of bytes back at once: the collector of garbage waits until there are tens of megabytes of it, which is more than a
// plugin is given.
function free(bytes) {
  bytes.buffer.transfer?.(0);
}

// Bytes as a text if each stands for a letter, else null.
function ascii(bytes) {
  try {
    const all = text(bytes);
    return all.length === bytes.length ? all : null;
  } catch {
    return null;
  }
}

/** One record. Bytes are Uint8Arrays that lie in the batch's column: copy what is to outlive the call. It is the same object for all
 *  records of a batch, always the one at hand: what is to be kept of it has to be taken out. */
export class Record {
  constructor(batch) {
    this._batch = batch;
  }

  /** The key, a Uint8Array; null is not the same as empty. */
  get key() {
    return (this._batch.keys ?? this._batch.fetch('keys')).at(current);
  }

  /** The value, a Uint8Array; null is a tombstone, which says that the key is deleted. */
  get value() {
    return (this._batch.values ?? this._batch.fetch('values')).at(current);
  }

  /** The value as text; null for a tombstone, a TypeError where it is not UTF-8. Much cheaper than `text(record.value)`. */
  get text() {
    return (this._batch.values ?? this._batch.fetch('values')).textAt(current);
  }

  /** The last header of that name, a Uint8Array; null where there is none or its value is null. */
  header(name) {
    const batch = this._batch;
    return (name === batch.headerName ? batch.header : batch.fetchHeader(name)).at(current);
  }

  /** Every header in order, repeats included: `[name, Uint8Array or null]`. Crosses the border for each record: for one
   *  that is known by name, `header` is much cheaper. */
  headers() {
    return this._batch.host.headers(current).map(([name, value]) => [name, value ?? null]);
  }

  /** Milliseconds since 1970-01-01 UTC, a number; null where the record has none. */
  get timestamp() {
    const timestamp = (this._batch.timestamps ?? this._batch.fetch('timestamps'))[current];
    return timestamp === -1n ? null : Number(timestamp);
  }

  /** The record's offset in its partition, a bigint. */
  get offset() {
    return (this._batch.offsets ?? this._batch.fetch('offsets'))[current];
  }

  /** The topic that the record was read from. */
  get topic() {
    return (this._batch.topic ??= this._batch.host.topic());
  }

  /** The partition that the record was read from. */
  get partition() {
    return (this._batch.partition ??= this._batch.host.partition());
  }
}

/** Takes what a transform makes of the records of one batch. The items of one record go out in the order of the calls. */
export class Output {
  // Items are gathered in groups, each of which becomes one call of the host. Those of one record only ever go to the group
  // of the item before or a later one: order is kept, and a batch that all goes one way is one call.
  _groups = [];
  // Of which record the item before was, and to which group it went.
  _source = -1;
  _at = 0;

  /** Sends an item made of the record at hand to `destination`, a name of the route. `value`: bytes, a string, or null (a
   *  tombstone). The item keeps the record's key, headers and timestamp unless they are set on what is returned. */
  emit(value, destination = DEFAULT) {
    const group = this._group(destination, false);
    const place = group.sources.push(current) - 1;
    group.values.push(value);
    return new Item(group, place);
  }

  /** Sends the record at hand there as it is, without a copy. */
  forward(destination) {
    this._group(destination, true).sources.push(current);
  }

  _group(destination, forward) {
    let place = this._source === current ? this._at : 0;
    this._source = current;
    for (; place < this._groups.length; place++) {
      const group = this._groups[place];
      if (group.destination === destination && group.forward === forward) {
        this._at = place;
        return group;
      }
    }
    this._at = place;
    const group = { destination, forward, sources: [], values: new Column(), changes: [] };
    this._groups.push(group);
    return group;
  }

  /** Hands everything over. */
  finish(host) {
    for (const { destination, forward, sources, values, changes } of this._groups) {
      if (forward) {
        host.forward(destination, Uint32Array.from(sources));
        continue;
      }
      const packed = values.packed();
      const base = host.emit(destination, Uint32Array.from(sources), packed);
      free(packed.bytes);
      for (const { kind, name, runs } of changes) {
        for (const { first, items } of runs) handOver[kind](host, base + first, items, name);
      }
    }
  }
}

/** An item just emitted; each method changes one thing about it. */
export class Item {
  constructor(group, index) {
    this._group = group;
    this._index = index;
    // The change of headers that comes next comes at this place or later.
    this._header = 0;
  }

  /** Sets the key: bytes, a string or null. */
  key(key) {
    return this._set('key', key);
  }

  /** Sets the timestamp, milliseconds since 1970-01-01 UTC, a number or a bigint. */
  timestamp(timestamp) {
    return this._set('timestamp', BigInt(timestamp));
  }

  /** Sets the partition, for a destination with `partition: plugin`. */
  partition(partition) {
    return this._set('partition', partition);
  }

  /** Names the topic, for a destination with a `topic_pattern`, which it must match. */
  topic(topic) {
    return this._set('topic', topic);
  }

  /** Sets a header: where the first of that name stands (else last), in place of all of that name. */
  header(name, value) {
    return this._setHeader('header', name, value);
  }

  /** Removes all headers of that name. */
  removeHeader(name) {
    return this._setHeader('header', name, null);
  }

  /** Adds a header after those that are there; null gives it a null value. */
  addHeader(name, value) {
    return this._setHeader('addHeader', name, value);
  }

  _set(kind, value) {
    const { changes } = this._group;
    let change = changes.find((other) => other.kind === kind);
    if (!change) changes.push((change = { kind, runs: [] }));
    append(change, this._index, value);
    return this;
  }

  // Headers have an order: the next change of this item comes after this one.
  _setHeader(kind, name, value) {
    const { changes } = this._group;
    const fits = (change, place) => place >= this._header && change.kind === kind && change.name === name;
    let place = changes.findIndex(fits);
    if (place === -1) place = changes.push({ kind, name, runs: [] }) - 1;
    append(changes[place], this._index, value);
    this._header = place + 1;
    return this;
  }
}

// A run: what was set on an item and those after it without a gap. Set again on the same item, it is a run of its own, later.
function append(change, index, value) {
  let run = change.runs.at(-1);
  if (!run || run.first + run.items.length !== index) change.runs.push((run = { first: index, items: [] }));
  run.items.push(value);
}

const handOver = {
  key: (host, first, keys) => host.setKeys(first, Column.of(keys)),
  timestamp: (host, first, timestamps) => host.setTimestamps(first, BigInt64Array.from(timestamps)),
  partition: (host, first, partitions) => host.setPartitions(first, Int32Array.from(partitions)),
  topic: (host, first, topics) => host.setTopics(first, topics),
  header: (host, first, values, name) => host.setHeader(first, name, Column.of(values)),
  addHeader: (host, first, values, name) => host.addHeader(first, name, Column.of(values)),
};

/** Byte strings back to back, to be handed over. */
export class Column {
  _items = [];
  // (whether all are texts)
  _texts = true;

  static of(items) {
    const column = new Column();
    for (const item of items) column.push(item);
    return column.packed();
  }

  push(item) {
    if (typeof item !== 'string') {
      if (item !== null && !ArrayBuffer.isView(item)) { // (the host's arrays are not of this realm's Uint8Array)
        throw new TypeError(`keys, values and headers are a Uint8Array, a string or null, not ${typeof item}`);
      }
      this._texts = false;
    }
    this._items.push(item);
  }

  packed() {
    return (this._texts ? this._ofAscii() : null) ?? this._ofAny();
  }

  // All at once, where each is as long in bytes as it is as a text.
  _ofAscii() {
    const all = this._items.join('');
    const bytes = utf8.encode(all);
    if (bytes.length !== all.length) return null;
    const ends = new Uint32Array(this._items.length);
    let end = 0;
    for (let index = 0; index < ends.length; index++) ends[index] = end += this._items[index].length;
    return { bytes, ends, nulls: new Uint32Array(0) };
  }

  _ofAny() {
    const nulls = [];
    const parts = this._items.map((item, index) => {
      if (item === null) nulls.push(index);
      return typeof item === 'string' ? utf8.encode(item) : item;
    });
    const ends = new Uint32Array(parts.length);
    let end = 0;
    for (let index = 0; index < ends.length; index++) ends[index] = end += parts[index]?.length ?? 0;
    const bytes = new Uint8Array(end);
    parts.forEach((part, index) => part && bytes.set(part, ends[index] - part.length));
    return { bytes, ends, nulls: Uint32Array.from(nulls) };
  }
}

// A column as it came: its items are cut out when they are asked for.
class Columns {
  constructor({ bytes, ends, nulls }) {
    this.ends = ends;
    this.nulls = nulls.length === 0 ? null : new Set(nulls);
    this.bytes = bytes;
    this.buffer = bytes.buffer;
    this.offset = bytes.byteOffset;
    // All of it as a text, where each byte is a letter; null where it is not so.
    this.ascii = undefined;
  }

  at(index) {
    if (this.nulls !== null && this.nulls.has(index)) return null;
    const ends = this.ends;
    const start = index === 0 ? 0 : ends[index - 1];
    // (`subarray` looks for the array's species first)
    return new Uint8Array(this.buffer, this.offset + start, ends[index] - start);
  }

  textAt(index) {
    if (this.ascii === undefined) this.ascii = ascii(this.bytes);
    if (this.ascii === null || this.nulls !== null) {
      const bytes = this.at(index);
      return bytes === null ? null : text(bytes);
    }
    return this.ascii.substring(index === 0 ? 0 : this.ends[index - 1], this.ends[index]);
  }
}

// The host's batch with the columns fetched so far. What each record does makes nothing anew, not even a function, and looks nothing up
// by a private name: JavaScript is interpreted here.
class Batch {
  constructor(host) {
    this.host = host;
    this.length = host.len();
    this.keys = this.values = this.timestamps = this.offsets = null;
    this.topic = this.partition = null;
    // The header that was asked for last, and all.
    this.headerName = this.header = null;
    this.headers = new Map();
  }

  fetch(what) {
    const found = this.host[what](0, this.length);
    return (this[what] = found.ends ? new Columns(found) : found);
  }

  // Gives back what was fetched.
  end() {
    [this.keys, this.values, ...this.headers.values()].forEach((column) => column !== null && free(column.bytes));
  }

  fetchHeader(name) {
    let found = this.headers.get(name);
    if (found === undefined) this.headers.set(name, (found = new Columns(this.host.header(0, this.length, name))));
    this.headerName = name;
    return (this.header = found);
  }
}

// ---- Behind the scenes: the component's exports, and what stands in for them in a test. ----

// The record at hand, by its number in the batch.
let current;
let writeLog = (level, message) => console.error(`${level}: ${message}`);

/** Where log lines go: `write(level, message, index of the record at hand or undefined)`. */
export function logTo(write) {
  writeLog = (level, message) => write(level, message, current);
}

/** Makes a component's exports of a plugin class; `host` is the router's interface `output`. */
export function component(Plugin, host) {
  let plugin;
  return {
    lifecycle: {
      configure(config) {
        plugin = attempt(() => new Plugin(JSON.parse(config)));
      },
      shutdown() {
        plugin?.shutdown?.();
      },
    },
    process(records) {
      return attempt(() => processBatch(plugin, records, host));
    },
  };
}

function processBatch(plugin, records, host) {
  const batch = new Batch(records);
  const { length } = batch;
  const [record, output, verdicts] = [new Record(batch), new Output(), new Uint8Array(length)];
  current = 0;
  while (current < length) {
    try {
      for (; current < length; current++) {
        const verdict = plugin.transform(record, output);
        if (verdict !== KEEP && verdict !== DROP) throw new TypeError(`transform returned ${verdict}: return KEEP or DROP`);
        verdicts[current] = verdict;
      }
    } catch (error) {
      if (!(error instanceof Refuse)) throw error;
      records.refuse(current, error.message);
      verdicts[current++] = 2;
    }
  }
  current = undefined;
  output.finish(host);
  batch.end();
  return verdicts;
}

// The interface's failures are thrown as what they carry; anything else is a bug of the plugin: logged, then a trap.
function attempt(run) {
  try {
    return run();
  } catch (error) {
    const failures = [[BadConfig, 'bad-config'], [Retry, 'retry'], [Permanent, 'permanent']];
    const failure = failures.find(([kind]) => error instanceof kind);
    if (failure) throw { tag: failure[1], val: error.message };
    log.error(`${error}\n${error?.stack ?? ''}`);
    throw error;
  } finally {
    current = undefined;
  }
}
