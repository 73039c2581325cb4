package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// What is wrong in a history is found; what cannot be judged is wrong too, and a history is not that because nobody answered for long.
func TestHistory(t *testing.T) {
	start := time.Now()
	op := func(o operation, from, to int) operation {
		at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
		if o.call = at(from); to > 0 {
			o.ret = at(to)
		}
		return o
	}
	gets := func(s seen, from, to int) operation { return op(operation{name: opGet, out: &s}, from, to) }
	life := []operation{
		op(operation{name: opSubmit}, 0, 10), gets(seen{state: jobs.StateQueued}, 5, 15),
		op(operation{name: opClaim, attempt: 1}, 20, 30), gets(seen{state: jobs.StateRunning, attempt: 1}, 25, 35), op(operation{name: opRequeue, attempt: 1}, 40, 60),
		op(operation{name: opClaim, attempt: 2}, 50, 70), op(operation{name: opFinish, attempt: 2, ending: jobs.Exited}, 80, 90),
		gets(seen{state: jobs.StateEnded, attempt: 2, ending: jobs.Exited}, 91, 92),
	}
	var unanswered, together []operation
	for range 40 {
		unanswered = append(unanswered, op(operation{name: opSubmit}, 1, 0), op(operation{name: opCancel}, 11, 0))
		together = append(together, gets(seen{state: jobs.StateQueued}, 11, 19))
	}
	for _, c := range []struct {
		name     string
		history  []operation
		patience time.Duration
		unjudged int
		want     string // empty: nothing is wrong
	}{
		{"a life", life, time.Minute, 0, ""},
		{"few answers", append(slices.Clone(life), unanswered...), time.Minute, 0, ""},
		{"queued after its end", append(slices.Clone(life), gets(seen{state: jobs.StateQueued}, 93, 94)), time.Minute, 0, "not one that a job can have"},
		{"never submitted", life[1:], time.Minute, 0, "not one that a job can have"},
		{"too much to look at", append(append(slices.Clone(life), together...), gets(seen{missing: true}, 93, 94)), 10 * time.Millisecond, 1, "took longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			check := &checker{witnesses: &witnesses{over: start.Add(time.Second)}, r: r, patience: c.patience}
			check.history(&job{id: "x"}, c.history)
			if r.Unjudged != c.unjudged || (len(r.Wrong) > 0) != (c.want != "") || c.want != "" && !strings.Contains(r.Wrong[0], c.want) {
				t.Errorf("unjudged %d, wrong: %s", r.Unjudged, r.Wrong)
			}
		})
	}
}
