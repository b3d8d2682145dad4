// Replaces the values of JSON fields by "[redacted]": `config: { fields: [card, customer.email] }`.
//
// A name leads into objects, and into every object of an array. A record without these fields passes byte for byte, and
// in one that has them every other byte stays; one that is not JSON is refused, since nobody can say what stands in it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"redact-fields/millrace"
)

type config struct {
	Fields []string `json:"fields"`
}

func init() { millrace.Transform(configure) }

func main() {} // never called: the router calls what init has registered

func configure(config config) (millrace.TransformFunc, error) {
	if len(config.Fields) == 0 {
		return nil, errors.New("fields: name at least one")
	}
	return func(record *millrace.Record, output *millrace.Output) millrace.Verdict {
		value, ok := record.Value()
		if !ok {
			return millrace.Keep
		}
		redacted, err := redact(value, config.Fields)
		switch {
		case err != nil:
			return millrace.Refuse("the value is not JSON: " + err.Error())
		case redacted == nil:
			return millrace.Keep
		}
		output.Emit(millrace.Default, redacted)
		return millrace.Drop
	}, nil
}

// redact returns the value with its fields redacted; nil where it has none of them.
func redact(value []byte, fields []string) ([]byte, error) {
	if !utf8.Valid(value) {
		return nil, errors.New("it is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber() // digits are no business of ours
	r := redactor{decoder: decoder, value: value}
	if err := r.next(fields, 0); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the value")
	}
	if r.redacted == nil {
		return nil, nil
	}
	return append(r.redacted, value[r.copied:]...), nil
}

type redactor struct {
	decoder  *json.Decoder
	value    []byte
	redacted []byte
	copied   int // how much of value is in redacted
}

const (
	placeholder = `"[redacted]"`
	nestingMax  = 128
)

// next reads the value that comes next, redacting the fields below it.
func (r *redactor) next(fields []string, nesting int) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	if nesting == nestingMax {
		return errors.New("it is nested too deeply")
	}
	switch token {
	case json.Delim('{'):
		for r.decoder.More() {
			key, err := r.token()
			if err != nil {
				return err
			}
			below, whole := lead(fields, key.(string))
			start := r.decoder.InputOffset()
			if err := r.next(below, nesting+1); err != nil {
				return err
			}
			if whole {
				r.replace(start)
			}
		}
		_, err = r.token()
	case json.Delim('['):
		for r.decoder.More() {
			if err := r.next(fields, nesting+1); err != nil {
				return err
			}
		}
		_, err = r.token()
	}
	return err
}

// replace puts the placeholder for the value just read; start lies behind its key.
func (r *redactor) replace(start int64) {
	from := int(start) + bytes.IndexByte(r.value[start:], ':') + 1
	for from < len(r.value) && strings.IndexByte(" \t\r\n", r.value[from]) >= 0 {
		from++
	}
	r.redacted = append(append(r.redacted, r.value[r.copied:from]...), placeholder...)
	r.copied = int(r.decoder.InputOffset())
}

// token is the decoder's, with an end in the middle of a value told as what it is.
func (r *redactor) token() (json.Token, error) {
	token, err := r.decoder.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return token, err
}

// lead returns what the fields lead to below a key, and whether one of them is the key itself.
func lead(fields []string, key string) (below []string, whole bool) {
	for _, field := range fields {
		name, rest, deeper := strings.Cut(field, ".")
		if name != key {
			continue
		}
		if !deeper {
			return nil, true // nothing below it is left to redact
		}
		below = append(below, rest)
	}
	return below, false
}
