package jobs

import (
	"errors"
	"strings"
)

// Code says what a caller can do about an Error.
type Code string

// The codes. Those that may succeed later carry RetryAfterMS. docs/jobs.md says when each is given.
const (
	CodeInvalid     Code = "invalid"        // the request is wrong: Faults say where
	CodeUnsupported Code = "unsupported"    // valid, and nothing here can do it: Faults say what
	CodeConflict    Code = "conflict"       // the idempotency key or the id belongs to another, or what there is does not go with what is asked
	CodeNotFound    Code = "not_found"      // no such job, batch, object, schedule, snapshot, endpoint, delivery or worker
	CodeForbidden   Code = "forbidden"      // of workers: no such session, or another's name; over HTTP: who may not watch
	CodeTooLarge    Code = "too_large"      // more than a message, a spec, a batch or an object may have
	CodeQuota       Code = "quota_exceeded" // the tenant's quota of jobs, bytes, rate, objects, schedules or endpoints
	CodeQueueFull   Code = "queue_full"     // as many jobs wait as may
	CodeNoCapacity  Code = "no_capacity"    // the worker has no room for so large a machine now
	CodeUnavailable Code = "unavailable"    // ours: try again
	CodeInternal    Code = "internal"       // ours: a bug
)

// Error is an error as clients see it; it crosses the wire whole.
type Error struct {
	// Code is for programs.
	Code Code `json:"code"`
	// Message is for people.
	Message string `json:"message"`
	// Faults are all that is wrong with a request, not just the first.
	Faults []Fault `json:"faults,omitempty"`
	// RetryAfterMS says when to try again; 0 means that trying again does not help.
	RetryAfterMS int64 `json:"retry_after_ms,omitempty"`
}

// Fault is one thing wrong with a request.
type Fault struct {
	// Path is the field's place in the JSON: "steps[0].limits.wall_ms".
	Path string `json:"path"`
	// Message says what is wrong and what would be valid.
	Message string `json:"message"`
}

// Error gives the message and all faults in one line.
func (e *Error) Error() string {
	if len(e.Faults) == 0 {
		return e.Message
	}
	var b strings.Builder
	b.WriteString(e.Message)
	sep := ": "
	for _, f := range e.Faults {
		b.WriteString(sep)
		if f.Path != "" {
			b.WriteString(f.Path + ": ")
		}
		b.WriteString(f.Message)
		sep = "; "
	}
	return b.String()
}

// ErrorOf gives err as clients may see it: itself where it is an *Error, else "internal" without its text, which the caller logs.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: CodeInternal, Message: "internal error; the dispatcher's log has it"}
}
