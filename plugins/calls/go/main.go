// What a call costs in Go: ../README.md has the jobs.
package main

import (
	"bytes"

	"calls/millrace"
)

type config struct {
	Job string `json:"job"`
}

func init() { millrace.Transform(configure) }

func main() {}

func configure(config config) (millrace.TransformFunc, error) {
	if config.Job == "header" {
		return header, nil
	}
	return rewrite, nil
}

func header(record *millrace.Record, _ *millrace.Output) millrace.Verdict {
	if keep, ok := record.Header("keep"); ok && string(keep) == "no" {
		return millrace.Drop
	}
	return millrace.Keep
}

func rewrite(record *millrace.Record, output *millrace.Output) millrace.Verdict {
	value, _ := record.Value()
	output.Emit(millrace.Default, bytes.ToUpper(value))
	return millrace.Drop
}
