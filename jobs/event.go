package jobs

import "time"

// EventType tells which fields of an Event are set.
type EventType string

// The event types.
const (
	EventState  EventType = "state"  // State (and Reason)
	EventOutput EventType = "output" // Step, Stream, Offset, Content; or Truncated
	EventStep   EventType = "step"   // StepResult: a step ended
	EventResult EventType = "result" // Result; Final is true
)

// Event is one message on a job's event subject. Attempt and Seq order them: Seq counts from 1 within an attempt without gaps,
// the dispatcher's own events included. The last event of a job, and only that, has Final.
type Event struct {
	Type    EventType `json:"type"`
	Job     string    `json:"job"`
	Tenant  string    `json:"tenant"`
	Attempt int       `json:"attempt"`
	Seq     int64     `json:"seq"`
	Time    time.Time `json:"time"`
	Final   bool      `json:"final,omitempty"`

	State  State  `json:"state,omitempty"`
	Reason string `json:"reason,omitempty"`
	Worker string `json:"worker,omitempty"`

	// Step is the step's number from 0.
	Step int `json:"step,omitempty"`
	// Stream is "stdout" or "stderr"; Offset is the position of the chunk's first byte in it.
	Stream string `json:"stream,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	Content
	// Truncated marks the place where a stream passed its limit; nothing of that stream follows.
	Truncated bool `json:"truncated,omitempty"`

	StepResult *StepResult `json:"step_result,omitempty"`
	Result     *Result     `json:"result,omitempty"`
}

// Names of the output streams.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)
