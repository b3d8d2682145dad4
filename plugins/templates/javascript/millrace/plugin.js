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

/** One record. Bytes are Uint8Arrays that lie in the batch's column: copy what is to outlive the call. */
export class Record {
  #batch;
  #index;

  constructor(batch, index) {
    this.#batch = batch;
    this.#index = index;
  }

  /** The key, a Uint8Array; null is not the same as empty. */
  get key() {
    return this.#batch.column('keys').get(this.#index);
  }

  /** The value, a Uint8Array; null is a tombstone, which says that the key is deleted. */
  get value() {
    return this.#batch.column('values').get(this.#index);
  }

  /** The last header of that name, a Uint8Array; null where there is none or its value is null. */
  header(name) {
    return this.#batch.header(name).get(this.#index);
  }

  /** Every header in order, repeats included: `[name, Uint8Array or null]`. Crosses the border for each record: for one
   *  that is known by name, `header` is much cheaper. */
  headers() {
    return this.#batch.host.headers(this.#index).map(([name, value]) => [name, value ?? null]);
  }

  /** Milliseconds since 1970-01-01 UTC, a number; null where the record has none. */
  get timestamp() {
    const timestamp = this.#batch.column('timestamps')[this.#index];
    return timestamp === -1n ? null : Number(timestamp);
  }

  /** The record's offset in its partition, a bigint. */
  get offset() {
    return this.#batch.column('offsets')[this.#index];
  }

  /** The topic that the record was read from. */
  get topic() {
    return this.#batch.once('topic');
  }

  /** The partition that the record was read from. */
  get partition() {
    return this.#batch.once('partition');
  }
}

/** Takes what a transform makes of the records of one batch. The items of one record go out in the order of the calls. */
export class Output {
  // Items are gathered in groups, each of which becomes one call of the host. Those of one record only ever go to the group
  // of the item before or a later one: order is kept, and a batch that all goes one way is one call.
  #groups = [];
  #source = 0;
  #at = 0;

  /** Sends an item made of the record at hand to `destination`, a name of the route. `value`: bytes, a string, or null (a
   *  tombstone). The item keeps the record's key, headers and timestamp unless they are set on what is returned. */
  emit(value, destination = DEFAULT) {
    const group = this.#group(destination, false);
    group.sources.push(this.#source);
    group.values.push(value);
    return new Item(group, group.sources.length - 1);
  }

  /** Sends the record at hand there as it is, without a copy. */
  forward(destination) {
    this.#group(destination, true).sources.push(this.#source);
  }

  #group(destination, forward) {
    let place = this.#at;
    while (place < this.#groups.length) {
      const group = this.#groups[place];
      if (group.destination === destination && group.forward === forward) break;
      place++;
    }
    if (place === this.#groups.length) {
      this.#groups.push({ destination, forward, sources: [], values: new Column(), changes: [] });
    }
    this.#at = place;
    return this.#groups[place];
  }

  startRecord(index) {
    this.#source = index;
    this.#at = 0;
  }

  /** Hands everything over. */
  finish(host) {
    for (const { destination, forward, sources, values, changes } of this.#groups) {
      if (forward) {
        host.forward(destination, Uint32Array.from(sources));
        continue;
      }
      const base = host.emit(destination, Uint32Array.from(sources), values.packed());
      for (const { kind, name, runs } of changes) {
        for (const { first, items } of runs) handOver[kind](host, base + first, items, name);
      }
    }
  }
}

/** An item just emitted; each method changes one thing about it. */
export class Item {
  #group;
  #index;
  #header = 0;

  constructor(group, index) {
    this.#group = group;
    this.#index = index;
  }

  /** Sets the key: bytes, a string or null. */
  key(key) {
    return this.#set('key', key);
  }

  /** Sets the timestamp, milliseconds since 1970-01-01 UTC, a number or a bigint. */
  timestamp(timestamp) {
    return this.#set('timestamp', BigInt(timestamp));
  }

  /** Sets the partition, for a destination with `partition: plugin`. */
  partition(partition) {
    return this.#set('partition', partition);
  }

  /** Names the topic, for a destination with a `topic_pattern`, which it must match. */
  topic(topic) {
    return this.#set('topic', topic);
  }

  /** Sets a header: where the first of that name stands (else last), in place of all of that name. */
  header(name, value) {
    return this.#setHeader('header', name, value);
  }

