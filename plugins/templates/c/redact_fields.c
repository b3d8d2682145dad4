/* Replaces the values of JSON fields by "[redacted]": `config: { fields: [card, customer.email] }`.
 *
 * A name leads into objects, and into every object of an array. A record without these fields passes byte for byte, and
 * in one that has them every other byte stays; one that is not JSON is refused, since nobody can say what stands in it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "millrace.h"

#define FIELDS_MAX 64
#define PLACEHOLDER "\"[redacted]\""

/* The fields' names, as they stand in the configuration. */
static struct {
  size_t count;
  char *names[FIELDS_MAX];
} fields;

/* The value as it becomes: its memory is kept from record to record. */
static struct {
  uint8_t *data;
  size_t size, room;
  const uint8_t *copied; /* how far the value is in it; NULL where nothing is to be redacted yet */
} out;

static void copy(const void *data, size_t size) {
  if (out.size + size > out.room) {
    out.room = (out.size + size) * 2;
    out.data = realloc(out.data, out.room);
    if (!out.data) abort();
  }
  memcpy(out.data + out.size, data, size);
  out.size += size;
}

/* The part of a name at a level, the names' parts being divided by dots; NULL where it has not so many. */
static const char *part(const char *name, unsigned level, size_t *size) {
  for (; level && name; level--) {
    name = strchr(name, '.');
    if (name) name++;
  }
  if (name) *size = strcspn(name, ".");
  return name;
}

/* Which of `under`'s fields lead below a key, as bits; `whole` tells whether one of them is the key itself. */
static uint64_t lead(uint64_t under, unsigned level, const uint8_t *key, const uint8_t *key_end, bool *whole) {
  uint64_t below = 0;
  for (size_t i = 0; i < fields.count; i++) {
    size_t size;
    const char *name = under >> i & 1 ? part(fields.names[i], level, &size) : NULL;
    if (!name || !json_equal(key, key_end, name, size)) continue;
    if (name[size])
      below |= (uint64_t)1 << i;
    else
      *whole = true;
  }
  return below;
}

/* Reads a value, redacting the fields of `under` below it, of which `level` parts are behind us. */
static bool redact_value(json *json, const uint8_t *text, uint64_t under, unsigned level) {
  uint8_t first = json_peek(json);
  if (!under || (first != '{' && first != '[')) return json_skip(json);
  if (!json_enter(json, first)) return false;
  for (bool before = true; json_more(json, &before, first == '{' ? '}' : ']');) {
    if (first == '[') {
      if (!redact_value(json, text, under, level)) return false;
      continue;
    }
    const uint8_t *key, *key_end;
    if (!json_key(json, &key, &key_end)) return false;
    bool whole = false;
    uint64_t below = lead(under, level, key, key_end, &whole);
    json_peek(json);
    const uint8_t *start = json->at;
    if (!(whole ? json_skip(json) : redact_value(json, text, below, level + 1))) return false;
    if (whole) {
      const uint8_t *from = out.copied ? out.copied : text;
      copy(from, (size_t)(start - from));
      copy(PLACEHOLDER, strlen(PLACEHOLDER));
      out.copied = json->at;
    }
  }
  return !json->error;
}

mr_verdict mr_process(const mr_record *record) {
  mr_bytes value = mr_value(record);
  if (!value.data) return MR_KEEP;
  json json = json_of(value.data, value.size);
  out.size = 0;
  out.copied = NULL;
  uint64_t all = fields.count == FIELDS_MAX ? UINT64_MAX : ((uint64_t)1 << fields.count) - 1;
  if (!redact_value(&json, value.data, all, 0) || !json_end(&json)) {
    char reason[128];
    snprintf(reason, sizeof reason, "the value is not JSON: %s, at byte %zu", json.error, (size_t)(json.at - value.data));
    return mr_refuse(reason);
  }
  if (!out.copied) return MR_KEEP;
  copy(out.copied, (size_t)(json.end - out.copied));
  mr_emit(MR_DEFAULT, (mr_bytes){out.data, out.size});
  return MR_DROP;
}

static const char *read_fields(json *json) {
  if (json_peek(json) != '[' || !json_enter(json, '[')) return "fields: not a list of names";
  for (bool first = true; json_more(json, &first, ']');) {
    if (json_peek(json) != '"') return "fields: not a list of names";
    if (fields.count == FIELDS_MAX) return "fields: more than 64 names";
    const uint8_t *name = json->at;
    if (!json_skip(json)) break;
    char *text = calloc(1, (size_t)(json->at - name));
    if (!text) abort();
    json_decode(name, json->at, text);
    fields.names[fields.count++] = text;
  }
  return NULL;
}

const char *mr_configure(mr_bytes config) {
  static char unknown[128];
  const char *refused = NULL;
  json json = json_of(config.data, config.size);
  for (size_t i = 0; i < fields.count; i++) free(fields.names[i]);
  fields.count = 0;
  if (!json_enter(&json, '{')) return "not an object with the key fields";
  for (bool first = true; !refused && json_more(&json, &first, '}');) {
    const uint8_t *key, *key_end;
    if (!json_key(&json, &key, &key_end)) break;
    snprintf(unknown, sizeof unknown, "unknown key %.*s: there is only fields", (int)(key_end - key), (const char *)key);
    refused = json_equal(key, key_end, "fields", 6) ? read_fields(&json) : unknown;
  }
  if (!refused) refused = json.error;
  return refused || fields.count ? refused : "fields: name at least one";
}
