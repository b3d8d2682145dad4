import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from './millrace/testing.js';
import RedactFields from './redact-fields.js';

const decode = (bytes) => new TextDecoder().decode(bytes);

function redact(fields, value) {
  const { items } = run(RedactFields, { fields }, [{ value }]);
  return items.length === 0 ? null : decode(items[0].value);
}

test('redacts the fields and keeps everything else as it stands', () => {
  const given = '{"z":1.10, "card":"4711","1":12345678901234567890.1234,"customer":{"email":"a@b.c","name":"\\u00e9\\/"}}';
  const expected = given.replace('"4711"', '"[redacted]"').replace('"a@b.c"', '"[redacted]"');
  assert.equal(redact(['card', 'customer.email'], given), expected);
});

test('redacts in every object of an array, and whatever the value is', () => {
  const given = '[{"items":[{"card":null},{"n":1},{"card":{"card":[{"card":2}]}},[{"card":-1e5}]]},{"card":3}]';
  const expected =
    '[{"items":[{"card":"[redacted]"},{"n":1},{"card":"[redacted]"},[{"card":"[redacted]"}]]},{"card":3}]';
  assert.equal(redact(['items.card'], given), expected);
});

test('finds a name behind escapes and a name given twice', () => {
  assert.equal(redact(['card'], '{"c\\u0061rd":1,"card":2}'), '{"c\\u0061rd":"[redacted]","card":"[redacted]"}');
});

test('a field within a field goes with it', () => {
  for (const fields of [['a', 'a.b'], ['a.b', 'a']]) {
    assert.equal(redact(fields, '{"a":{"b":1},"b":[]}'), '{"a":"[redacted]","b":[]}');
  }
});

test('a value without the fields is not touched', () => {
  assert.equal(redact(['card', 'customer.email'], '{ "customer": "card", "customer.email": {"card": 1} }'), null);
});

test('tombstones pass, and what is not JSON is refused', () => {
  const values = [null, 'no JSON', '', '{"card":1}'];
  const outcome = run(RedactFields, { fields: ['card'] }, values.map((value) => ({ key: 'k', value })));
  assert.deepEqual(outcome.verdicts, [0, 2, 2, 1]);
  assert.match(outcome.reasons[1], /^the value is not JSON/);
  assert.equal(decode(outcome.items[0].value), '{"card":"[redacted]"}');
  assert.equal(decode(outcome.items[0].key), 'k');
});

test('a configuration that is of no use is refused', () => {
  for (const [config, reason] of [
    [{ fields: [] }, /name at least one/],
    [{}, /list of names/],
    [{ fields: ['a'], field: 1 }, /unknown key field/],
  ]) {
    assert.throws(() => run(RedactFields, config, []), ({ tag, val }) => tag === 'bad-config' && reason.test(val));
  }
});
