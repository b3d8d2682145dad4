/* Does what the headers of a record say: the C guest of the conformance suite. ../README.md has the commands. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "millrace.h"

/* Bytes as a string of their own, which is never freed before the instance ends: it is for tests. */
static char *text(mr_bytes bytes) {
  char *copy = calloc(1, bytes.size + 1);
  if (!copy) abort();
  if (bytes.size) memcpy(copy, bytes.data, bytes.size);
  return copy;
}

static const char *show(mr_bytes bytes) { return bytes.data ? text(bytes) : "null"; }

static void describe(const mr_record *record) {
  char said[512], timestamp[32] = "null";
  if (mr_timestamp(record) != -1) snprintf(timestamp, sizeof timestamp, "%" PRId64, mr_timestamp(record));
  snprintf(said, sizeof said, "%s/%" PRId32 "/%" PRId64 " %s %s %s", text(mr_topic(record)), mr_partition(record),
           mr_offset(record), timestamp, show(mr_key(record)), show(mr_header(record, "t")));
  mr_emit(MR_DEFAULT, mr_text(said));
}

static void rebuild(const mr_record *record) {
  const mr_header_entry *headers;
  size_t count = mr_headers(record, &headers);
  mr_emit(MR_DEFAULT, mr_value(record));
  mr_set_key(mr_key(record));
  if (mr_timestamp(record) != -1) mr_set_timestamp(mr_timestamp(record));
  for (size_t i = 0; i < count; i++) mr_set_header(text(headers[i].name), mr_null);
  for (size_t i = 0; i < count; i++) mr_add_header(text(headers[i].name), headers[i].value);
}

static void say(char *argument) {
  static const char *levels[] = {"trace", "debug", "info", "warn", "error"};
  char *message = strchr(argument, ' ');
  *message++ = 0;
  for (mr_level level = MR_TRACE; level <= MR_ERROR; level++)
    if (!strcmp(levels[level], argument)) mr_log(level, message);
}

mr_verdict mr_process(const mr_record *record) {
  mr_verdict verdict = MR_KEEP;
  const mr_header_entry *headers;
  size_t count = mr_headers(record, &headers);
  for (size_t i = 0; i < count; i++) {
    char *command = text(headers[i].name), *argument = text(headers[i].value), *set = strchr(argument, '=');
    if (!strcmp(command, "emit")) mr_emit(argument, mr_value(record));
    if (!strcmp(command, "emit-text")) mr_emit(MR_DEFAULT, mr_text(argument));
    if (!strcmp(command, "emit-null")) mr_emit(argument, mr_null);
    if (!strcmp(command, "copies"))
      for (int copies = atoi(argument); copies > 0; copies--) mr_emit(MR_DEFAULT, mr_value(record));
    if (!strcmp(command, "rebuild")) rebuild(record);
    if (!strcmp(command, "describe")) describe(record);
    if (!strcmp(command, "key")) mr_set_key(mr_text(argument));
    if (!strcmp(command, "key-null")) mr_set_key(mr_null);
    if (!strcmp(command, "topic")) mr_set_topic(argument);
    if (!strcmp(command, "timestamp")) mr_set_timestamp(atoll(argument));
    if (!strcmp(command, "partition")) mr_set_partition(atoi(argument));
    if (!strcmp(command, "add-null-header")) mr_add_header(argument, mr_null);
    if (!strcmp(command, "remove-header")) mr_set_header(argument, mr_null);
    if (!strcmp(command, "header") || !strcmp(command, "add-header")) {
      *set = 0;
      (*command == 'h' ? mr_set_header : mr_add_header)(argument, mr_text(set + 1));
    }
    if (!strcmp(command, "forward")) mr_forward(argument);
    if (!strcmp(command, "drop")) verdict = MR_DROP;
    if (!strcmp(command, "refuse")) verdict = mr_refuse(argument);
    if (!strcmp(command, "retry")) verdict = mr_retry(argument);
    if (!strcmp(command, "permanent")) verdict = mr_permanent(argument);
    if (!strcmp(command, "log")) say(argument);
    if (!strcmp(command, "print")) puts(argument);
    if (!strcmp(command, "trap")) {
      mr_log(MR_ERROR, argument);
      abort();
    }
  }
  return verdict;
}

const char *mr_configure(mr_bytes config) {
  (void)config;
  return NULL;
}
