/* A JSON scanner: checks a text and tells where its values stand, without building anything. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  const uint8_t *at, *end;
  const char *error; /* why the text is not JSON; NULL while it may be */
  unsigned nesting;
} json;

/* Begins with a text. */
json json_of(const uint8_t *text, size_t size);
/* The first byte of the value, or whatever else, that comes next; 0 at the end. */
uint8_t json_peek(json *json);
/* Begins an object or array, by its bracket. */
bool json_enter(json *json, uint8_t bracket);
/* Whether there is one more member; `first` is true before the first. Ends the object or array where there is none. */
bool json_more(json *json, bool *first, uint8_t closing);
/* Reads a member's key and its colon. The key still has its quotes and escapes: see json_equal. */
bool json_key(json *json, const uint8_t **key, const uint8_t **key_end);
/* Reads a value of any kind. */
bool json_skip(json *json);
/* Nothing may follow. */
bool json_end(json *json);
/* Whether a string with its quotes and escapes, read before, says this text. */
bool json_equal(const uint8_t *string, const uint8_t *string_end, const char *text, size_t size);
/* Writes a string's text, of at most string_end - string bytes; returns how many. */
size_t json_decode(const uint8_t *string, const uint8_t *string_end, char *to);

#endif
