package jobs

import "time"

// EventType tells which fields of an Event are set.
type EventType string

// The event types.
const (
	EventState  EventType = "state"  // State (and Reason)
	EventOutput EventType = "output" // Step, Stream, Offset, Content; or Truncated
	EventStep   EventType = "step"   // StepResult: a step ended
	EventPorts  EventType = "ports"  // Ports: where the job's ports can be reached
	EventResult EventType = "result" // Result; Final is true
	EventBatch  EventType = "batch"  // Batch: how far it is; on the batch's subject
	EventLost   EventType = "lost"   // Lost: here events were that are not kept any more; only a replay gives it
)

// Event is one message on a job's event subject. Attempt and Seq order them: Seq counts from 1 within an attempt without gaps,
// the dispatcher's own events included. The last event of a job, and only that, has Final.
type Event struct {
	// Type tells which of the other fields are set.
	Type EventType `json:"type"`
	// Job is the job's id.
	Job string `json:"job"`
	// Tenant is whose job it is.
	Tenant string `json:"tenant"`
	// Attempt is the attempt's number, from 1; 0 before the first.
	Attempt int `json:"attempt"`
	// Seq counts an attempt's events from 1, without gaps.
	Seq int64 `json:"seq"`
	// Time is when it happened, by the clock of whoever tells.
	Time time.Time `json:"time"`
	// Final marks the job's last event.
	Final bool `json:"final,omitempty"`

	// State is where the job stands now: "running" when the first step starts, "queued" when another attempt will follow.
	State State `json:"state,omitempty"`
	// Reason is for people.
	Reason string `json:"reason,omitempty"`
	// Worker is who has the job.
	Worker string `json:"worker,omitempty"`

	// Step is the step's number from 0.
	Step int `json:"step,omitempty"`
	// Stream is "stdout" or "stderr"; Offset is the position of the chunk's first byte in it.
	Stream string `json:"stream,omitempty"`
	// Offset is the position of the chunk's first byte in its stream.
	Offset int64 `json:"offset,omitempty"`
	Content
	// Truncated marks the place where a stream passed its limit; nothing of that stream follows.
	Truncated bool `json:"truncated,omitempty"`

	// Ports are where the job's ports can be reached, until the attempt ends.
	Ports []Port `json:"ports,omitempty"`
	// StepResult is how a step ended.
	StepResult *StepResult `json:"step_result,omitempty"`
	// Result is how the job ended.
	Result *Result `json:"result,omitempty"`
	// Batch is how far a batch is. Job is its id then, and Seq how many of its jobs have ended: each event has the whole, and none is missed
	// that is not there.
	Batch *Batch `json:"batch,omitempty"`
	// Lost is what is missing here. Such an event is a replay's own: its attempt and seq are those of the last that is missing.
	Lost *Lost `json:"lost,omitempty"`
}

// Port is one of a machine's ports and where it can be reached.
type Port struct {
	// Guest is the port in the machine.
	Guest int `json:"guest"`
	// Host is the address, "127.0.0.1:30001", on the worker's host.
	Host string `json:"host"`
	// URL is where it is reached over HTTP, "http://8080-019a2b3c-4d5e-7f60-8123-456789abcdef.localhost:8088", where the worker has a proxy.
	URL string `json:"url,omitempty"`
}

// Names of the output streams.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)
