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
)

// DecodeRequest reads a client's request, a *GetRequest, *ListRequest, *StdinChunk, *SnapshotRequest or *ResizeRequest, as Decode reads a spec leniently: every fault is in
// the one *Error, and warnings name unknown fields. No body asks for the zero value.
func DecodeRequest(data []byte, q request) (warnings []string, _ error) {
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
	ID string `json:"id"`
}

// GetReply answers a GetRequest.
type GetReply struct {
	Job      *Job     `json:"job,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Error    *Error   `json:"error,omitempty"`
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

// ListReply answers a ListRequest. Jobs is nil where it failed, else it may be empty. Next is empty on the last page.
type ListReply struct {
	Jobs     []Job    `json:"jobs,omitzero"`
	Next     string   `json:"next,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Error    *Error   `json:"error,omitempty"`
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
	Warnings []string `json:"warnings,omitempty"`
	Error    *Error   `json:"error,omitempty"`
}

func (*GetRequest) check(*checker) {} // an id that is none is nobody's

func (q *ListRequest) check(c *checker) {
	states := []State{StateQueued, StateLeased, StateRunning, StateEnded, StateDead}
	for i, s := range q.States {
		if !slices.Contains(states, s) {
			c.fault(fmt.Sprintf("states[%d]", i), "is %.80q, must be one of %s", s, strings.Trim(fmt.Sprint(states), "[]"))
		}
	}
	if q.Before == "" {
		return
	}
	if _, err := ParseID(q.Before); err != nil {
		c.fault("before", "%.80q must be the next of another reply", q.Before)
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
