//go:build wasip1

package millrace

import (
	"fmt"
	"path"
	"runtime"
	"strings"

	witRuntime "go.bytecodealliance.org/pkg/wit/runtime"
	witTypes "go.bytecodealliance.org/pkg/wit/types"

	"redact-fields/bindings/millrace_plugin_input"
	"redact-fields/bindings/millrace_plugin_log"
	"redact-fields/bindings/millrace_plugin_output"
	"redact-fields/bindings/millrace_plugin_types"
)

// The border: the only file that knows the generated bindings. Bytes are shared across it, not copied.

type (
	hostColumn = millrace_plugin_types.Column
	hostFail   = millrace_plugin_types.Failure
)

// process is the plugin, once it is configured.
var process processor

// Configure is called by the router, once.
func Configure(config string) witTypes.Result[witTypes.Unit, hostFail] {
	defer tell()
	if registered == nil {
		return witTypes.Err[witTypes.Unit](millrace_plugin_types.MakeFailureBadConfig("the plugin registers no filter or transform"))
	}
	// (the text lies in memory that is not ours after the call)
	configured, err := registered(string([]byte(config)))
	if err != nil {
		return witTypes.Err[witTypes.Unit](millrace_plugin_types.MakeFailureBadConfig(err.Error()))
	}
	process = configured
	return witTypes.Ok[witTypes.Unit, hostFail](witTypes.Unit{})
}

// Process is called by the router with each batch.
func Process(batch *millrace_plugin_input.Batch) witTypes.Result[[]byte, hostFail] {
	defer tell()
	// What the router put into our memory during the call is kept from the garbage collector until here.
	defer witRuntime.Unpin()
	defer batch.Drop()
	verdicts, err := process(&hostSource{batch, batch.Len()})
	if err == nil {
		return witTypes.Ok[[]byte, hostFail](verdicts)
	}
	fail := millrace_plugin_types.MakeFailurePermanent(err.Error())
	if failure, ok := err.(failure); ok && failure.kind == retry {
		fail = millrace_plugin_types.MakeFailureRetry(err.Error())
	}
	return witTypes.Err[[]byte](fail)
}

// tell logs what a panic says before it ends the instance, so that it stands in the fault's message.
func tell() {
	if cause := recover(); cause != nil {
		writeLog(LevelError, fmt.Sprint("panic: ", cause, "; in ", where()), current)
		panic(cause)
	}
}

// where names the functions that a panic went through, innermost first, which the router sees as numbers only.
func where() string {
	callers := make([]uintptr, 64)
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers)])
	var places []string
	for more := true; more && len(places) < 6; {
		var frame runtime.Frame
		frame, more = frames.Next()
		if !strings.HasPrefix(frame.Function, "runtime.") {
			places = append(places, fmt.Sprintf("%s (%s:%d)", frame.Function, path.Base(frame.File), frame.Line))
		}
	}
	return strings.Join(places, " < ")
}

func writeLog(level Level, message string, about int) {
	index := witTypes.None[uint32]()
	if about >= 0 {
		index = witTypes.Some(uint32(about))
	}
	millrace_plugin_log.Log(millrace_plugin_log.Level(level), message, index)
}

// hostSource is the router's batch.
type hostSource struct {
	batch *millrace_plugin_input.Batch
	end   uint32
}

func (s *hostSource) len() int            { return int(s.end) }
func (s *hostSource) topic() string       { return s.batch.Topic() }
func (s *hostSource) partition() int32    { return s.batch.Partition() }
func (s *hostSource) offsets() []int64    { return s.batch.Offsets(0, s.end) }
func (s *hostSource) timestamps() []int64 { return s.batch.Timestamps(0, s.end) }
func (s *hostSource) keys() Column        { return Column(s.batch.Keys(0, s.end)) }
func (s *hostSource) values() Column      { return Column(s.batch.Values(0, s.end)) }

func (s *hostSource) header(name string) Column { return Column(s.batch.Header(0, s.end, name)) }

func (s *hostSource) allHeaders(index int) []Header {
	pairs := s.batch.Headers(uint32(index))
	headers := make([]Header, len(pairs))
	for i, pair := range pairs {
		headers[i] = Header{Name: pair.F0, Value: pair.F1.SomeOr(nil)}
		if headers[i].Value == nil && pair.F1.IsSome() {
			headers[i].Value = []byte{}
		}
	}
	return headers
}

func (s *hostSource) refuse(index int, reason string) { s.batch.Refuse(uint32(index), reason) }

// router takes what is emitted.
type router struct{}

func (router) emit(destination string, sources []uint32, values Column) uint32 {
	return millrace_plugin_output.Emit(destination, sources, hostColumn(values))
}
func (router) forward(destination string, sources []uint32) {
	millrace_plugin_output.Forward(destination, sources)
}
func (router) setKeys(first uint32, keys Column) {
	millrace_plugin_output.SetKeys(first, hostColumn(keys))
}
func (router) setTimestamps(first uint32, timestamps []int64) {
	millrace_plugin_output.SetTimestamps(first, timestamps)
}
func (router) setPartitions(first uint32, partitions []int32) {
	millrace_plugin_output.SetPartitions(first, partitions)
}
func (router) setTopics(first uint32, topics []string) {
	millrace_plugin_output.SetTopics(first, topics)
}
func (router) setHeader(first uint32, name string, values Column) {
	millrace_plugin_output.SetHeader(first, name, hostColumn(values))
}
func (router) addHeader(first uint32, name string, values Column) {
	millrace_plugin_output.AddHeader(first, name, hostColumn(values))
}
