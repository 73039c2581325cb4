package kvmhost

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

func TestJudge(t *testing.T) {
	tested := Set{Name: "tests", Package: "some/package", MaySkip: map[string][]string{"TestReal": {"PATH", "NO_SUCH_BINARY"}, "TestThere": {"PATH", "GIVEN"}}, Env: []string{"GIVEN=1"}}
	for _, c := range []struct {
		name   string
		set    Set
		output string
		end    steps.Event
		want   Result
		ok     bool
	}{
		{
			name: "passes", set: tested, output: "=== RUN   TestA\n--- PASS: TestA (0.00s)\n    --- PASS: TestA/sub (1.25s)\nPASS\n",
			want: Result{Passed: 2}, ok: true,
		},
		{
			name: "fails", set: tested, output: "--- FAIL: TestA (0.00s)\n    --- PASS: TestA/sub (0.00s)\nFAIL\n", end: steps.Event{Code: 1, Detail: "exit status 1"},
			want: Result{Passed: 1, Failed: []string{"TestA"}},
		},
		{
			name: "skips", set: tested, output: "--- PASS: TestA (0.00s)\n    --- SKIP: TestB/deep (0.00s)\nPASS\n",
			want: Result{Passed: 1, Skipped: []string{"TestB/deep"}},
		},
		{
			name: "may skip", set: tested, output: "--- PASS: TestA (0.00s)\n--- SKIP: TestReal (0.00s)\nPASS\n",
			want: Result{Passed: 1, NotRun: []string{"TestReal (no NO_SUCH_BINARY)"}}, ok: true,
		},
		{
			name: "may not skip, for what it wants is there", set: tested, output: "--- SKIP: TestThere (0.00s)\nPASS\n",
			want: Result{Skipped: []string{"TestThere"}},
		},
		{
			name: "says that it skips, in its output", set: tested, output: "    a_test.go:1: --- SKIP: no line of go test (0.00s)\n--- PASS: TestA (0.00s)\n",
			want: Result{Passed: 1}, ok: true,
		},
		{
			name: "no test matches", set: tested, output: "testing: warning: no tests to run\nPASS\n",
			want: Result{Detail: "no tests to run"},
		},
		{
			name: "ends before its tests", set: tested, output: "",
			want: Result{Detail: "no tests to run"},
		},
		{
			name: "passes, then dies", set: tested, output: "--- PASS: TestA (0.00s)\npanic: late\n", end: steps.Event{Code: 2, Detail: "exit status 2"},
			want: Result{Passed: 1, Detail: "exit status 2"},
		},
		{
			name: "fails, and is ended", set: tested, output: "--- FAIL: TestA (0.00s)\n", end: steps.Event{Code: -1, Detail: "took more than 1m0s"},
			want: Result{Failed: []string{"TestA"}, Detail: "took more than 1m0s"},
		},
		{
			name: "fails, and leaves something", set: tested, output: "--- FAIL: TestA (0.00s)\n", end: steps.Event{Code: 1, Detail: "exit status 1\nleft a process: 7"},
			want: Result{Failed: []string{"TestA"}, Detail: "exit status 1\nleft a process: 7"},
		},
		{
			name: "passes, and leaves something", set: tested, output: "--- PASS: TestA (0.00s)\nPASS\n", end: steps.Event{Code: -1, Detail: "left a process: 7"},
			want: Result{Passed: 1, Detail: "left a process: 7"},
		},
		{
			name: "benchmarks", set: tested, output: "BenchmarkClone\nBenchmarkClone-2   \t       3\t 361508642 ns/op\t 12 B/op\nPASS\n",
			want: Result{Passed: 1}, ok: true,
		},
		{name: "a line of shell", set: Set{Name: "sh", Shell: "true"}, ok: true},
		{name: "a line of shell fails", set: Set{Name: "sh", Shell: "false"}, end: steps.Event{Code: 1, Detail: "exit status 1"}, want: Result{Detail: "exit status 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Result{Set: c.set, Ran: true}
			j := &judge{r: &got}
			for b := []byte(c.output); len(b) > 0; b = b[min(7, len(b)):] { // as it comes, not in lines
				_, _ = j.Write(b[:min(7, len(b))])
			}
			c.end.Took = time.Second
			j.end(c.end)
			c.want.Set, c.want.Ran, c.want.Ended, c.want.Took = c.set, true, true, time.Second
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.OK() != c.ok {
				t.Errorf("ok is %v", got.OK())
			}
		})
	}
}

func TestWhatDidNotRunIsNoSuccess(t *testing.T) {
	for _, r := range []Result{{}, {Ran: true}, {Ended: true}} {
		if r.OK() {
			t.Errorf("%+v is ok", r)
		}
	}
}

func TestReport(t *testing.T) {
	var b strings.Builder
	Report(&b, []Result{
		{Set: Set{Name: "good"}, Ran: true, Ended: true, Took: 1500 * time.Millisecond, Passed: 3, NotRun: []string{"TestReal (no X)"}},
		{Set: Set{Name: "bad"}, Ran: true, Ended: true, Failed: []string{"TestA", "TestB"}, Detail: "exit status 1\nleft"},
		{Set: Set{Name: "skipping"}, Ran: true, Ended: true, Skipped: []string{"TestC"}},
		{Set: Set{Name: "cut off"}, Ran: true},
		{Set: Set{Name: "never"}},
	})
	const want = `set       result   seconds  passed  
good      ok       1.5      3       not run: TestReal (no X)
bad       FAILED   0.0      0       failed: TestA, TestB; exit status 1; left
skipping  skipped  0.0      0       skipped: TestC
cut off   FAILED   0.0      0       no end was seen
never     not run  0.0      0       
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
