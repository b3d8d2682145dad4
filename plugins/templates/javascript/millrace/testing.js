// Runs a plugin in node, without WebAssembly: records in; verdicts and items out, as the router would have them.

import { component } from './plugin.js';

const utf8 = new TextEncoder();
const bytes = (value) => (typeof value === 'string' ? utf8.encode(value) : value ?? null);

/** Gives `records` to a plugin as one batch, offsets 0, 1, 2 … of partition 0 of the topic `test`.
 *
 *  A record: `{ key, value, headers: [[name, value]], timestamp }`, each optional; strings stand for their UTF-8.
 *  Returns `{ verdicts: [0 kept, 1 dropped, 2 refused], reasons: { index: reason }, items }`; an item is
 *  `{ source, destination, key, value, headers, timestamp, partition, topic }` in the order in which they go out. */
export function run(Plugin, config, records) {
  const sent = [];
  const reasons = {};
  const host = hostFor(records, sent);
  const { lifecycle, process } = component(Plugin, host);
  lifecycle.configure(JSON.stringify(config));
  const verdicts = [...process(batchOf(records, reasons))];
  return { verdicts, reasons, items: sent.sort((a, b) => a.source - b.source) };
}

function column(items) {
  const parts = items.map(bytes);
  const ends = [];
  let end = 0;
  for (const part of parts) ends.push((end += part?.length ?? 0));
  const all = new Uint8Array(end);
  parts.forEach((part, index) => part && all.set(part, ends[index] - part.length));
  const nulls = parts.flatMap((part, index) => (part === null ? [index] : []));
  return { bytes: all, ends: Uint32Array.from(ends), nulls: Uint32Array.from(nulls) };
}

function batchOf(records, reasons) {
  const slice = (of) => (start, end) => records.slice(start, end).map(of);
  return {
    len: () => records.length,
    topic: () => 'test',
    partition: () => 0,
    offsets: (start, end) => BigInt64Array.from(records.map((_, index) => BigInt(index)).slice(start, end)),
    timestamps: (start, end) => BigInt64Array.from(slice((record) => BigInt(record.timestamp ?? -1))(start, end)),
    keys: (start, end) => column(slice((record) => record.key)(start, end)),
    values: (start, end) => column(slice((record) => record.value)(start, end)),
    header: (start, end, name) =>
      column(slice((record) => record.headers?.filter(([other]) => other === name).at(-1)?.[1])(start, end)),
    headers: (index) => (records[index].headers ?? []).map(([name, value]) => [name, bytes(value) ?? undefined]),
    refuse: (index, reason) => (reasons[index] = reason),
  };
}

// Does with a plugin's calls what the router does.
function hostFor(records, sent) {
  const unpack = ({ bytes, ends, nulls }) => {
    const item = (end, index) => (nulls.includes(index) ? null : bytes.slice(index === 0 ? 0 : ends[index - 1], end));
    return Array.from(ends, item);
  };
  const send = (destination, source, change) => {
    const { key, value, headers = [], timestamp = null } = records[source];
    const own = { key: bytes(key), value: bytes(value), headers: headers.map(([name, value]) => [name, bytes(value)]) };
    sent.push({ source, destination, ...own, timestamp, partition: null, topic: null, ...change });
  };
  const each = (first, values, change) => values.forEach((value, index) => change(sent[first + index], value));
  return {
    emit(destination, sources, values) {
      const first = sent.length;
      const unpacked = unpack(values);
      sources.forEach((source, index) => send(destination, source, { value: unpacked[index] }));
      return first;
    },
    forward: (destination, sources) => sources.forEach((source) => send(destination, source, {})),
    setKeys: (first, keys) => each(first, unpack(keys), (item, key) => (item.key = key)),
    setTimestamps: (first, all) => each(first, [...all], (item, timestamp) => (item.timestamp = Number(timestamp))),
    setPartitions: (first, all) => each(first, [...all], (item, partition) => (item.partition = partition)),
    setTopics: (first, all) => each(first, all, (item, topic) => (item.topic = topic)),
    setHeader: (first, name, values) =>
      each(first, unpack(values), (item, value) => {
        const place = item.headers.findIndex(([other]) => other === name);
        item.headers = item.headers.filter(([other]) => other !== name);
        if (value !== null) item.headers.splice(place === -1 ? item.headers.length : place, 0, [name, value]);
      }),
    addHeader: (first, name, values) => each(first, unpack(values), (item, value) => item.headers.push([name, value])),
  };
}
