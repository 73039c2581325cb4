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
	// RunAt is the earliest time for its first attempt, where the spec gives one.
	RunAt time.Time `json:"run_at,omitzero"`
	// Batch is the batch that it came in with.
	Batch string `json:"batch,omitempty"`
	// RedriveOf is the dead job that it repeats.
	RedriveOf string `json:"redrive_of,omitempty"`
	// RedrivenBy is the job that repeats this one, which is dead.
	RedrivenBy string `json:"redriven_by,omitempty"`
	// Attempts are those that ended and were followed by another, where one job is asked for.
	Attempts []Attempt `json:"attempts,omitempty"`
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

// Attempt is one try at a job that did not end it.
type Attempt struct {
	// Attempt is its number, from 1.
	Attempt int `json:"attempt"`
	// Worker had it.
	Worker string `json:"worker"`
	// Ending is how it ended.
	Ending Ending `json:"ending"`
	// Class is whose doing that was.
	Class Class `json:"class"`
	// Reason is for people.
	Reason string `json:"reason,omitempty"`
	// LeasedAt is when it began.
	LeasedAt time.Time `json:"leased_at"`
	// EndedAt is when it ended.
	EndedAt time.Time `json:"ended_at"`
}
