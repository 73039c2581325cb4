package asynqin

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/paddockvm/paddock/jobs"
)

// maxResult bounds a result in Redis, in bytes of JSON: it is kept in memory there. All of it is in the job's record and its events.
const maxResult = 64 << 10

// result is what a task holds in the end: the job's result, and what else a producer wants to know.
type result struct {
	jobs.Result
	// Job is the job's id; empty for a task that did not become one.
	Job string `json:"job,omitempty"`
	// State is the job's.
	State jobs.State `json:"state,omitempty"`
	// Cut says that something was left out, to keep within maxResult.
	Cut bool `json:"cut,omitempty"`
	// Warnings name unknown fields of the payload.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why the task did not become a job.
	Error *jobs.Error `json:"error,omitempty"`
}

func endOf(job jobs.Job, warnings []string) result {
	return result{Result: *job.Result, Job: job.ID, State: job.State, Warnings: warnings}
}

func refusal(e *jobs.Error, warnings []string) result {
	r := jobs.Result{Ending: jobs.Rejected, Class: jobs.Rejected.Class(), Reason: e.Error(), EndedAt: time.Now().UTC()}
	return result{Result: r, Warnings: warnings, Error: e}
}

// encode gives the result's JSON, of at most maxResult bytes. What is left out first is what can be had elsewhere and is large: artifacts'
// contents, then the output of the steps before the last, from the first on, then the tail of the last one's, and at last the lists.
func (r result) encode() []byte {
	data := r.json()
	if len(data) <= maxResult {
		return data
	}
	r.Cut = true
	r.Artifacts = append([]jobs.ArtifactResult(nil), r.Artifacts...)
	r.Steps = append([]jobs.StepResult(nil), r.Steps...)
	for i := range r.Artifacts {
		r.Artifacts[i].Content = jobs.Content{}
	}
	last := len(r.Steps) - 1
	for i := 0; i < last; i++ {
		if data = r.json(); len(data) <= maxResult {
			return data
		}
		r.Steps[i].Stdout.Content, r.Steps[i].Stderr.Content = jobs.Content{}, jobs.Content{}
	}
	for most := jobs.MaxResultOutput / 2; last >= 0 && most >= 256; most /= 2 {
		if data = r.json(); len(data) <= maxResult {
			return data
		}
		r.Steps[last].Stdout.Content, r.Steps[last].Stderr.Content = head(r.Steps[last].Stdout.Content, most), head(r.Steps[last].Stderr.Content, most)
	}
	if data = r.json(); len(data) <= maxResult {
		return data
	}
	r.Artifacts, r.Warnings, r.Reason = nil, nil, short(r.Reason, 4<<10)
	if last > 0 {
		r.Steps = r.Steps[last:]
	}
	if r.Error != nil {
		r.Error = &jobs.Error{Code: r.Error.Code, Message: short(r.Error.Message, 4<<10)}
	}
	if data = r.json(); len(data) <= maxResult {
		return data
	}
	// Words of a worker's that are none: what tells how it ended is left.
	r.Result = jobs.Result{Ending: r.Ending, Class: r.Class, Reason: short(r.Reason, 4<<10), ExitCode: r.ExitCode, Attempt: r.Attempt, EndedAt: r.EndedAt}
	return r.json()
}

func (r result) json() []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain data
	}
	return data
}

// head gives the first bytes, and no half character of a text.
func head(c jobs.Content, most int) jobs.Content {
	b := c.Data()
	if len(b) <= most {
		return c
	}
	if c.Text == "" {
		return jobs.Content{Base64: b[:most]}
	}
	for most > 0 && !utf8.RuneStart(b[most]) {
		most--
	}
	return jobs.Content{Text: string(b[:most])}
}

// summary says in a few words how a job ended.
func summary(r *jobs.Result) string {
	s := string(r.Ending)
	switch {
	case r.ExitCode != nil && r.Ending == jobs.Exited:
		s += fmt.Sprintf(" with %d", *r.ExitCode)
	case r.Signal != "":
		s += " " + short(r.Signal, 100)
	case r.Limit != "":
		s += " (" + short(r.Limit, 100) + ")"
	}
	if r.Reason != "" {
		s += ": " + short(r.Reason, 500)
	}
	return s
}

func short(text string, most int) string { return string(head(jobs.Content{Text: text}, most).Data()) }
