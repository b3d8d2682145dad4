// Does what the headers of a record say: the JavaScript guest of the conformance suite. ../README.md has the commands.

import { DEFAULT, DROP, KEEP, Permanent, Refuse, Retry, log } from './millrace/plugin.js';

const decoder = new TextDecoder();
const show = (bytes) => (bytes === null ? 'null' : decoder.decode(bytes));

export default class Conform {
  transform(record, output) {
    let verdict = KEEP;
    let item;
    const commands = {
      emit: (to) => (item = output.emit(record.value, to)),
      'emit-text': (text) => (item = output.emit(text)),
      'emit-null': (to) => (item = output.emit(null, to)),
      copies: (n) => Array.from({ length: Number(n) }, () => output.emit(record.value)),
      rebuild: () => (item = rebuild(record, output)),
      describe: () => (item = output.emit(describe(record))),
      key: (key) => item.key(key),
      'key-null': () => item.key(null),
      topic: (topic) => item.topic(topic),
      timestamp: (timestamp) => item.timestamp(timestamp),
      partition: (partition) => item.partition(Number(partition)),
      header: (pair) => item.header(...pair.split(/=(.*)/s, 2)),
      'add-header': (pair) => item.addHeader(...pair.split(/=(.*)/s, 2)),
      'add-null-header': (name) => item.addHeader(name, null),
      'remove-header': (name) => item.removeHeader(name),
      forward: (to) => output.forward(to),
      drop: () => (verdict = DROP),
      refuse: raise(Refuse),
      retry: raise(Retry),
      permanent: raise(Permanent),
      log: (line) => log[line.split(' ', 1)[0]](line.slice(line.indexOf(' ') + 1)),
      print: (text) => console.log(text),
      trap: raise(Error),
    };
    for (const [name, value] of record.headers()) {
      if (Object.hasOwn(commands, name)) commands[name](value === null ? '' : decoder.decode(value));
    }
    return verdict;
  }
}

function raise(Kind) {
  return (message) => {
    throw new Kind(message);
  };
}

function rebuild(record, output) {
  const item = output.emit(record.value, DEFAULT).key(record.key);
  if (record.timestamp !== null) item.timestamp(record.timestamp);
  const headers = record.headers();
  for (const [name] of headers) item.removeHeader(name);
  for (const [name, value] of headers) item.addHeader(name, value);
  return item;
}

function describe(record) {
  const { topic, partition, offset, timestamp, key } = record;
  return `${topic}/${partition}/${offset} ${timestamp} ${show(key)} ${show(record.header('t'))}`;
}
