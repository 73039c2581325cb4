package worker

import (
	"encoding/json"
	"strings"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
)

// This file keeps what a guest says within what a message can carry. A result that did not fit could never be reported, and its job
// would never end. The sizes are those of the JSON; together, with the steps' own fields, they stay below jobs.MaxResultBytes.
const (
	maxOutputs   = 256 << 10 // the heads of all steps' outputs
	maxInline    = 256 << 10 // the artifacts that travel inside
	maxArtifacts = 320 << 10 // the artifacts' names and digests
	maxSaid      = 1 << 10   // a guest's own words, in bytes
	maxMS        = 1e12      // a guest's measurement
	maxCode      = 255       // the status that a program can exit with (wait(2))
)

// jsonSize is how many bytes a value takes in a message.
func jsonSize(v any) int {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	return len(b)
}

// fitOutputs drops the heads of the earliest outputs until the rest fits: all output is in the events.
func fitOutputs(steps []jobs.StepResult) {
	size := 0
	for i := len(steps) - 1; i >= 0; i-- {
		for _, o := range []*jobs.Output{&steps[i].Stderr, &steps[i].Stdout} {
			if size += jsonSize(o.Content); size > maxOutputs {
				o.Content = jobs.Content{}
			}
		}
	}
}

// said cuts words from a guest to a length that nobody minds.
func said(s string) string {
	if len(s) > maxSaid {
		s = s[:maxSaid] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// believable cuts a guest's report of a program's end to what can be summed, stored and sent.
func believable(e wire.Exit) wire.Exit {
	e.Signal, e.Limit = said(e.Signal), said(e.Limit)
	if e.Signal == "" && (e.Code < 0 || e.Code > maxCode) { // of 256 a shell sees 0
		e.Code = maxCode
	}
	e.WallMS, e.CPUMS = min(max(e.WallMS, 0), maxMS), min(max(e.CPUMS, 0), maxMS)
	e.MemoryPeakBytes, e.PIDsPeak = max(e.MemoryPeakBytes, 0), max(e.PIDsPeak, 0)
	e.StdoutDropped, e.StderrDropped = max(e.StdoutDropped, 0), max(e.StderrDropped, 0)
	return e
}
