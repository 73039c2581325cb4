package jobs

// Bounds of a ReplayRequest.
const (
	// MaxReplayEvents is the largest limit.
	MaxReplayEvents = 1000
	// DefaultReplayEvents is the limit where the request has none.
	DefaultReplayEvents = 256
	// DefaultReplayBytes is what a reply's events have at most where the request does not say.
	DefaultReplayBytes = 512 << 10
)

// Position is a place in a job's or a batch's events: the last that was seen. The zero value is the beginning.
type Position struct {
	// Attempt is the event's; of a batch 0.
	Attempt int `json:"attempt"`
	// Seq is the event's.
	Seq int64 `json:"seq"`
	// At is a place in the stream before which all has been seen. A reply's next has it; given back, with that or a later position, it
	// makes the reply to the request cheaper.
	At int64 `json:"at,omitempty"`
}

// Before tells whether an event with this attempt and seq follows the position.
func (p Position) Before(attempt int, seq int64) bool {
	return attempt > p.Attempt || attempt == p.Attempt && seq > p.Seq
}

// Next tells whether an event with this attempt and seq is the one that follows the position, with nothing between. Of another attempt
// only the very first event is known to: where an attempt ends, only its events tell.
func (p Position) Next(attempt int, seq int64) bool {
	return attempt == p.Attempt && seq == p.Seq+1 || p.Attempt == 0 && p.Seq == 0 && attempt == 1 && seq == 1
}

// ReplayRequest asks for events that have been: of Job or of Batch, one of both, of the subject's tenant. The answer is a ReplayReply.
type ReplayRequest struct {
	// Job is its id.
	Job string `json:"job,omitempty"`
	// Batch is its id.
	Batch string `json:"batch,omitempty"`
	// After is the last event that was seen; the zero value asks from the beginning.
	After Position `json:"after,omitzero"`
	// Limit is how many events to give at most, 1 to 1000; 0 means 256.
	Limit int `json:"limit,omitempty"`
	// MaxBytes is how many bytes of events to give at most, but one event in any case; 0 means 512 KiB. A reply never has more than the
	// server's messages carry.
	MaxBytes int64 `json:"max_bytes,omitempty"`
}

// ReplayReply answers a ReplayRequest.
type ReplayReply struct {
	// Events are what follows the position, each once and in order. Those of an attempt that was over when they came are left out.
	Events []Event `json:"events,omitzero"`
	// Next is the position after them, the After of the next request.
	Next Position `json:"next,omitzero"`
	// More says that there are more events already.
	More bool `json:"more,omitempty"`
	// Ended says that the last of Events is the job's final one.
	Ended bool `json:"ended,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why there are none.
	Error *Error `json:"error,omitempty"`
}

// Lost says that events are missing because they are not kept any more: all up to the event that follows.
type Lost struct {
	// Attempt and Seq are those of the first that is missing.
	Attempt int `json:"attempt"`
	// Seq is its place in the attempt.
	Seq int64 `json:"seq"`
	// Events is how many are known to be missing; 0 means that nobody knows.
	Events int64 `json:"events,omitempty"`
}

func (q *ReplayRequest) check(c *checker) {
	if (q.Job == "") == (q.Batch == "") {
		c.fault("", "give one of job and batch")
	}
	if q.After.Attempt < 0 {
		c.fault("after.attempt", "is %d, must be 0 or more", q.After.Attempt)
	}
	if q.After.Seq < 0 {
		c.fault("after.seq", "is %d, must be 0 or more", q.After.Seq)
	}
	if q.After.At < 0 {
		c.fault("after.at", "is %d, must be what a reply's next had", q.After.At)
	}
	c.within("limit", int64(q.Limit), MaxReplayEvents)
	if q.MaxBytes < 0 {
		c.fault("max_bytes", "is %d, must be 0 or more", q.MaxBytes)
	}
}
