/* The border: the only file that knows the generated bindings. */
#include "millrace.h"

#include <stdlib.h>
#include <string.h>

#include "bindings/transform.h"

typedef millrace_plugin_types_column_t column;

/* A batch with the columns fetched so far; index is the record at hand. */
struct mr_record {
  transform_borrow_batch_t batch;
  uint32_t index, length;
};

typedef struct header_column {
  struct header_column *next;
  char *name;
  column column;
} header_column;

static struct {
  bool keys_there, values_there, timestamps_there, offsets_there, topic_there, headers_there;
  column keys, values;
  transform_list_s64_t timestamps, offsets;
  transform_string_t topic;
  header_column *by_name;
  uint32_t headers_of; /* the record whose headers these are */
  transform_list_tuple2_string_option_list_u8_t headers;
  mr_header_entry *entries;
} fetched;

static uint32_t at_hand;
static bool in_batch;
static transform_string_t reason;

static void *grow(void *memory, size_t size) {
  memory = realloc(memory, size ? size : 1);
  if (!memory) abort();
  return memory;
}

static transform_string_t string(const char *text) {
  return (transform_string_t){(uint8_t *)text, strlen(text)};
}

mr_bytes mr_text(const char *text) { return (mr_bytes){(const uint8_t *)text, strlen(text)}; }

/* ---- records ----------------------------------------------------------------------------------------------------------- */

static mr_bytes item(const column *column, uint32_t index) {
  size_t low = 0, high = column->nulls.len;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (column->nulls.ptr[middle] == index) return mr_null;
    if (column->nulls.ptr[middle] < index)
      low = middle + 1;
    else
      high = middle;
  }
  uint32_t start = index ? column->ends.ptr[index - 1] : 0;
  /* (an empty column may lie nowhere, while an empty item is not null) */
  const uint8_t *bytes = column->bytes.len ? column->bytes.ptr : (const uint8_t *)"";
  return (mr_bytes){bytes + start, column->ends.ptr[index] - start};
}

#define FETCH(what, record)                                                                              \
  if (!fetched.what##_there) {                                                                           \
    millrace_plugin_input_method_batch_##what((record)->batch, 0, (record)->length, &fetched.what);      \
    fetched.what##_there = true;                                                                         \
  }

mr_bytes mr_key(const mr_record *record) {
  FETCH(keys, record)
  return item(&fetched.keys, record->index);
}

mr_bytes mr_value(const mr_record *record) {
  FETCH(values, record)
  return item(&fetched.values, record->index);
}

int64_t mr_timestamp(const mr_record *record) {
  FETCH(timestamps, record)
  return fetched.timestamps.ptr[record->index];
}

int64_t mr_offset(const mr_record *record) {
  FETCH(offsets, record)
  return fetched.offsets.ptr[record->index];
}

mr_bytes mr_topic(const mr_record *record) {
  if (!fetched.topic_there) millrace_plugin_input_method_batch_topic(record->batch, &fetched.topic);
  fetched.topic_there = true;
  return (mr_bytes){fetched.topic.ptr, fetched.topic.len};
}

int32_t mr_partition(const mr_record *record) { return millrace_plugin_input_method_batch_partition(record->batch); }

mr_bytes mr_header(const mr_record *record, const char *name) {
  header_column *found = fetched.by_name;
  while (found && strcmp(found->name, name)) found = found->next;
  if (!found) {
    found = grow(NULL, sizeof *found);
    *found = (header_column){.next = fetched.by_name, .name = strdup(name)};
    fetched.by_name = found;
    transform_string_t text = string(name);
    millrace_plugin_input_method_batch_header(record->batch, 0, record->length, &text, &found->column);
  }
  return item(&found->column, record->index);
}

static void forget_headers(void) {
  if (!fetched.headers_there) return;
  transform_list_tuple2_string_option_list_u8_free(&fetched.headers);
  free(fetched.entries);
  fetched.entries = NULL;
  fetched.headers_there = false;
}

