package kvmhost

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

// Result is how a set went.
type Result struct {
	Set Set
	// Ran is false for a set that was not begun, Ended for one that was not seen to end.
	Ran, Ended bool
	Took       time.Duration
	Passed     int
	// Failed and Skipped are tests; NotRun are those that may skip, with the reason.
	Failed, Skipped, NotRun []string
	// Detail is what went wrong beyond the tests: an exit code without a failed test, a deadline, a process that was left.
	Detail string
}

// OK tells whether all that had to pass did.
func (r Result) OK() bool {
	return r.Ran && r.Ended && len(r.Failed) == 0 && len(r.Skipped) == 0 && r.Detail == ""
}

// state is the result in a word.
func (r Result) state() string {
	switch {
	case !r.Ran:
		return "not run"
	case r.OK():
		return "ok"
	case len(r.Failed) == 0 && len(r.Skipped) > 0 && r.Detail == "":
		return "skipped"
	}
	return "FAILED"
}

func (r Result) detail() string {
	var parts []string
	add := func(what string, names []string) {
		if len(names) > 0 {
			parts = append(parts, what+" "+strings.Join(names, ", "))
		}
	}
	add("failed:", r.Failed)
	add("skipped:", r.Skipped)
	add("not run:", r.NotRun)
	if r.Detail != "" {
		parts = append(parts, strings.ReplaceAll(r.Detail, "\n", "; "))
	}
	if r.Ran && !r.Ended {
		parts = append(parts, "no end was seen")
	}
	return strings.Join(parts, "; ")
}

// Report writes the results as a table.
func Report(w io.Writer, results []Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "set\tresult\tseconds\tpassed\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%d\t%s\n", r.Set.Name, r.state(), r.Took.Seconds(), r.Passed, r.detail())
	}
	_ = t.Flush()
}

// verdict is a line of `go test -v` that ends a test.
var verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \([0-9.]+s\)$`)

// sample is the line of a benchmark that was run.
var sample = regexp.MustCompile(`^Benchmark\S+\s+[0-9]+\s+\S+ ns/op`)

// judge reads a set's output and end.
type judge struct {
	r    *Result
	live io.Writer
	log  *os.File // from its beginning
	part []byte
	none bool // no test matched
}

// Write takes output, whole lines or not.
func (j *judge) Write(b []byte) (int, error) {
	j.part = append(j.part, b...)
	for {
		line, rest, ok := bytes.Cut(j.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		j.line(strings.TrimRight(string(line), "\r"))
		j.part = rest
	}
}

func (j *judge) line(line string) {
	if line == "testing: warning: no tests to run" {
		j.none = true
	}
	if sample.MatchString(line) {
		j.r.Passed++
	}
	m := verdict.FindStringSubmatch(line)
	if m == nil {
		return
	}
	switch name := m[2]; m[1] {
	case "PASS":
		j.r.Passed++
	case "FAIL":
		j.r.Failed = append(j.r.Failed, name)
	case "SKIP":
		if without := j.r.Set.lacks(j.r.Set.MaySkip[name]); without != "" {
			j.r.NotRun = append(j.r.NotRun, name+" (no "+without+")")
		} else {
			j.r.Skipped = append(j.r.Skipped, name)
		}
	}
}

// end takes the set's last event.
func (j *judge) end(e steps.Event) {
	j.r.Ended, j.r.Took = true, e.Took
	switch {
	case e.Detail != "" && (e.Code <= 0 || len(j.r.Failed) == 0):
		j.r.Detail = e.Detail
	case e.Detail != "" && strings.Contains(e.Detail, "\n"): // more than the exit code
		j.r.Detail = e.Detail
	case j.none || j.r.Set.Package != "" && j.r.Passed+len(j.r.Failed)+len(j.r.Skipped)+len(j.r.NotRun) == 0:
		j.r.Detail = "no tests to run"
	}
}
