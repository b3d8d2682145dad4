import unittest

from millrace import BadConfig
from millrace.testing import Given, run
from redact_fields import Plugin


def redact(fields, value):
    items = run(Plugin, {"fields": fields}, [Given(value)]).items
    return items[0].value.decode() if items else None


class RedactFields(unittest.TestCase):
    def test_redacts_the_fields_and_keeps_everything_else_as_it_stands(self):
        given = r'{"z":1.10, "card":"4711","a":12345678901234567890.1234,"customer":{"email":"a@b.c","name":"\u00e9\/"}}'
        expected = given.replace('"4711"', '"[redacted]"').replace('"a@b.c"', '"[redacted]"')
        self.assertEqual(redact(["card", "customer.email"], given), expected)

    def test_redacts_in_every_object_of_an_array_and_whatever_the_value_is(self):
        given = '[{"items":[{"card":null},{"n":1},{"card":{"card":[{"card":2}]}},[{"card":-1e5}]]},{"card":3}]'
        expected = (
            '[{"items":[{"card":"[redacted]"},{"n":1},{"card":"[redacted]"},[{"card":"[redacted]"}]]},{"card":3}]'
        )
        self.assertEqual(redact(["items.card"], given), expected)

    def test_finds_a_name_behind_escapes_and_a_name_given_twice(self):
        self.assertEqual(redact(["card"], r'{"c\u0061rd":1,"card":2}'), r'{"c\u0061rd":"[redacted]","card":"[redacted]"}')

    def test_a_field_within_a_field_goes_with_it(self):
        for fields in (["a", "a.b"], ["a.b", "a"]):
            self.assertEqual(redact(fields, '{"a":{"b":1},"b":[]}'), '{"a":"[redacted]","b":[]}')

    def test_a_value_without_the_fields_is_not_touched(self):
        self.assertIsNone(redact(["card", "customer.email"], '{ "customer": "card", "customer.email": {"card": 1} }'))

    def test_tombstones_pass_and_what_is_not_json_is_refused(self):
        values = [None, "no JSON", "", "NaN", "[" * 100_000, b"\xff", '{"card":1}']
        outcome = run(Plugin, {"fields": ["card"]}, [Given(value, key="k") for value in values])
        self.assertEqual(outcome.verdicts, [0, 2, 2, 2, 2, 2, 1])
        for reason in outcome.reasons.values():
            self.assertTrue(reason.startswith("the value is not JSON"), reason)
        self.assertEqual((outcome.items[0].value, outcome.items[0].key), (b'{"card":"[redacted]"}', b"k"))

    def test_a_configuration_that_is_of_no_use_is_refused(self):
        for config, reason in (
            ({"fields": []}, "name at least one"),
            ({}, "list of names"),
            ({"fields": ["a"], "field": 1}, "unknown key field"),
        ):
            with self.assertRaisesRegex(BadConfig, reason):
                run(Plugin, config, [])


if __name__ == "__main__":
    unittest.main()