size_t mr_headers(const mr_record *record, const mr_header_entry **headers) {
  if (!fetched.headers_there || fetched.headers_of != record->index) {
    forget_headers();
    millrace_plugin_input_method_batch_headers(record->batch, record->index, &fetched.headers);
    fetched.entries = grow(NULL, fetched.headers.len * sizeof *fetched.entries);
    for (size_t i = 0; i < fetched.headers.len; i++) {
      transform_tuple2_string_option_list_u8_t *from = &fetched.headers.ptr[i];
      mr_bytes value = from->f1.is_some ? (mr_bytes){from->f1.val.ptr, from->f1.val.len} : mr_null;
      fetched.entries[i] = (mr_header_entry){{from->f0.ptr, from->f0.len}, value};
    }
    fetched.headers_there = true;
    fetched.headers_of = record->index;
  }
  *headers = fetched.entries;
  return fetched.headers.len;
}

static void forget(void) {
  forget_headers();
  if (fetched.keys_there) millrace_plugin_types_column_free(&fetched.keys);
  if (fetched.values_there) millrace_plugin_types_column_free(&fetched.values);
  if (fetched.timestamps_there) transform_list_s64_free(&fetched.timestamps);
  if (fetched.offsets_there) transform_list_s64_free(&fetched.offsets);
  if (fetched.topic_there) transform_string_free(&fetched.topic);
  while (fetched.by_name) {
    header_column *next = fetched.by_name->next;
    millrace_plugin_types_column_free(&fetched.by_name->column);
    free(fetched.by_name->name);
    free(fetched.by_name);
    fetched.by_name = next;
  }
  memset(&fetched, 0, sizeof fetched);
}

/* ---- outputs ----------------------------------------------------------------------------------------------------------- */

/* A buffer that keeps its memory from batch to batch. */
typedef struct {
  uint8_t *data;
  size_t size, room;
} buffer;

static void append(buffer *to, const void *data, size_t size) {
  if (to->room - to->size < size) {
    to->room = to->room * 2 > to->size + size ? to->room * 2 : to->size + size;
    to->data = grow(to->data, to->room);
  }
  if (size) memcpy(to->data + to->size, data, size);
  to->size += size;
}

/* Items that go to one destination and follow each other: one call, once another destination follows, or the batch ends. */
static struct {
  char *destination;
  bool forward;
  buffer sources, bytes, ends, nulls;
} group;

/* Where the router has put the item that mr_set_… are about: they are calls of their own, which need it to be there. */
static uint32_t last;
static bool last_there;

static column packed(const buffer *bytes, const buffer *ends, const buffer *nulls) {
  return (column){{bytes->data, bytes->size},
                  {(uint32_t *)ends->data, ends->size / sizeof(uint32_t)},
                  {(uint32_t *)nulls->data, nulls->size / sizeof(uint32_t)}};
}

static void hand_over(void) {
  size_t count = group.sources.size / sizeof(uint32_t);
  if (!count) return;
  transform_string_t destination = string(group.destination);
  transform_list_u32_t sources = {(uint32_t *)group.sources.data, count};
  if (group.forward) {
    millrace_plugin_output_forward(&destination, &sources);
  } else {
    column values = packed(&group.bytes, &group.ends, &group.nulls);
    last = millrace_plugin_output_emit(&destination, &sources, &values) + (uint32_t)count - 1;
    last_there = true;
  }
  group.sources.size = group.bytes.size = group.ends.size = group.nulls.size = 0;
}

static void follow(const char *destination, bool forward) {
  if (!group.destination || strcmp(group.destination, destination) || group.forward != forward) {
    hand_over();
    free(group.destination);
    group.destination = strdup(destination);
    group.forward = forward;
  }
  append(&group.sources, &at_hand, sizeof at_hand);
  last_there = false;
}

void mr_emit(const char *destination, mr_bytes value) {
  follow(destination, false);
  uint32_t index = (uint32_t)(group.ends.size / sizeof index);
  if (!value.data) append(&group.nulls, &index, sizeof index);
  append(&group.bytes, value.data, value.size);
  uint32_t end = (uint32_t)group.bytes.size;
  append(&group.ends, &end, sizeof end);
}

void mr_forward(const char *destination) { follow(destination, true); }

/* The item just emitted, for a change. Without one there is nothing to change, which is the plugin's mistake. */
static uint32_t just_emitted(void) {
  if (!last_there && (group.forward || !group.sources.size)) {
    mr_log(MR_ERROR, "a change without an item: call mr_emit first");
    abort();
  }
  if (!last_there) hand_over();
  return last;
}

