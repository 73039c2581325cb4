package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

const (
	// MaxBatch is how many jobs one batch may have.
	MaxBatch = 10_000
	// MaxBatchBytes is what their specs may have together, each with what the defaults give it.
	MaxBatchBytes = 64 << 20
)

// BatchRequest brings in many jobs at once; the answer is a BatchReply.
type BatchRequest struct {
	// ID is a UUIDv7 that the client may choose; empty means that the dispatcher does.
	ID string `json:"id,omitempty"`
	// IdempotencyKey makes the request repeatable for 24 hours, as a spec's does; a job's own key is its position in the batch's.
	IdempotencyKey string `json:"idempotency_key,omitempty"`
	// Atomic takes all jobs or none; else each has its own outcome.
	Atomic bool `json:"atomic,omitempty"`
	// Defaults is a spec whose fields are those of every job that does not give them itself.
	Defaults json.RawMessage `json:"defaults,omitempty"`
	// Jobs are specs, at most 10,000, and with what defaults give each at most 64 MiB together.
	Jobs []json.RawMessage `json:"jobs,omitempty"`
	// Object has them as lines of JSON in the tenant's object store, where they are too large for a message; of Jobs and Object one is given.
	Object *ObjectRef `json:"object,omitempty"`
}

// Batch is many jobs that came in together. Counts follow the jobs' ends.
type Batch struct {
	// ID is a UUIDv7.
	ID string `json:"id"`
	// Tenant is whose it is.
	Tenant string `json:"tenant"`
	// Total is how many jobs it has.
	Total int `json:"total"`
	// Ended is how many have ended.
	Ended int `json:"ended"`
	// OK is how many have ended with the exit code 0.
	OK int `json:"ok"`
	// AcceptedAt is when it was taken.
	AcceptedAt time.Time `json:"accepted_at"`
	// EndedAt is when its last job ended.
	EndedAt time.Time `json:"ended_at,omitzero"`
}

// BatchItem is the outcome of one job of a batch.
type BatchItem struct {
	// ID is the job's, where it was accepted.
	ID string `json:"id,omitempty"`
	// Duplicate says that it had been accepted before.
	Duplicate bool `json:"duplicate,omitempty"`
	// Error is why it was not.
	Error *Error `json:"error,omitempty"`
}

// BatchReply answers a BatchRequest: Batch and an item for each of its jobs, in their order; or Error, and nothing was taken.
type BatchReply struct {
	// Batch is what was taken.
	Batch *Batch `json:"batch,omitempty"`
	// Items are the outcomes of its jobs, in their order.
	Items []BatchItem `json:"items,omitempty"`
	// Duplicate says that the id or the idempotency key had brought in this very batch before.
	Duplicate bool `json:"duplicate,omitempty"`
	// Warnings name unknown fields and the nearest known ones, a job's with its place: "jobs[3].imge …".
	Warnings []string `json:"warnings,omitempty"`
	// Error is why nothing was taken.
	Error *Error `json:"error,omitempty"`
}

// Hash is the digest of the request's body: two with one idempotency key must agree in it. ID and key do not count.
func (r *BatchRequest) Hash() string {
	body := *r
	body.ID, body.IdempotencyKey = "", ""
	b, err := json.Marshal(body)
	if err != nil {
		b = []byte(err.Error()) // raw messages that are no JSON: no spec either
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Specs reads the batch's specs, each with what defaults give it. errs[i] is what is wrong with the i-th, a *Error. Warnings name unknown
// fields. An error is about the batch as a whole.
func (r *BatchRequest) Specs() (specs []*Spec, errs []error, warnings []string, _ error) {
	if n := len(r.Jobs); n == 0 || n > MaxBatch {
		return nil, nil, nil, invalid("invalid batch", []Fault{{"jobs", fmt.Sprintf("has %d, 1 to %d are taken", n, MaxBatch)}})
	}
	if r.ID != "" {
		if _, err := ParseID(r.ID); err != nil {
			return nil, nil, nil, invalid("invalid batch", []Fault{{"id", fmt.Sprintf("%.80q is %v", r.ID, err)}})
		}
	}
	if len(r.IdempotencyKey) > maxBatchKey {
		return nil, nil, nil, invalid("invalid batch", []Fault{{"idempotency_key", fmt.Sprintf("has %d bytes, at most %d are taken", len(r.IdempotencyKey), maxBatchKey)}})
	}
	defaults := map[string]json.RawMessage{}
	if len(r.Defaults) > 0 {
		if err := json.Unmarshal(r.Defaults, &defaults); err != nil {
			return nil, nil, nil, invalid("invalid batch", []Fault{{"defaults", "must be a spec, or a part of one: " + err.Error()}})
		}
	}
	specs, errs = make([]*Spec, len(r.Jobs)), make([]error, len(r.Jobs))
	seen, size := map[string]bool{}, 0
	for i, body := range r.Jobs {
		body = with(defaults, body)
		if size += len(body); size > MaxBatchBytes { // a message can have defaults that are a thousand times as much
			return nil, nil, nil, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("the batch's specs have more than %d bytes with what defaults give each", MaxBatchBytes)}
		}
		var w []string
		specs[i], w, errs[i] = Decode(body, Lenient)
		for _, text := range w {
			if len(warnings) < maxFaults {
				warnings = append(warnings, fmt.Sprintf("jobs[%d].%s", i, text))
			}
		}
		if s := specs[i]; s != nil {
			for at, name := range map[string]string{"id": s.ID, "idempotency_key": s.IdempotencyKey} {
				if name != "" && seen[at+" "+name] {
					errs[i] = invalid("invalid job spec", []Fault{{at, "another job of the batch has it"}})
				}
				seen[at+" "+name] = true
			}
		}
	}
	return specs, errs, warnings, nil
}

// maxBatchKey leaves room for a job's position behind it.
const maxBatchKey = 180

// with gives a spec's JSON with the fields of defaults that it has not. What is no object stays as it is, for Decode to say so.
func with(defaults map[string]json.RawMessage, body json.RawMessage) json.RawMessage {
	if len(defaults) == 0 {
		return body
	}
	own := map[string]json.RawMessage{}
	if json.Unmarshal(body, &own) != nil || own == nil { // null is no object either
		return body
	}
	for k, v := range defaults {
		if _, ok := own[k]; !ok {
			own[k] = v
		}
	}
	b, err := json.Marshal(own)
	if err != nil {
		return body
	}
	return b
}

// BatchQuery names one batch, or a page of them, newest first, with Limit and Before as in a ListRequest.
type BatchQuery struct {
	// ID is the batch's; of get and cancel.
	ID string `json:"id,omitempty"`
	// Limit is at most 1000; 0 means 50. Of list.
	Limit int `json:"limit,omitempty"`
	// Before is the Next of the reply before this. Of list.
	Before string `json:"before,omitempty"`
}

// BatchesReply answers what is asked of batches.
type BatchesReply struct {
	// Batches are the one that get names, or a page of them; of cancel none.
	Batches []Batch `json:"batches,omitempty"`
	// Next is where the next page begins; empty on the last.
	Next string `json:"next,omitempty"`
	// Canceled is how many jobs have been asked to end.
	Canceled int `json:"canceled,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it was refused.
	Error *Error `json:"error,omitempty"`
}

func (q *BatchQuery) check(c *checker) {
	c.within("limit", int64(q.Limit), 1000)
	for at, id := range map[string]string{"id": q.ID, "before": q.Before} {
		if id == "" {
			continue
		}
		if _, err := ParseID(id); err != nil {
			c.fault(at, "%.80q is %v", id, err)
		}
	}
}
