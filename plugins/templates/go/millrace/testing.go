//go:build !wasip1

package millrace

import (
	"fmt"
	"os"
)

// Given is a record to give to a plugin in a test, in which nothing of WebAssembly takes part.
type Given struct {
	Key, Value string
	// Null makes it a tombstone.
	Null      bool
	Headers   []Header
	Timestamp int64
}

// Sent is an item that a transform made. What it was not given is the source's.
type Sent struct {
	Source      int
	Destination string
	// Forward says that it is the source as it is.
	Forward bool
	Value   []byte
	Changes []string
}

// Run configures a transform and gives it the records as one batch: records 0, 1, 2 … of partition 0 of the topic test.
func Run[C any](configure func(C) (TransformFunc, error), config string, given []Given) ([]Verdict, []Sent, error) {
	decoded, err := decode[C](config)
	if err != nil {
		return nil, nil, err
	}
	transform, err := configure(decoded)
	if err != nil {
		return nil, nil, err
	}
	verdicts, to := make([]Verdict, len(given)), &memory{}
	_, err = judge(memorySource(given), to, func(record *Record, output *Output) Verdict {
		verdicts[record.index] = transform(record, output)
		return verdicts[record.index]
	})
	return verdicts, to.sent, err
}

type memorySource []Given

func column(given []Given, item func(Given) []byte) (column Column) {
	for _, record := range given {
		column.push(item(record))
	}
	return column
}

func (s memorySource) len() int         { return len(s) }
func (s memorySource) topic() string    { return "test" }
func (s memorySource) partition() int32 { return 0 }
func (s memorySource) offsets() (offsets []int64) {
	for offset := range s {
		offsets = append(offsets, int64(offset))
	}
	return offsets
}
func (s memorySource) timestamps() (timestamps []int64) {
	for _, record := range s {
		timestamps = append(timestamps, record.Timestamp)
	}
	return timestamps
}
func (s memorySource) keys() Column {
	return column(s, func(record Given) []byte { return []byte(record.Key) })
}
func (s memorySource) values() Column {
	return column(s, func(record Given) []byte {
		if record.Null {
			return nil
		}
		return []byte(record.Value)
	})
}
func (s memorySource) header(name string) Column {
	return column(s, func(record Given) (value []byte) {
		for _, header := range record.Headers {
			if header.Name == name {
				value = header.Value
			}
		}
		return value
	})
}
func (s memorySource) allHeaders(index int) []Header { return s[index].Headers }
func (s memorySource) refuse(int, string)            {}

// memory keeps what is emitted.
type memory struct{ sent []Sent }

func (m *memory) emit(destination string, sources []uint32, values Column) uint32 {
	first := len(m.sent)
	for i, source := range sources {
		value, _ := values.get(i)
		m.sent = append(m.sent, Sent{Source: int(source), Destination: destination, Value: value})
	}
	return uint32(first)
}
func (m *memory) forward(destination string, sources []uint32) {
	for _, source := range sources {
		m.sent = append(m.sent, Sent{Source: int(source), Destination: destination, Forward: true})
	}
}
func (m *memory) changed(first uint32, what string, count int, value func(int) any) {
	for i := range count {
		sent := &m.sent[int(first)+i]
		sent.Changes = append(sent.Changes, fmt.Sprintf("%s %v", what, value(i)))
	}
}
func (m *memory) bytes(first uint32, what string, values Column) {
	m.changed(first, what, len(values.Ends), func(i int) any {
		if value, ok := values.get(i); ok {
			return fmt.Sprintf("%q", value)
		}
		return "null"
	})
}
func (m *memory) setKeys(first uint32, keys Column) { m.bytes(first, "key", keys) }
func (m *memory) setHeader(first uint32, name string, values Column) {
	m.bytes(first, "header "+name, values)
}
func (m *memory) addHeader(first uint32, name string, values Column) {
	m.bytes(first, "added header "+name, values)
}
func (m *memory) setTimestamps(first uint32, timestamps []int64) {
	m.changed(first, "timestamp", len(timestamps), func(i int) any { return timestamps[i] })
}
func (m *memory) setPartitions(first uint32, partitions []int32) {
	m.changed(first, "partition", len(partitions), func(i int) any { return partitions[i] })
}
func (m *memory) setTopics(first uint32, topics []string) {
	m.changed(first, "topic", len(topics), func(i int) any { return topics[i] })
}

// router is only named in a test: what is registered is not run.
type router struct{ *memory }

func writeLog(level Level, message string, _ int) { fmt.Fprintln(os.Stderr, level, message) }
