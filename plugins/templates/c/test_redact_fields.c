/* The plugin natively, on a router made of three functions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "millrace.h"

struct mr_record {
  mr_bytes value;
};
static char emitted[4096], refused[256];
static int failures;

mr_bytes mr_value(const mr_record *record) { return record->value; }
mr_verdict mr_refuse(const char *reason) {
  snprintf(refused, sizeof refused, "%s", reason);
  return MR_REFUSED;
}
void mr_emit(const char *destination, mr_bytes value) {
  (void)destination;
  snprintf(emitted, sizeof emitted, "%.*s", (int)value.size, (const char *)value.data);
}

static void check(bool holds, const char *what, const char *found) {
  if (holds) return;
  failures++;
  fprintf(stderr, "FAILED: %s: %s\n", what, found);
}

static const char *configure(const char *config) {
  return mr_configure((mr_bytes){(const uint8_t *)config, strlen(config)});
}

/* On memory of exactly its size, so that the sanitizer sees a byte too many. */
static mr_verdict give(const char *value, size_t size) {
  uint8_t *exact = malloc(size ? size : 1);
  memcpy(exact, value, size);
  mr_record record = {{exact, size}};
  *emitted = *refused = 0;
  mr_verdict verdict = mr_process(&record);
  free(exact);
  return verdict;
}

static void redacts(const char *config, const char *given, const char *expected) {
  check(!configure(config), config, "refused");
  mr_verdict verdict = give(given, strlen(given));
  check(verdict == (expected ? MR_DROP : MR_KEEP) && !strcmp(emitted, expected ? expected : ""), given, emitted);
}

static void refuses(const char *given, size_t size) {
  mr_verdict verdict = give(given, size);
  check(verdict == MR_REFUSED && !strncmp(refused, "the value is not JSON", 21), given, refused);
}

int main(void) {
  redacts("{\"fields\":[\"card\",\"customer.email\"]}",
          "{\"z\":1.10, \"card\" : \"4711\" ,\"a\":12345678901234567890,\"customer\":{\"email\":\"a@b.c\",\"name\":\"\xc3\xa9\"}}",
          "{\"z\":1.10, \"card\" : \"[redacted]\" ,\"a\":12345678901234567890,\"customer\":{\"email\":\"[redacted]\",\"name\":\"\xc3\xa9\"}}");
  redacts("{\"fields\":[\"items.card\"]}", "{\"items\":[{\"card\":null},{\"n\":1},{\"card\":{\"number\":1}}]}",
          "{\"items\":[{\"card\":\"[redacted]\"},{\"n\":1},{\"card\":\"[redacted]\"}]}");
  redacts("{\"fields\":[\"a.b\",\"a\"]}", "{\"a\":{\"b\":1},\"c\":2}", "{\"a\":\"[redacted]\",\"c\":2}");
  redacts("{\"fields\":[\"c\\u0061rd\"]}", "[{\"card\":[1,2]},{\"c\\u0061rd\":3}]",
          "[{\"card\":\"[redacted]\"},{\"c\\u0061rd\":\"[redacted]\"}]");
  redacts("{\"fields\":[\"\xf0\x9f\x92\xb3\"]}", "{\"\\ud83d\\udcb3\":1}", "{\"\\ud83d\\udcb3\":\"[redacted]\"}");
  redacts("{\"fields\":[\"card\",\"customer.email\"]}", "{ \"customer\": \"card\" }", NULL);

  mr_record tombstone = {mr_null};
  check(mr_process(&tombstone) == MR_KEEP, "a tombstone", "not kept");

  const char *broken[] = {"",       "no JSON", "{\"card\":1", "{} {}",     "\"\xff\"",    "[1,]",       "{\"a\" 1}", "{,}",
                          "[01]",   "[1.]",    "[1e]",        "-",         "\"\\x\"",     "\"\\ud800\"", "\"\\u12",   "tru",
                          "\"a\nb\"", "[1 2]",   "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\xe2\x82"};
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) refuses(broken[i], strlen(broken[i]));
  refuses("{}\0", 3);
  char nested[4000];
  memset(nested, '[', sizeof nested);
  refuses(nested, sizeof nested);

  const char *unusable[] = {"{}", "{\"fields\":[]}", "{\"fields\":[\"a\"],\"feilds\":[]}", "{\"fields\":1}", "{\"fields\":[1]}", "[]"};
  for (size_t i = 0; i < sizeof unusable / sizeof *unusable; i++)
    check(configure(unusable[i]) != NULL, unusable[i], "accepted");

  if (!failures) puts("all is well");
  return failures != 0;
}
