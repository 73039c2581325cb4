package jobs

import "time"

// State is where a job stands.
type State string

// The states. A job ends in StateEnded (its Result tells how) or in StateDead: every attempt ended by our own fault.
const (
	StateQueued  State = "queued"  // accepted, waits for a machine, perhaps again
	StateLeased  State = "leased"  // a worker has it
	StateRunning State = "running" // its first step has started
	StateEnded   State = "ended"
	StateDead    State = "dead"
)

// Terminal tells whether nothing follows the state.
func (s State) Terminal() bool { return s == StateEnded || s == StateDead }

// Job is the dispatcher's record of a job.
type Job struct {
	// ID is a UUIDv7.
	ID string `json:"id"`
	// Tenant is whose job it is.
	Tenant string `json:"tenant"`
	// State is where it stands.
	State State `json:"state"`
	// Attempt is the latest attempt's number; 0 before the first.
	Attempt int `json:"attempt"`
	// Image is the image's name, resolved from the language where the spec names none.
	Image string `json:"image"`
	// Worker has the job, or had it last.
	Worker string `json:"worker,omitempty"`
	// Labels are the spec's.
	Labels map[string]string `json:"labels,omitempty"`
	// AcceptedAt is when the ledger took it.
	AcceptedAt time.Time `json:"accepted_at"`
	// LeasedAt is when the latest attempt began.
	LeasedAt time.Time `json:"leased_at,omitzero"`
	// EndedAt is when it ended.
	EndedAt time.Time `json:"ended_at,omitzero"`
	// CancelRequested says that somebody wants it canceled.
	CancelRequested bool `json:"cancel_requested,omitempty"`
	// Result is how it ended.
	Result *Result `json:"result,omitempty"`
	// Spec is given where one job is asked for, not in lists.
	Spec *Spec `json:"spec,omitempty"`
}

// SubmitReply answers a submission: Job, or Error.
type SubmitReply struct {
	// Job is the accepted job.
	Job *Job `json:"job,omitempty"`
	// Duplicate says that the idempotency key had been used for this very job before.
	Duplicate bool `json:"duplicate,omitempty"`
	// Warnings name unknown fields of the spec and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it was not accepted.
	Error *Error `json:"error,omitempty"`
}

// GetRequest asks for one job of the subject's tenant; the answer is a GetReply.
type GetRequest struct {
	ID string `json:"id"`
}

// GetReply answers a GetRequest.
type GetReply struct {
	Job   *Job   `json:"job,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// ListRequest asks for jobs of the subject's tenant, newest first; the answer is a ListReply.
type ListRequest struct {
	// States to give; empty means all.
	States []State `json:"states,omitempty"`
	// Limit is at most 1000; 0 means 50.
	Limit int `json:"limit,omitempty"`
	// Before is the Next of the reply before this.
	Before string `json:"before,omitempty"`
}

// ListReply answers a ListRequest. Next is empty on the last page.
type ListReply struct {
	Jobs  []Job  `json:"jobs"`
	Next  string `json:"next,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// CancelReply answers a cancel. The job may end by itself before the cancel reaches it; State tells where it stood.
type CancelReply struct {
	State State  `json:"state,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// StdinChunk is a request on a job's stdin subject while its first step runs; answered by a StdinReply once the guest took it.
type StdinChunk struct {
	Content
	// EOF ends the input, after the content.
	EOF bool `json:"eof,omitempty"`
}

// StdinReply answers a StdinChunk.
type StdinReply struct {
	Error *Error `json:"error,omitempty"`
}
