//go:build wasip1

// Package export_wit_world is where the generated bindings look for what the world exports.
package export_wit_world

import "redact-fields/millrace"

var Process = millrace.Process
