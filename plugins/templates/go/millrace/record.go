// Package millrace is the layer between a plugin and the router: records, read out of a batch's columns when they are asked
// for; outputs, gathered and handed over packed; verdicts; the log. Read record.go, output.go and plugin.go in this order.
package millrace

import "slices"

// Record is one record of a batch. What it returns is valid until the plugin's function has returned; it is not to be changed.
type Record struct {
	batch *batch
	index int
}

// Key returns the key; false is null, which is not the same as empty.
func (r *Record) Key() ([]byte, bool) {
	return once(&r.batch.keys, r.batch.source.keys).get(r.index)
}

// Value returns the value; false is null: a tombstone, which says that the key is deleted.
func (r *Record) Value() ([]byte, bool) {
	return once(&r.batch.values, r.batch.source.values).get(r.index)
}

// Header returns the last header of that name; false where there is none or its value is null.
func (r *Record) Header(name string) ([]byte, bool) {
	column := r.batch.headers[name]
	if column == nil {
		column = new(Column)
		*column = r.batch.source.header(name)
		if r.batch.headers == nil {
			r.batch.headers = make(map[string]*Column)
		}
		r.batch.headers[name] = column
	}
	return column.get(r.index)
}

// Headers returns every header in order, repeats included. It is a crossing of its own for each record: for one header known
// by name, Header is much cheaper.
func (r *Record) Headers() []Header { return r.batch.source.allHeaders(r.index) }

// Timestamp returns milliseconds since 1970-01-01 UTC; -1 where the record has none.
func (r *Record) Timestamp() int64 {
	return (*once(&r.batch.timestamps, r.batch.source.timestamps))[r.index]
}

// Topic returns the topic that the record was read from.
func (r *Record) Topic() string { return *once(&r.batch.topic, r.batch.source.topic) }

// Partition returns the partition that the record was read from.
func (r *Record) Partition() int32 { return *once(&r.batch.partition, r.batch.source.partition) }

// Offset returns the record's offset in its partition.
func (r *Record) Offset() int64 { return (*once(&r.batch.offsets, r.batch.source.offsets))[r.index] }

// Header is one header of a record. A nil Value is null.
type Header struct {
	Name  string
	Value []byte
}

// Column holds byte strings back to back, as they cross the border: item i ends at Ends[i], those in Nulls are null.
type Column struct {
	Bytes []byte
	Ends  []uint32
	Nulls []uint32
}

func (c *Column) get(index int) ([]byte, bool) {
	if _, null := slices.BinarySearch(c.Nulls, uint32(index)); null {
		return nil, false
	}
	start := uint32(0)
	if index > 0 {
		start = c.Ends[index-1]
	}
	return c.Bytes[start:c.Ends[index]:c.Ends[index]], true
}

// push adds an item; nil is null.
func (c *Column) push(item []byte) {
	if item == nil {
		c.Nulls = append(c.Nulls, uint32(len(c.Ends)))
	}
	c.Bytes = append(c.Bytes, item...)
	c.Ends = append(c.Ends, uint32(len(c.Bytes)))
}

// source is where columns come from: the router (host.go) or a test's memory (testing.go). Each covers the whole batch.
type source interface {
	len() int
	topic() string
	partition() int32
	offsets() []int64
	timestamps() []int64
	keys() Column
	values() Column
	header(name string) Column
	allHeaders(index int) []Header
	refuse(index int, reason string)
}

// batch is a batch with the columns fetched so far.
type batch struct {
	source     source
	topic      *string
	partition  *int32
	offsets    *[]int64
	timestamps *[]int64
	keys       *Column
	values     *Column
	headers    map[string]*Column
}

// once fetches what no record of the batch was asked for yet.
func once[T any](kept **T, fetch func() T) *T {
	if *kept == nil {
		fetched := fetch()
		*kept = &fetched
	}
	return *kept
}