  /** Removes all headers of that name. */
  removeHeader(name) {
    return this.#setHeader('header', name, null);
  }

  /** Adds a header after those that are there; null gives it a null value. */
  addHeader(name, value) {
    return this.#setHeader('addHeader', name, value);
  }

  #set(kind, value) {
    const { changes } = this.#group;
    let change = changes.find((other) => other.kind === kind);
    if (!change) changes.push((change = { kind, runs: [] }));
    append(change, this.#index, value);
    return this;
  }

  // Headers have an order: the next change of this item comes after this one.
  #setHeader(kind, name, value) {
    const { changes } = this.#group;
    const fits = (change, place) => place >= this.#header && change.kind === kind && change.name === name;
    let place = changes.findIndex(fits);
    if (place === -1) place = changes.push({ kind, name, runs: [] }) - 1;
    append(changes[place], this.#index, value);
    this.#header = place + 1;
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
  #bytes = new Uint8Array(1024);
  #length = 0;
  #ends = [];
  #nulls = [];

  static of(items) {
    const column = new Column();
    for (const item of items) column.push(item);
    return column.packed();
  }

  push(item) {
    if (item === null) {
      this.#nulls.push(this.#ends.length);
    } else if (typeof item === 'string') {
      this.#reserve(item.length * 3);
      this.#length += utf8.encodeInto(item, this.#bytes.subarray(this.#length)).written;
    } else if (ArrayBuffer.isView(item)) { // (the host's arrays are not of this realm's Uint8Array)
      this.#reserve(item.length);
      this.#bytes.set(item, this.#length);
      this.#length += item.length;
    } else {
      throw new TypeError(`keys, values and headers are a Uint8Array, a string or null, not ${typeof item}`);
    }
    this.#ends.push(this.#length);
  }

  #reserve(more) {
    if (this.#length + more <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + more));
    larger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = larger;
  }

  packed() {
    const bytes = this.#bytes.subarray(0, this.#length);
    return { bytes, ends: Uint32Array.from(this.#ends), nulls: Uint32Array.from(this.#nulls) };
  }
}

// A column as it came: its items are cut out when they are asked for.
class Columns {
  constructor({ bytes, ends, nulls }) {
    this.bytes = bytes;
    this.ends = ends;
    this.nulls = nulls.length === 0 ? null : new Set(nulls);
    this.buffer = bytes.buffer;
    this.offset = bytes.byteOffset;
  }

  get(index) {
    if (this.nulls !== null && this.nulls.has(index)) return null;
    const start = index === 0 ? 0 : this.ends[index - 1];
    // (`subarray` looks for the array's species first)
    return new Uint8Array(this.buffer, this.offset + start, this.ends[index] - start);
  }
}

// The host's batch with the columns fetched so far. What each record does makes nothing anew, not even a function: JavaScript is
// interpreted here.
class Batch {
  #fetched = new Map();
  #headers = new Map();

  constructor(host) {
    this.host = host;
    this.length = host.len();
  }

  once(what) {
    let found = this.#fetched.get(what);
    if (found === undefined) this.#fetched.set(what, (found = this.host[what]()));
    return found;
  }

  column(what) {
    let found = this.#fetched.get(what);
    if (found === undefined) {
      found = this.host[what](0, this.length);
      if (found.ends) found = new Columns(found);
      this.#fetched.set(what, found);
    }
    return found;
  }

  header(name) {
    let found = this.#headers.get(name);
    if (found === undefined) this.#headers.set(name, (found = new Columns(this.host.header(0, this.length, name))));
    return found;
  }
}

// ---- Behind the scenes: the component's exports, and what stands in for them in a test. ----

let writeLog = (level, message) => console.error(`${level}: ${message}`);
let current;

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
  const output = new Output();
  const verdicts = new Uint8Array(batch.length);
  for (let index = 0; index < batch.length; index++) {
    current = index;
    output.startRecord(index);
    verdicts[index] = verdictOn(plugin, new Record(batch, index), output, records, index);
  }
  output.finish(host);
  return verdicts;
}

function verdictOn(plugin, record, output, records, index) {
  try {
    const verdict = plugin.transform(record, output);
    if (verdict !== KEEP && verdict !== DROP) throw new TypeError(`transform returned ${verdict}: return KEEP or DROP`);
    return verdict;
  } catch (error) {
    if (!(error instanceof Refuse)) throw error;
    records.refuse(index, error.message);
    return 2;
  }
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
