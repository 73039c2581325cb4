package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// Output arrives over NATS while the program runs, line by line, and again from the first byte for who comes late.
func TestOutputArrivesWhileItRuns(t *testing.T) {
	c := up(t)
	job := submit(t, c, python("import time\nfor i in range(4):\n    print('line', i, flush=True)\n    time.sleep(0.7)\n"))
	var live []string
	var first, last time.Time
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == jobs.EventOutput {
			if first.IsZero() {
				first = time.Now()
			}
			last = time.Now()
			live = append(live, e.Text)
		}
		if e.Final {
			wantSuccess(t, *e.Result)
		}
	}
	if got := strings.Join(live, ""); got != "line 0\nline 1\nline 2\nline 3\n" {
		t.Errorf("live output %q", got)
	}
	if spread := last.Sub(first); spread < 1500*time.Millisecond {
		t.Errorf("the first and the last line came %s apart: not while the program ran", spread)
	}
	var again strings.Builder
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		again.WriteString(e.Text)
	}
	if again.String() != strings.Join(live, "") {
		t.Errorf("replay gives %q", again.String())
	}
}

// Two clones of one template share no randomness and no identity, and their clocks are right.
func TestClonesAreMachinesOfTheirOwn(t *testing.T) {
	c := up(t)
	const identity = `
import os, random, socket, uuid
print(open("/proc/sys/kernel/random/boot_id").read().strip())
print(open("/etc/machine-id").read().strip())
print(socket.gethostname())
print(os.urandom(16).hex())
print(open("/dev/urandom", "rb").read(16).hex())
print(open("/dev/random", "rb").read(16).hex())
print(uuid.uuid4())
print(random.random())
`
	var ids []string
	for range 3 {
		ids = append(ids, submit(t, c, python(identity)))
	}
	seen := map[string]bool{}
	for _, id := range ids {
		r := wait(t, c, id)
		wantSuccess(t, r)
		lines := strings.Fields(stdout(t, r))
		if len(lines) != 8 {
			t.Fatalf("%d lines: %q", len(lines), lines)
		}
		for i, l := range lines {
			if key := strconv.Itoa(i) + l; seen[key] || l == "" {
				t.Errorf("line %d is %q in two machines", i, l)
			} else {
				seen[key] = true
			}
		}
	}
}

func TestClockIsRight(t *testing.T) {
	c := up(t)
	job := submit(t, c, python("import time\nfor i in range(30):\n    print(repr(time.time()), flush=True)\n    time.sleep(0.05)\n"))
	best := time.Hour
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != jobs.EventOutput {
			continue
		}
		lines := strings.Fields(e.Text)
		if len(lines) == 0 {
			continue // the line's end alone: Python writes it apart
		}
		guest, err := strconv.ParseFloat(lines[len(lines)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		// The event's time is this host's, when the worker had the line: guest's clock plus the way. The shortest way tells most.
		if d := e.Time.Sub(time.UnixMicro(int64(guest * 1e6))); d.Abs() < best.Abs() {
			best = d
		}
	}
	if best.Abs() > 100*time.Millisecond {
		t.Errorf("the guest's clock is off by %s", best)
	}
	t.Logf("clock off by at most %s", best)
}

// A step's streams stay apart, files go in and out, steps share the machine, the environment is the job's.
func TestStepsFilesArtifacts(t *testing.T) {
	c := up(t)
	r := runJob(t, c, jobs.Spec{
		Image: "base",
		Files: []jobs.File{{Path: "in/data.txt", Text: "abc\n"}, {Path: "tool.sh", Text: "#!/bin/sh\necho tool $1\n", Mode: "0755"}},
		Steps: []jobs.Step{
			{Name: "one", Shell: "tr a-z A-Z < in/data.txt > out.txt; echo to-err >&2; id -u; echo $GREETING", Env: map[string]string{"GREETING": "hi"}},
			{Name: "two", Cmd: "./tool.sh", Args: []string{"x"}},
			{Name: "three", Cmd: "cat", Stdin: "from stdin"},
		},
		Artifacts: []jobs.Artifact{{Path: "*.txt"}, {Path: "missing", Optional: true}},
	})
	wantSuccess(t, r)
	if len(r.Steps) != 3 || string(r.Steps[0].Stdout.Data()) != "1000\nhi\n" || string(r.Steps[0].Stderr.Data()) != "to-err\n" ||
		string(r.Steps[1].Stdout.Data()) != "tool x\n" || string(r.Steps[2].Stdout.Data()) != "from stdin" {
		t.Errorf("steps: %+v", r.Steps)
	}
	if len(r.Artifacts) != 1 || r.Artifacts[0].Path != "out.txt" || string(r.Artifacts[0].Data()) != "ABC\n" {
		t.Errorf("artifacts: %+v", r.Artifacts)
	}
	if r.Template == "" || r.Machine == "" || r.Phases.TotalMS <= 0 {
		t.Errorf("result without its machine's marks: %+v", r)
	}
}
