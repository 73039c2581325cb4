package jobs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
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

// DecodeBatch reads a batch as DecodeRequest does other requests, but for the specs in it, which Specs reads: warnings name unknown fields.
func DecodeBatch(data []byte) (_ *BatchRequest, _ []string, err error) {
	defer caught(&err)
	fields, twice, err := fieldsIn(data)
	if err != nil {
		return nil, nil, invalid("invalid batch", []Fault{{"", err.Error()}})
	}
	r := &BatchRequest{Defaults: fields["defaults"]}
	var rest struct { // what is left is as in other requests
		ID             string     `json:"id"`
		IdempotencyKey string     `json:"idempotency_key"`
		Atomic         bool       `json:"atomic"`
		Object         *ObjectRef `json:"object"`
		Defaults       *struct{}  `json:"defaults"`
		Jobs           *struct{}  `json:"jobs"`
	}
	list := fields["jobs"]
	delete(fields, "defaults")
	delete(fields, "jobs")
	head, err := json.Marshal(fields)
	if err != nil {
		panic(err) // it was JSON
	}
	d := decode(head, &rest)
	d.faults = append(d.faults, twice...)
	if len(list) > 0 && json.Unmarshal(list, &r.Jobs) != nil {
		d.fault("jobs", "must be a list")
	}
	if len(d.faults) > 0 {
		return nil, d.warnings(), invalid("invalid batch", d.faults)
	}
	r.ID, r.IdempotencyKey, r.Atomic, r.Object = rest.ID, rest.IdempotencyKey, rest.Atomic, rest.Object
	return r, d.warnings(), nil
}

// fieldsIn gives an object's fields as they are written; of those that are there twice, which are faults, the first. An error says why the JSON
// is no object.
func fieldsIn(data []byte) (fields map[string]json.RawMessage, twice []Fault, _ error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil {
		return nil, nil, notJSON(err)
	} else if t != json.Delim('{') {
		return nil, nil, errors.New("must be a JSON object")
	}
	fields = map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, nil, notJSON(err)
		}
		key, _ := t.(string)
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, nil, notJSON(err)
		}
		if _, there := fields[key]; !there {
			fields[key] = v
		} else if len(twice) < maxFaults {
			twice = append(twice, Fault{join("", key), "given twice"})
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, notJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("something follows the JSON object")
	}
	return fields, twice, nil
}

func notJSON(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("not JSON: %w", err)
}

// Specs reads the batch's specs, each with what defaults give it. errs[i] is what is wrong with the i-th, a *Error. Warnings name unknown
// fields. An error is about the batch as a whole.
func (r *BatchRequest) Specs() (specs []*Spec, errs []error, warnings []string, err error) {
	defer caught(&err)
	if n := len(r.Jobs); n == 0 || n > MaxBatch {
		return nil, nil, nil, invalid("invalid batch", []Fault{{"jobs", fmt.Sprintf("has %d, 1 to %d are taken", n, MaxBatch)}})
	}
	if r.ID != "" {
		if _, err := ParseID(r.ID); err != nil {
			return nil, nil, nil, invalid("invalid batch", []Fault{{"id", fmt.Sprintf("%.80q is %v", r.ID, err)}})
		}
	}
	c := &checker{}
	if c.text("idempotency_key", r.IdempotencyKey, maxBatchKey); len(*c) > 0 {
		return nil, nil, nil, invalid("invalid batch", *c)
	}
	defaults, err := r.defaults()
	if err != nil {
		return nil, nil, nil, err
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

// defaults are the fields of Defaults, as they are written.
func (r *BatchRequest) defaults() (map[string]json.RawMessage, error) {
	if len(r.Defaults) == 0 || string(r.Defaults) == "null" {
		return nil, nil
	}
	fields, twice, err := fieldsIn(r.Defaults)
	if err != nil {
		return nil, invalid("invalid batch", []Fault{{"defaults", "must be a spec, or a part of one: " + err.Error()}})
	}
	if len(twice) > 0 {
		for i := range twice {
			twice[i].Path = "defaults." + twice[i].Path
		}
		return nil, invalid("invalid batch", twice)
	}
	return fields, nil
}

// with gives a spec's JSON with the fields of defaults that it has not. Its own are left as they are written, and so is what is no object, for
// Decode to say what is wrong with them.
func with(defaults map[string]json.RawMessage, body json.RawMessage) json.RawMessage {
	if len(defaults) == 0 {
		return body
	}
	own := map[string]json.RawMessage{}
	if json.Unmarshal(body, &own) != nil || own == nil { // null is no object either
		return body
	}
	end := bytes.LastIndexByte(body, '}')
	b := bytes.NewBuffer(make([]byte, 0, len(body)+64))
	b.Write(body[:end])
	first := len(own) == 0
	for _, k := range slices.Sorted(maps.Keys(defaults)) {
		if _, has := own[k]; has {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		key, err := json.Marshal(k)
		if err != nil {
			panic(err) // a text
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(defaults[k])
	}
	b.Write(body[end:])
	return b.Bytes()
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
