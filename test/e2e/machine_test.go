package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// Output arrives over NATS while the program runs, line by line, and again from the first byte for who comes late.
func TestOutputArrivesWhileItRuns(t *testing.T) {
	c := up(t)
	spec := python("import os, sys\nfor i in range(4):\n    os.write(1, b'line %d\\n' % i)\n    if not sys.stdin.readline():\n        sys.exit(1)\n")
	spec.StdinStream = true
	job := submit(t, c, spec)
	in := c.Stdin(t.Context(), job)
	var live []string
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == jobs.EventOutput {
			live = append(live, e.Text)
			// The program goes on when it is told that its line is here: with output that came later it would wait until its time is over.
			if _, err := in.Write([]byte(strings.Repeat("\n", strings.Count(e.Text, "\n")))); err != nil {
				t.Fatal(err)
			}
		}
		if e.Final {
			wantSuccess(t, *e.Result)
		}
	}
	if got := strings.Join(live, ""); got != "line 0\nline 1\nline 2\nline 3\n" {
		t.Errorf("live output %q", got)
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

// A guest that is asked for the time says one between the question and the answer, by this host's clock.
func TestClockIsRight(t *testing.T) {
	c := up(t)
	const off = 100 * time.Millisecond
	const questions = 10
	spec := python("import os, sys, time\nos.write(1, b'ready\\n')\nfor _ in sys.stdin:\n    os.write(1, b'%.6f\\n' % time.time())\n")
	spec.StdinStream, spec.Limits.WallMS = true, 600_000
	job := submit(t, c, spec)
	in := c.Stdin(t.Context(), job)
	var line string
	var asked time.Time
	answers, best := 0, time.Hour
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Final {
			wantSuccess(t, *e.Result)
		}
		if e.Type != jobs.EventOutput {
			continue
		}
		now := time.Now()
		if line += e.Text; !strings.HasSuffix(line, "\n") {
			continue
		}
		if !asked.IsZero() {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
			if err != nil {
				t.Fatal(err)
			}
			if guest := time.UnixMicro(int64(seconds * 1e6)); guest.Before(asked.Add(-off)) || guest.After(now.Add(off)) {
				t.Errorf("the guest's clock said %s between %s and %s of the host's", guest, asked, now)
			}
			answers++
			best = min(best, now.Sub(asked))
		}
		line = ""
		if answers == questions {
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		asked = time.Now()
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
	}
	if answers != questions {
		t.Errorf("%d answers to %d questions", answers, questions)
	}
	t.Logf("the shortest answer took %s: so well is the clock known, and %s", best, off)
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

// The state directory may be named from where Paddock is started, for machines of every kind.
func TestRelativeStateDir(t *testing.T) {
	for _, driver := range []string{"hostproc", "qemu"} {
		p := start(t, harness.Options{Driver: driver, Dir: "state", Cwd: shortDir(t), Args: []string{"--images", "base"}})
		wantSuccess(t, runJob(t, connect(t, p), longJob(0)))
	}
}
