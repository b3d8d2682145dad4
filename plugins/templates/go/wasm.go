//go:build wasip1

package main

// The functions that the router calls.
import _ "redact-fields/bindings/wit_exports"
