package webhook

import (
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// hookOf makes what is told of a state change.
func hookOf(h ledger.Hook) (jobs.Hook, error) {
	if h.Type == jobs.HookBatchEnded {
		return batchOf(h)
	}
	var e jobs.Event
	if err := json.Unmarshal(h.Event, &e); err != nil {
		return jobs.Hook{}, err
	}
	d := jobs.HookData{Tenant: h.Tenant, Job: e.Job, Batch: h.Batch, Attempt: e.Attempt, State: e.State, Reason: e.Reason, Labels: h.Labels}
	if r := e.Result; r != nil {
		d.Ending, d.Class, d.Reason, d.Limit, d.ExitCode, d.Signal = r.Ending, r.Class, r.Reason, r.Limit, r.ExitCode, r.Signal
		d.Usage, d.Artifacts, d.EndedAt = r.Usage, len(r.Artifacts), r.EndedAt
		if n := len(r.Steps); n > 0 {
			d.Stdout, d.Stderr = r.Steps[n-1].Stdout, r.Steps[n-1].Stderr
		}
	}
	if h.Type == jobs.HookEnded {
		d.State = jobs.StateEnded
		if d.Class == jobs.ClassInfra { // after the last attempt
			d.State = jobs.StateDead
		}
	}
	return jobs.Hook{Type: h.Type, Timestamp: e.Time, Data: d}, nil
}

// batchOf makes what is told of a batch's end.
func batchOf(h ledger.Hook) (jobs.Hook, error) {
	var b jobs.Batch
	if err := json.Unmarshal(h.Event, &b); err != nil {
		return jobs.Hook{}, err
	}
	d := jobs.HookData{Tenant: h.Tenant, Batch: b.ID, EndedAt: b.EndedAt, Total: b.Total, Ended: b.Ended, OK: b.OK}
	return jobs.Hook{Type: h.Type, Timestamp: b.EndedAt, Data: d}, nil
}

// maxHead is how much of each stream a webhook repeats at most.
const maxHead = 4 << 10

// encode gives the body for a delivery, which is never larger than jobs.MaxHookBytes: what is told at length is thinned.
func encode(h jobs.Hook, format, id string) []byte {
	cut(&h.Data, maxHead)
	b := wrap(h, format, id)
	for most := maxHead; len(b) > jobs.MaxHookBytes; {
		switch {
		case most > 256:
			most /= 2
			cut(&h.Data, most)
		case h.Data.Labels != nil:
			h.Data.Labels, h.Data.Thinned = nil, true
		default:
			for _, text := range []*string{&h.Data.Reason, &h.Data.Limit, &h.Data.Signal} { // a worker's
				*text = string(head([]byte(*text), 512))
			}
			h.Data.Thinned = true
			cut(&h.Data, 0)
			return wrap(h, format, id) // what is left is ids, numbers and words of ours
		}
		b = wrap(h, format, id)
	}
	return b
}

// cut keeps the heads of the output to so many bytes.
func cut(d *jobs.HookData, most int) {
	for _, o := range []*jobs.Output{&d.Stdout, &d.Stderr} {
		if o.Len() > most {
			o.Content, d.Thinned = jobs.ContentOf(head(o.Data(), most)), true
		}
	}
}

// head gives the first bytes of b, at most so many, without half a character at the end.
func head(b []byte, most int) []byte {
	if len(b) <= most {
		return b
	}
	n := most
	for n > 0 && most-n < utf8.UTFMax && !utf8.RuneStart(b[n]) {
		n--
	}
	return b[:n]
}

// cloudEvent is an event in CloudEvents' structured mode: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
type cloudEvent struct {
	SpecVersion     string        `json:"specversion"`
	ID              string        `json:"id"`
	Source          string        `json:"source"`
	Type            string        `json:"type"`
	Subject         string        `json:"subject,omitempty"`
	Time            time.Time     `json:"time"`
	DataContentType string        `json:"datacontenttype"`
	Data            jobs.HookData `json:"data"`
}

func wrap(h jobs.Hook, format, id string) []byte {
	var v any = h
	if format == jobs.FormatCloudEvents {
		subject := h.Data.Job
		if subject == "" {
			subject = h.Data.Batch
		}
		v = cloudEvent{"1.0", id, "/paddock/v1/" + h.Data.Tenant, "paddock." + h.Type + ".v1", subject, h.Timestamp, "application/json", h.Data}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	return b
}

// contentType is the media type of a format's bodies.
func contentType(format string) string {
	if format == jobs.FormatCloudEvents {
		return "application/cloudevents+json; charset=utf-8"
	}
	return "application/json"
}
