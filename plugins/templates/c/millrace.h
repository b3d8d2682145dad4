/* The layer between a plugin and the router: records, outputs, verdicts, the log.
 *
 * A plugin defines the functions below "the plugin's". The others are for them to call. Memory that a function here returns
 * is the layer's, and valid until the batch ends; what is given to one is copied. */
#ifndef MILLRACE_H
#define MILLRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes, not ended by 0. Where `data` is NULL it is null (a tombstone, an absent key or header), which is not the same as
 * empty. */
typedef struct {
  const uint8_t *data;
  size_t size;
} mr_bytes;

/* Of a literal or another string that is ended by 0. */
mr_bytes mr_text(const char *text);
static const mr_bytes mr_null = {0, 0};

/* One record of a batch. Its columns are fetched when the first record is asked for one. */
typedef struct mr_record mr_record;

mr_bytes mr_key(const mr_record *record);
mr_bytes mr_value(const mr_record *record);
/* The last header of that name; null where there is none or its value is null. */
mr_bytes mr_header(const mr_record *record, const char *name);
/* Every header in order, repeats included: how many, and one. A crossing of its own for each record. */
typedef struct {
  mr_bytes name, value;
} mr_header_entry;
size_t mr_headers(const mr_record *record, const mr_header_entry **headers);
/* Milliseconds since 1970-01-01 UTC, or -1. */
int64_t mr_timestamp(const mr_record *record);
mr_bytes mr_topic(const mr_record *record);
int32_t mr_partition(const mr_record *record);
int64_t mr_offset(const mr_record *record);

/* What becomes of a record. The functions keep the reason with the record at hand and return the verdict. */
typedef enum {
  MR_KEEP,      /* pass it on as it is, besides anything emitted from it */
  MR_DROP,      /* do not; what was emitted from it goes out */
  MR_REFUSED,   /* by mr_refuse: give this one record to the route's on_error */
  MR_RETRY,     /* by mr_retry: ask for the whole batch again later */
  MR_PERMANENT, /* by mr_permanent: give up on the batch; the router finds the record to blame */
} mr_verdict;
mr_verdict mr_refuse(const char *reason);
mr_verdict mr_retry(const char *reason);
mr_verdict mr_permanent(const char *reason);

/* Makes an item of the record at hand and sends it to a destination, a name of the route, or MR_DEFAULT. It keeps the
 * record's key, headers and timestamp unless the functions below, which change the item just emitted, set them. */
#define MR_DEFAULT ""
void mr_emit(const char *destination, mr_bytes value);
void mr_set_key(mr_bytes key);
void mr_set_timestamp(int64_t timestamp);
void mr_set_partition(int32_t partition);
void mr_set_topic(const char *topic);
/* Sets a header in place of all of that name; null removes them. */
void mr_set_header(const char *name, mr_bytes value);
/* Adds a header after those that are there. */
void mr_add_header(const char *name, mr_bytes value);
/* Sends the record at hand as it is, without copying it. */
void mr_forward(const char *destination);

typedef enum { MR_TRACE, MR_DEBUG, MR_INFO, MR_WARN, MR_ERROR } mr_level;
/* Writes a line to the router's log, with the coordinates of the record at hand. The router limits how many. */
void mr_log(mr_level level, const char *message);

/* ---- the plugin's ---------------------------------------------------------------------------------------------------- */

/* Called once, with the configuration as JSON text. Returns NULL, or why the configuration is not usable. */
const char *mr_configure(mr_bytes config);
/* Called with each record. */
mr_verdict mr_process(const mr_record *record);

#endif
