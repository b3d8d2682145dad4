#include "json.h"

#include <string.h>

#define NESTING_MAX 128

json json_of(const uint8_t *text, size_t size) { return (json){text, text + size, NULL, 0}; }

static bool fail(json *json, const char *error) {
  if (!json->error) json->error = error;
  return false;
}

uint8_t json_peek(json *json) {
  while (json->at < json->end && strchr(" \t\r\n", *json->at) && *json->at) json->at++;
  return json->at < json->end ? *json->at : 0;
}

bool json_enter(json *json, uint8_t bracket) {
  if (json_peek(json) != bracket) return fail(json, "a bracket is missing");
  if (++json->nesting > NESTING_MAX) return fail(json, "it is nested too deeply");
  json->at++;
  return true;
}

bool json_more(json *json, bool *first, uint8_t closing) {
  uint8_t next = json_peek(json);
  if (next == closing) {
    json->at++;
    json->nesting--;
    return false;
  }
  if (!*first) {
    if (next != ',') return fail(json, next ? "a comma is missing" : "it ends early");
    json->at++;
  }
  *first = false;
  return true;
}

static int hex(const json *json, const uint8_t *at) {
  int code = 0;
  for (int i = 0; i < 4; i++, at++) {
    if (at >= json->end) return -1;
    uint8_t c = *at, lower = c | 0x20;
    if (c >= '0' && c <= '9')
      code = code * 16 + (c - '0');
    else if (lower >= 'a' && lower <= 'f')
      code = code * 16 + (lower - 'a' + 10);
    else
      return -1;
  }
  return code;
}

/* The bytes of the UTF-8 character that begins here; 0 where none does. */
static size_t character(const json *json) {
  uint8_t lead = *json->at;
  size_t size = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (size > (size_t)(json->end - json->at)) return 0;
  for (size_t i = 1; i < size; i++)
    if ((json->at[i] & 0xc0) != 0x80) return 0;
  if (size > 2) { /* longer than needed, surrogates, beyond the last */
    uint8_t second = json->at[1];
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f)) return 0;
    if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) return 0;
  }
  return size;
}

static bool escape(json *json) {
  json->at++;
  if (json->at == json->end) return fail(json, "a string does not end");
  uint8_t kind = *json->at++;
  if (kind != 'u') return (kind && strchr("\"\\/bfnrt", kind)) || fail(json, "an escape is none");
  int code = hex(json, json->at);
  if (code < 0) return fail(json, "an escape is none");
  json->at += 4;
  if (code < 0xd800 || code > 0xdfff) return true;
  if (code < 0xdc00 && json->end - json->at >= 6 && json->at[0] == '\\' && json->at[1] == 'u') {
    int low = hex(json, json->at + 2);
    json->at += 6;
    if (low >= 0xdc00 && low <= 0xdfff) return true;
  }
  return fail(json, "half of a surrogate pair");
}

static bool string(json *json) {
  if (json_peek(json) != '"') return fail(json, "a string is missing");
  for (json->at++; json->at < json->end;) {
    if (*json->at == '"') {
      json->at++;
      return true;
    }
    if (*json->at < 0x20) return fail(json, "a control character in a string");
    if (*json->at == '\\') {
      if (!escape(json)) return false;
      continue;
    }
    size_t size = character(json);
    if (!size) return fail(json, "it is not UTF-8");
    json->at += size;
  }
  return fail(json, "a string does not end");
}

static size_t digits(json *json) {
  const uint8_t *start = json->at;
  while (json->at < json->end && *json->at >= '0' && *json->at <= '9') json->at++;
  return (size_t)(json->at - start);
}

static bool number(json *json) {
  if (*json->at == '-') json->at++;
  bool zero = json->at < json->end && *json->at == '0';
  size_t whole = digits(json);
  bool sound = whole == 1 || (whole > 1 && !zero);
  if (sound && json->at < json->end && *json->at == '.') {
    json->at++;
    sound = digits(json) > 0;
  }
  if (sound && json->at < json->end && (*json->at | 0x20) == 'e') {
    json->at++;
    if (json->at < json->end && (*json->at == '+' || *json->at == '-')) json->at++;
    sound = digits(json) > 0;
  }
  return sound || fail(json, "a number is none");
}

static bool word(json *json, const char *word) {
  size_t size = strlen(word);
  if ((size_t)(json->end - json->at) < size || memcmp(json->at, word, size)) return fail(json, "a value is missing");
  json->at += size;
  return true;
}

bool json_key(json *json, const uint8_t **key, const uint8_t **key_end) {
  json_peek(json);
  *key = json->at;
  if (!string(json)) return false;
  *key_end = json->at;
  if (json_peek(json) != ':') return fail(json, "a colon is missing");
  json->at++;
  return true;
}

bool json_skip(json *json) {
  uint8_t first = json_peek(json);
  switch (first) {
    case '{':
    case '[': {
      if (!json_enter(json, first)) return false;
      const uint8_t *key, *key_end;
      for (bool before = true; json_more(json, &before, first == '{' ? '}' : ']');)
        if ((first == '{' && !json_key(json, &key, &key_end)) || !json_skip(json)) return false;
      return !json->error;
    }
    case '"': return string(json);
    case 't': return word(json, "true");
    case 'f': return word(json, "false");
    case 'n': return word(json, "null");
    case 0: return fail(json, json->at == json->end ? "it ends early" : "a value is missing");
    default: return first == '-' || (first >= '0' && first <= '9') ? number(json) : fail(json, "a value is missing");
  }
}

bool json_end(json *json) {
  json_peek(json);
  return json->at == json->end || fail(json, "something follows the value");
}

size_t json_decode(const uint8_t *string, const uint8_t *string_end, char *to) {
  static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
  const json whole = {string, string_end, NULL, 0};
  char *start = to;
  for (const uint8_t *at = string + 1; at < string_end - 1;) {
    if (*at != '\\') {
      *to++ = (char)*at++;
      continue;
    }
    if (at[1] != 'u') {
      *to++ = into[strchr(from, at[1]) - from];
      at += 2;
      continue;
    }
    uint32_t code = (uint32_t)hex(&whole, at + 2);
    at += 6;
    if (code >= 0xd800 && code < 0xdc00) {
      code = 0x10000 + ((code - 0xd800) << 10) + ((uint32_t)hex(&whole, at + 2) - 0xdc00);
      at += 6;
    }
    if (code < 0x80) {
      *to++ = (char)code;
    } else if (code < 0x800) {
      *to++ = (char)(0xc0 | code >> 6);
      *to++ = (char)(0x80 | (code & 0x3f));
    } else {
      if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
      } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
      }
      *to++ = (char)(0x80 | (code >> 6 & 0x3f));
      *to++ = (char)(0x80 | (code & 0x3f));
    }
  }
  return (size_t)(to - start);
}

bool json_equal(const uint8_t *string, const uint8_t *string_end, const char *text, size_t size) {
  size_t length = (size_t)(string_end - string);
  if (!memchr(string, '\\', length)) return length - 2 == size && !memcmp(string + 1, text, size);
  if (length > 6 * size + 2) return false; /* (an escape is at most six times what it says) */
  char decoded[length];
  return json_decode(string, string_end, decoded) == size && !memcmp(decoded, text, size);
}
