package millrace

import "fmt"

// Level is how much a line of the log matters.
type Level uint8

const (
	LevelTrace Level = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
)

// Log writes a line to the router's log, with the coordinates of the record at hand. The router limits how many.
func Log(level Level, format string, arguments ...any) {
	writeLog(level, fmt.Sprintf(format, arguments...), current)
}

// current is the index of the record at hand; -1 where there is none.
var current = -1
