//go:build wasip1

// Package export_millrace_plugin_lifecycle is where the generated bindings look for the lifecycle's functions.
package export_millrace_plugin_lifecycle

import "redact-fields/millrace"

var Configure = millrace.Configure

func Shutdown() {}
