// Does what the headers of a record say: the Go guest of the conformance suite. ../README.md has the commands.
package main

import (
	"fmt"
	"strconv"
	"strings"

	"conform/millrace"
)

func init() { millrace.Transform(configure) }

func main() {}

func configure(struct{}) (millrace.TransformFunc, error) {
	return conform, nil
}

func conform(record *millrace.Record, output *millrace.Output) millrace.Verdict {
	verdict := millrace.Keep
	var item millrace.Item
	value, ok := record.Value()
	if !ok {
		value = nil
	}
	for _, header := range record.Headers() {
		argument := string(header.Value)
		name, set, _ := strings.Cut(argument, "=")
		switch header.Name {
		case "emit":
			item = output.Emit(argument, value)
		case "emit-text":
			item = output.Emit(millrace.Default, []byte(argument))
		case "emit-null":
			item = output.Emit(argument, nil)
		case "copies":
			for range number(argument) {
				output.Emit(millrace.Default, value)
			}
		case "rebuild":
			item = rebuild(record, output.Emit(millrace.Default, value))
		case "describe":
			item = output.Emit(millrace.Default, []byte(describe(record)))
		case "key":
			item = item.Key([]byte(argument))
		case "key-null":
			item = item.Key(nil)
		case "topic":
			item = item.Topic(argument)
		case "timestamp":
			item = item.Timestamp(number(argument))
		case "partition":
			item = item.Partition(int32(number(argument)))
		case "header":
			item = item.Header(name, []byte(set))
		case "add-header":
			item = item.AddHeader(name, []byte(set))
		case "add-null-header":
			item = item.AddHeader(argument, nil)
		case "remove-header":
			item = item.RemoveHeader(argument)
		case "forward":
			output.Forward(argument)
		case "drop":
			verdict = millrace.Drop
		case "refuse":
			verdict = millrace.Refuse(argument)
		case "retry":
			verdict = millrace.Retry(argument)
		case "permanent":
			verdict = millrace.Permanent(argument)
		case "log":
			level, message, _ := strings.Cut(argument, " ")
			millrace.Log(levels[level], "%s", message)
		case "print":
			fmt.Println(argument)
		case "trap":
			panic(argument)
		}
	}
	return verdict
}

var levels = map[string]millrace.Level{
	"trace": millrace.LevelTrace, "debug": millrace.LevelDebug, "info": millrace.LevelInfo,
	"warn": millrace.LevelWarn, "error": millrace.LevelError,
}

func number(text string) int64 {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return number
}

func rebuild(record *millrace.Record, item millrace.Item) millrace.Item {
	key, ok := record.Key()
	if !ok {
		key = nil
	}
	item = item.Key(key)
	if timestamp := record.Timestamp(); timestamp != -1 {
		item = item.Timestamp(timestamp)
	}
	for _, header := range record.Headers() {
		item = item.RemoveHeader(header.Name)
	}
	for _, header := range record.Headers() {
		item = item.AddHeader(header.Name, header.Value)
	}
	return item
}

func describe(record *millrace.Record) string {
	show := func(value []byte, ok bool) string {
		if !ok {
			return "null"
		}
		return string(value)
	}
	timestamp := "null"
	if record.Timestamp() != -1 {
		timestamp = strconv.FormatInt(record.Timestamp(), 10)
	}
	return fmt.Sprintf("%s/%d/%d %s %s %s", record.Topic(), record.Partition(), record.Offset(), timestamp,
		show(record.Key()), show(record.Header("t")))
}
