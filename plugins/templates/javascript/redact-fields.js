// Replaces the values of JSON fields by "[redacted]": `config: { fields: [card, customer.email] }`.
//
// A name leads into objects, and into every object of an array. A record without these fields passes byte for byte; one that
// is not JSON is refused, since nobody can say what stands in it.

import { BadConfig, DROP, KEEP, Refuse } from './millrace/plugin.js';

const REDACTED = '"[redacted]"';

export default class RedactFields {
  constructor({ fields, ...unknown }) {
    const others = Object.keys(unknown);
    if (others.length > 0) throw new BadConfig(`unknown key ${others.join(', ')}: there is \`fields\` alone`);
    if (!Array.isArray(fields) || fields.some((field) => typeof field !== 'string')) {
      throw new BadConfig('fields: a list of names is needed');
    }
    if (fields.length === 0) throw new BadConfig('fields: name at least one');
    this.tree = treeOf(fields);
    this.lastNames = fields.map((field) => field.split('.').at(-1));
  }

  transform(record, output) {
    const json = parsed(record);
    if (json === null) return KEEP;
    const redacted = this.redact(json);
    if (redacted === null) return KEEP;
    output.emit(redacted);
    return DROP;
  }

  // The JSON text with its fields redacted; null where it has none of them. The text itself is cut and spliced, since what is
  // parsed and written again is another one: 1.10 becomes 1.1, large numbers lose digits, "1" moves before "a".
  redact(json) {
    // (a name can hide behind escapes, "\u0063ard")
    if (!json.includes('\\') && !this.lastNames.some((name) => json.includes(name))) return null;
    let redacted = '';
    let copied = 0;
    for (const [start, end] of fieldsIn(json, this.tree)) {
      redacted += json.slice(copied, start) + REDACTED;
      copied = end;
    }
    return copied === 0 ? null : redacted + json.slice(copied);
  }
}

// The text of a value that is JSON; null of a tombstone.
function parsed(record) {
  try {
    const json = record.text;
    if (json !== null) JSON.parse(json);
    return json;
  } catch (error) {
    throw new Refuse(`the value is not JSON: ${error.message}`);
  }
}

// Names that lead to fields: name → the names below it, or FIELD.
const FIELD = new Map();

function treeOf(fields) {
  const tree = new Map();
  for (const names of fields.map((field) => field.split('.'))) {
    const last = names.pop();
    let below = tree;
    for (const name of names) {
      if (!below.has(name)) below.set(name, new Map());
      below = below.get(name);
    }
    // (a field within a field goes with it)
    if (below !== FIELD) below.set(last, FIELD);
  }
  return tree;
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

// Where the values of the tree's fields stand, `[start, end]`, in a text that is known to be JSON.
function fieldsIn(json, tree) {
  const found = [];
  const around = []; // of each object or array that is open: its place in the tree and where it starts
  let place = tree; // of the value to come
  let nameNext = false;
  for (const { 0: token, index } of json.matchAll(TOKEN)) {
    const open = around.at(-1);
    let start = index;
    switch (token) {
      case ':':
        continue;
      case ',':
        nameNext = open.object;
        place = open.inside;
        continue;
      case '{':
      case '[': {
        // (what lies in a field goes with it)
        const inside = place === FIELD ? undefined : place;
        around.push({ object: token === '{', start, place, inside });
        nameNext = token === '{';
        place = inside;
        continue;
      }
      case '}':
      case ']':
        ({ start, place } = around.pop());
        nameNext = false;
        break;
      default:
        if (nameNext) {
          nameNext = false;
          place = open.inside?.get(JSON.parse(token));
          continue;
        }
    }
    if (place === FIELD) found.push([start, index + token.length]);
  }
  return found;
}
