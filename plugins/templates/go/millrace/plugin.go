package millrace

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Verdict is what becomes of a record.
type Verdict struct {
	kind   verdictKind
	reason string
}

type verdictKind uint8

const (
	keep verdictKind = iota
	drop
	refuse
	retry
	permanent
)

var (
	// Keep passes the record on as it is, besides anything emitted from it.
	Keep = Verdict{kind: keep}
	// Drop does not pass it on; what was emitted from it goes out.
	Drop = Verdict{kind: drop}
)

// Refuse gives this one record to the route's on_error.
func Refuse(reason string) Verdict { return Verdict{refuse, reason} }

// Retry asks for the whole batch again later.
func Retry(reason string) Verdict { return Verdict{retry, reason} }

// Permanent gives up on the batch for good; the router then finds the record to blame.
func Permanent(reason string) Verdict { return Verdict{permanent, reason} }

// Reason returns why a record is refused or a batch failed.
func (v Verdict) Reason() string { return v.reason }

// FilterFunc judges a record: Keep, Drop, or one that says why not.
type FilterFunc func(*Record) Verdict

// TransformFunc judges a record and emits what comes of it.
type TransformFunc func(*Record, *Output) Verdict

// Filter registers a plugin that keeps or drops records; to be called in an init function. The configuration is decoded into C,
// where an unknown key is an error; what configure refuses is shown to the operator before the plugin sees a record.
func Filter[C any](configure func(C) (FilterFunc, error)) {
	register(func(text string) (processor, error) {
		config, err := decode[C](text)
		if err != nil {
			return nil, err
		}
		filter, err := configure(config)
		return func(source source) ([]byte, error) {
			return judge(source, nil, func(record *Record, _ *Output) Verdict { return filter(record) })
		}, err
	})
}

// Transform registers a plugin that also rewrites, splits and routes records. See Filter.
func Transform[C any](configure func(C) (TransformFunc, error)) {
	register(func(text string) (processor, error) {
		config, err := decode[C](text)
		if err != nil {
			return nil, err
		}
		transform, err := configure(config)
		return func(source source) ([]byte, error) { return judge(source, router{}, transform) }, err
	})
}

// processor takes a batch and returns a byte for each record.
type processor func(source) (verdicts []byte, err error)

// registered makes the plugin's processor of its configuration.
var registered func(config string) (processor, error)

func register(configure func(string) (processor, error)) {
	if registered != nil {
		panic("millrace: one plugin, one call of Filter or Transform")
	}
	registered = configure
}

func decode[C any](text string) (config C, err error) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err = decoder.Decode(&config); err == nil {
		if _, more := decoder.Token(); more != io.EOF {
			err = errors.New("something follows the configuration")
		}
	}
	return config, err
}

// A failure of the whole batch.
type failure struct{ Verdict }

func (f failure) Error() string { return f.reason }

// judge gives the batch's records to the plugin one by one, then hands over what it made of them.
func judge(source source, to sink, transform TransformFunc) ([]byte, error) {
	defer func() { current = -1 }()
	batch, output := &batch{source: source}, &Output{}
	verdicts := make([]byte, source.len())
	for index := range verdicts {
		current = index
		output.source, output.group = uint32(index), 0
		verdict := transform(&Record{batch, index}, output)
		switch verdict.kind {
		case keep, drop:
		case refuse:
			source.refuse(index, verdict.reason)
		case retry, permanent:
			return nil, failure{verdict}
		}
		verdicts[index] = byte(verdict.kind)
	}
	if to != nil {
		output.finish(to)
	}
	return verdicts, nil
}