/* A column of one item. */
#define ONE(name, item)                                                                          \
  uint32_t name##_end = (uint32_t)(item).size, name##_null = 0;                                  \
  column name = {{(uint8_t *)(item).data, (item).size}, {&name##_end, 1}, {&name##_null, !(item).data}}

void mr_set_key(mr_bytes key) {
  ONE(keys, key);
  millrace_plugin_output_set_keys(just_emitted(), &keys);
}

void mr_set_timestamp(int64_t timestamp) {
  transform_list_s64_t timestamps = {&timestamp, 1};
  millrace_plugin_output_set_timestamps(just_emitted(), &timestamps);
}

void mr_set_partition(int32_t partition) {
  transform_list_s32_t partitions = {&partition, 1};
  millrace_plugin_output_set_partitions(just_emitted(), &partitions);
}

void mr_set_topic(const char *topic) {
  transform_string_t text = string(topic);
  transform_list_string_t topics = {&text, 1};
  millrace_plugin_output_set_topics(just_emitted(), &topics);
}

void mr_set_header(const char *name, mr_bytes value) {
  transform_string_t text = string(name);
  ONE(values, value);
  millrace_plugin_output_set_header(just_emitted(), &text, &values);
}

void mr_add_header(const char *name, mr_bytes value) {
  transform_string_t text = string(name);
  ONE(values, value);
  millrace_plugin_output_add_header(just_emitted(), &text, &values);
}

/* ---- verdicts, the log, the calls --------------------------------------------------------------------------------------- */

static mr_verdict because(mr_verdict verdict, const char *text) {
  transform_string_free(&reason);
  transform_string_dup(&reason, text);
  return verdict;
}

mr_verdict mr_refuse(const char *text) { return because(MR_REFUSED, text); }
mr_verdict mr_retry(const char *text) { return because(MR_RETRY, text); }
mr_verdict mr_permanent(const char *text) { return because(MR_PERMANENT, text); }

void mr_log(mr_level level, const char *message) {
  transform_string_t text = string(message);
  millrace_plugin_log_log((millrace_plugin_log_level_t)level, &text, in_batch ? &at_hand : NULL);
}

bool exports_millrace_plugin_lifecycle_configure(transform_string_t *config,
                                                 exports_millrace_plugin_lifecycle_failure_t *failure) {
  const char *refused = mr_configure((mr_bytes){config->ptr, config->len});
  transform_string_free(config);
  if (!refused) return true;
  failure->tag = MILLRACE_PLUGIN_TYPES_FAILURE_BAD_CONFIG;
  transform_string_dup(&failure->val.bad_config, refused);
  return false;
}

void exports_millrace_plugin_lifecycle_shutdown(void) {}

bool exports_transform_process(transform_borrow_batch_t batch, transform_list_u8_t *verdicts, transform_failure_t *failure) {
  mr_record record = {.batch = batch, .length = millrace_plugin_input_method_batch_len(batch)};
  *verdicts = (transform_list_u8_t){grow(NULL, record.length), record.length};
  in_batch = true;
  bool done = true;
  for (; done && record.index < record.length; record.index++) {
    at_hand = record.index;
    last_there = false;
    mr_verdict verdict = mr_process(&record);
    if (verdict == MR_REFUSED) millrace_plugin_input_method_batch_refuse(batch, record.index, &reason);
    if (verdict == MR_RETRY || verdict == MR_PERMANENT) {
      failure->tag = verdict == MR_RETRY ? MILLRACE_PLUGIN_TYPES_FAILURE_RETRY : MILLRACE_PLUGIN_TYPES_FAILURE_PERMANENT;
      failure->val.retry = reason; /* (the variants are alike) */
      reason = (transform_string_t){NULL, 0};
      done = false;
    }
    verdicts->ptr[record.index] = (uint8_t)verdict;
  }
  if (done)
    hand_over();
  else
    transform_list_u8_free(verdicts);
  group.sources.size = group.bytes.size = group.ends.size = group.nulls.size = 0;
  in_batch = false;
  forget();
  millrace_plugin_input_batch_drop_borrow(batch);
  return done;
}
