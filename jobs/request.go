package jobs

import (
	"fmt"
	"slices"
	"strings"
)

// request is what a client may ask besides a submission.
type request interface{ check(c *checker) }

var (
	_ request = (*GetRequest)(nil)
	_ request = (*ListRequest)(nil)
	_ request = (*StdinChunk)(nil)
	_ request = (*ReplayRequest)(nil)
	_ request = (*ObjectRequest)(nil)
)

// maxRequestBytes is a request's JSON, but for those that bring something: they ask for little, and reading a mebibyte takes a processor long.
const maxRequestBytes = 64 << 10

// DecodeRequest reads a client's request, one of the types that say so, as Decode reads a spec leniently: every fault is in the one
// *Error, and warnings name unknown fields. No body asks for the zero value. A *BugError is our own fault.
func DecodeRequest(data []byte, q request) (warnings []string, err error) {
	defer caught(&err)
	switch q.(type) {
	case *Schedule, *StdinChunk:
	default:
		if len(data) > maxRequestBytes {
			return nil, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("the request has %d bytes, at most %d are taken", len(data), maxRequestBytes)}
		}
	}
	d := &decoder{}
	if len(data) > 0 {
		d = decode(data, q)
	}
	if !d.unreadable {
		c := (*checker)(&d.faults)
		if len(*c) == 0 { // else a wrong type would be told of twice
			q.check(c)
		}
	}
	if len(d.faults) > 0 {
		return d.warnings(), invalid("invalid request", d.faults)
	}
	return d.warnings(), nil
}

// GetRequest asks for one job of the subject's tenant; the answer is a GetReply.
type GetRequest struct {
	// ID is the job's.
	ID string `json:"id"`
}

// GetReply answers a GetRequest.
type GetReply struct {
	// Job is it, with its spec, attempts and, once it has ended, its result.
	Job *Job `json:"job,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it is not given.
	Error *Error `json:"error,omitempty"`
}

// ListRequest asks for jobs of the subject's tenant, newest first; the answer is a ListReply.
type ListRequest struct {
	// States to give; empty means all.
	States []State `json:"states,omitempty"`
	// Batch is the batch whose jobs are meant; empty means all jobs.
	Batch string `json:"batch,omitempty"`
	// Limit is at most 1000; 0 means 50.
	Limit int `json:"limit,omitempty"`
	// Before is the Next of the reply before this.
	Before string `json:"before,omitempty"`
}

// ListReply answers a ListRequest. Jobs is nil where it failed, else it may be empty. Next is empty on the last page.
type ListReply struct {
	// Jobs are a page of them, without specs and attempts.
	Jobs []Job `json:"jobs,omitzero"`
	// Next is where the next page begins; empty on the last.
	Next string `json:"next,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why there are none.
	Error *Error `json:"error,omitempty"`
}

// CancelReply answers a cancel. The job may end by itself before the cancel reaches it; State tells where it stood.
type CancelReply struct {
	// State is where the job stood.
	State State `json:"state,omitempty"`
	// Error is why it is not canceled.
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
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why the input was not taken.
	Error *Error `json:"error,omitempty"`
}

func (q *GetRequest) check(c *checker) { c.name("id", q.ID) } // an id that is none is nobody's

func (q *ListRequest) check(c *checker) {
	states := []State{StateQueued, StateLeased, StateRunning, StateEnded, StateDead}
	for i, s := range q.States {
		if c.full() {
			break
		}
		if !slices.Contains(states, s) {
			c.fault(fmt.Sprintf("states[%d]", i), "is %.80q, must be one of %s", s, strings.Trim(fmt.Sprint(states), "[]"))
		}
	}
	if q.Before != "" {
		if _, err := ParseID(q.Before); err != nil {
			c.fault("before", "%.80q must be the next of another reply", q.Before)
		}
	}
	if q.Batch != "" {
		if _, err := ParseID(q.Batch); err != nil {
			c.fault("batch", "%.80q is no batch's id", q.Batch)
		}
	}
}

func (s *StdinChunk) check(c *checker) {
	switch {
	case s.Text != "" && len(s.Base64) > 0:
		c.fault("", "give one of text and base64")
	case s.Len() == 0 && !s.EOF:
		c.fault("", "no input: give text or base64, or eof")
	}
}
