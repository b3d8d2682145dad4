"""Replaces the values of JSON fields by "[redacted]": `config: { fields: [card, customer.email] }`.

A name leads into objects, and into every object of an array. A record without these fields passes byte for byte; one that
is not JSON is refused, since nobody can say what stands in it.
"""

import json
import re

from millrace import DROP, KEEP, BadConfig, Refuse

REDACTED = '"[redacted]"'


class Plugin:
    def __init__(self, config):
        unknown = sorted(config.keys() - {"fields"})
        if unknown:
            raise BadConfig(f"unknown key {', '.join(unknown)}: there is `fields` alone")
        fields = config.get("fields")
        if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
            raise BadConfig("fields: a list of names is needed")
        if not fields:
            raise BadConfig("fields: name at least one")
        self._tree = tree_of(fields)
        self._last_names = [field.split(".")[-1] for field in fields]

    def transform(self, record, output):
        if record.value is None:
            return KEEP
        redacted = self.redact(parsed(record.value))
        if redacted is None:
            return KEEP
        output.emit(redacted)
        return DROP

    def redact(self, text):
        """The JSON text with its fields redacted; None where it has none of them.

        The text itself is cut and spliced, since what is parsed and written again is another one: large numbers lose digits,
        1.10 becomes 1.1, a name given twice stands there once."""
        # (a name can hide behind escapes, "\u0063ard")
        if "\\" not in text and not any(name in text for name in self._last_names):
            return None
        parts, copied = [], 0
        for start, end in fields_in(text, self._tree):
            parts += (text[copied:start], REDACTED)
            copied = end
        return "".join(parts) + text[copied:] if parts else None


def parsed(value):
    """The text of a value that is JSON."""
    try:
        text = value.decode()
        if depth(text) > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST}")
        # (numbers stay text: only whether this is JSON is asked)
        json.loads(text, parse_int=str, parse_float=str, parse_constant=no_constant)
        return text
    except ValueError as error:
        raise Refuse(f"the value is not JSON: {error}") from None


DEEPEST = 128
"""Objects and arrays within each other: Python's parser calls itself for each, and the sandbox's stack is small."""


def depth(text):
    # (brackets in strings count too, which only makes this look closer)
    if text.count("[") + text.count("{") <= DEEPEST:
        return 0
    deepest = now = 0
    for match in TOKEN.finditer(text):
        now += (match[0] in "{[") - (match[0] in "}]")
        deepest = max(deepest, now)
    return deepest


def no_constant(name):
    raise ValueError(f"{name} is no number of JSON's")


FIELD = {}
"""In a tree of names, each with the names below it: what ends with this name is a field to redact."""


def tree_of(fields):
    tree = {}
    for *names, last in (field.split(".") for field in fields):
        below = tree
        for name in names:
            below = below.setdefault(name, {})
        # (a field within a field goes with it)
        if below is not FIELD:
            below[last] = FIELD
    return tree


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def fields_in(text, tree):
    """Where the values of the tree's fields stand, (start, end), in a text that is known to be JSON."""
    found = []
    around = []  # of each object or array that is open: (is an object, start, its place in the tree, that of its content)
    place = tree  # of the value to come
    name_next = False
    for match in TOKEN.finditer(text):
        token = match[0]
        start = match.start()
        if token == ":":
            continue
        if token == ",":
            name_next, _, _, place = around[-1]
            continue
        if token in ("{", "["):
            # (what lies in a field goes with it)
            inside = None if place is FIELD else place
            name_next = token == "{"
            around.append((name_next, start, place, inside))
            place = inside
            continue
        if token in ("}", "]"):
            _, start, place, _ = around.pop()
            name_next = False
        elif name_next:
            inside = around[-1][3]
            place = inside.get(json.loads(token)) if inside else None
            name_next = False
            continue
        if place is FIELD:
            found.append((start, match.end()))
    return found
