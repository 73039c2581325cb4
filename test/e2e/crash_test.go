package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// longJob prints at once, works for a while, and tells the attempt it is.
func longJob(seconds int) jobs.Spec {
	return jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: fmt.Sprintf("echo attempt $PADDOCK_ATTEMPT; sleep %d; echo done", seconds)}}}
}

// lostJob prints at once and does not end, but at its second attempt: what takes it away has all the time it needs.
func lostJob() jobs.Spec {
	return jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 600_000}, Steps: []jobs.Step{{
		Shell: "echo attempt $PADDOCK_ATTEMPT; [ $PADDOCK_ATTEMPT -gt 1 ] || sleep 500; echo done",
	}}}
}

// heldJob prints at once and works until it is let go, or its directory is gone. Programs on hostproc see this host's files.
func heldJob(dir string) jobs.Spec {
	return jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 600_000}, Steps: []jobs.Step{{
		Shell: fmt.Sprintf("echo attempt $PADDOCK_ATTEMPT; while [ -d %[1]s ] && [ ! -e %[1]s/go ]; do sleep 0.05; done; echo done", dir),
	}}}
}

func letGo(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// processes gives the pids below root (root included) whose command line holds the text.
func processes(t *testing.T, root int, text string) []int {
	t.Helper()
	parent := map[int]int{}
	var match []int
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		parent[pid], _ = strconv.Atoi(fields[1])
		cmd, _ := os.ReadFile(d + "/cmdline")
		if fields[0] != "Z" && bytes.Contains(cmd, []byte(text)) {
			match = append(match, pid)
		}
	}
	var below []int
	for _, pid := range match {
		for p := pid; p > 1; p = parent[p] {
			if p == root {
				below = append(below, pid)
				break
			}
		}
	}
	return below
}

// killBelow ends all processes below p whose command line holds the text, of which p sees nothing before all of them are gone: what takes the
// place of one is none that is to be ended yet.
func killBelow(t *testing.T, p *harness.Paddock, text string) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer p.Signal(syscall.SIGCONT)
	bustest.Eventually(t, "paddock is stopped", func() bool { return stoppedOrOver(p.PID()) })
	pids := processes(t, p.PID(), text)
	if len(pids) == 0 {
		t.Fatalf("no process below %d has %q in its command line", p.PID(), text)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range pids {
		bustest.Eventually(t, "what was killed is over", func() bool { return stoppedOrOver(pid) })
	}
}

// stoppedOrOver tells whether no thread of a process runs any more, nor ends yet.
func stoppedOrOver(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it is gone
		}
		if state := stat[bytes.LastIndexByte(stat, ')')+2]; state != 'T' && state != 'Z' && state != 'X' {
			return false
		}
	}
	return true
}

// family remembers a process and all below it, by pid and start time: nothing of a machine names the state directory.
func family(t *testing.T, root int) map[int]string {
	t.Helper()
	members := map[int]string{}
	for _, pid := range processes(t, root, "") {
		if at := startTime(pid); at != "" {
			members[pid] = at
		}
	}
	if len(members) < 2 {
		t.Fatalf("process %d has no children: nothing would be shown", root)
	}
	return members
}

// startTime is a process's, in the kernel's ticks; empty for one that is over.
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if f[0] == "Z" {
		return ""
	}
	return f[19]
}

// wantNothingLeft waits for the kernel's own clean-up, and checks that no member of the family lives and no mount and no machine's
// directory is left.
func wantNothingLeft(t *testing.T, dir string, members map[int]string) {
	t.Helper()
	var left []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if left = leftovers(t, dir, members); len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

func leftovers(t *testing.T, dir string, members map[int]string) (left []string) {
	t.Helper()
	for pid, at := range members {
		if startTime(pid) == at {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			left = append(left, fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, dir) {
			left = append(left, "mount "+l)
		}
	}
	run, _ := filepath.Glob(filepath.Join(dir, "run", "*"))
	return append(left, run...)
}

// wantOnce checks a job's record and its events: one final event, the last; attempts in order; sequences without gaps.
func wantOnce(t *testing.T, c *client.Client, job string) jobs.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var final *jobs.Result
	attempt, seq := 0, int64(0)
	for e, err := range c.Follow(ctx, job, client.Position{}) {
		if err != nil {
			t.Fatalf("follow %s: %v", job, err)
		}
		switch {
		case e.Attempt == attempt && e.Seq == seq+1:
		case e.Attempt > attempt && e.Seq == 1:
		default:
			t.Errorf("event %d.%d follows %d.%d", e.Attempt, e.Seq, attempt, seq)
		}
		attempt, seq = e.Attempt, e.Seq
		if e.Final {
			final = e.Result
		}
	}
	if final == nil {
		t.Fatalf("job %s has no final event", job)
	}
	rec, err := c.Get(ctx, job)
	if err != nil {
		t.Fatal(err)
	}
	if !rec.State.Terminal() || rec.Result == nil || rec.Result.Ending != final.Ending || rec.Attempt != final.Attempt {
		t.Errorf("the record says %s, attempt %d, %+v; the final event says %s, attempt %d", rec.State, rec.Attempt, rec.Result, final.Ending, final.Attempt)
	}
	return *final
}

func TestKillVMM(t *testing.T) {
	p := start(t, harness.Options{Args: []string{"--images", "base"}})
	c := connect(t, p)
	job := submit(t, c, lostJob())
	untilOutput(t, c, job)
	// Which of the machines has the job is not to be seen from here: end them all, the pool's with it.
	killBelow(t, p, "org.paddock.agent.0")
	r := wantOnce(t, c, job)
	wantSuccess(t, r)
	if r.Attempt != 2 || stdout(t, r) != "attempt 2\ndone\n" {
		t.Errorf("attempt %d said %q", r.Attempt, stdout(t, r))
	}
	members := family(t, p.PID())
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, p.Dir, members)
}

func TestKillAgent(t *testing.T) {
	p := start(t, harness.Options{Driver: "hostproc", Args: []string{"--images", "base"}})
	c := connect(t, p)
	job := submit(t, c, lostJob())
	untilOutput(t, c, job)
	killBelow(t, p, "paddock-agent")
	r := wantOnce(t, c, job)
	wantSuccess(t, r)
	if r.Attempt != 2 {
		t.Errorf("attempt %d", r.Attempt)
	}
}

func TestKillWorker(t *testing.T) {
	dir := shortDir(t)
	d := start(t, harness.Options{Command: "dispatcher"})
	c := connect(t, d)
	workerAt := func() *harness.Paddock {
		return start(t, harness.Options{Command: "worker", Dir: dir, NATS: d.URL, Args: []string{"--name", "w1", "--images", "base"}})
	}
	w := workerAt()
	running, waiting := submit(t, c, lostJob()), []string{}
	for range 3 {
		waiting = append(waiting, submit(t, c, longJob(1)))
	}
	untilOutput(t, c, running)
	members := family(t, w.PID())
	w.Kill()
	wantNothingLeft(t, dir, members)
	w = workerAt()
	back := time.Now()
	r := wantOnce(t, c, running)
	wantSuccess(t, r)
	if r.Attempt != 2 {
		t.Errorf("attempt %d", r.Attempt)
	}
	for _, job := range waiting {
		wantSuccess(t, wantOnce(t, c, job))
	}
	t.Logf("all ended %s after the worker was back", time.Since(back).Round(time.Millisecond))
	members = family(t, w.PID())
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir, members)
}

// A worker that never comes back: its job goes to another when its lease has run out. That is as long as it is by default: heartbeats are 2 s
// apart, and a worker that this machine held up for a moment would lose a shorter one, and not by its death.
func TestWorkerLost(t *testing.T) {
	d := start(t, harness.Options{Command: "dispatcher"})
	c := connect(t, d)
	first := start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--name", "first", "--images", "base"}})
	hold := shortDir(t)
	job := submit(t, c, heldJob(hold))
	untilOutput(t, c, job)
	start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--name", "second", "--images", "base"}})
	first.Kill()
	letGo(t, hold)
	lost := time.Now()
	r := wantOnce(t, c, job)
	wantSuccess(t, r)
	if r.Attempt != 2 || r.Worker != "second" {
		t.Errorf("attempt %d on %s", r.Attempt, r.Worker)
	}
	t.Logf("ended %s after the worker was lost", time.Since(lost).Round(time.Millisecond))
}

// A worker that is stopped past its lease and then goes on has lost its job; whatever it reports is fenced.
func TestPausedWorkerIsFenced(t *testing.T) {
	d := start(t, harness.Options{Command: "dispatcher"})
	c := connect(t, d)
	first := start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--name", "first", "--images", "base"}})
	hold := shortDir(t)
	job := submit(t, c, heldJob(hold))
	untilOutput(t, c, job)
	start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--name", "second", "--images", "base"}})
	if err := first.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	letGo(t, hold)
	r := wantOnce(t, c, job)
	if err := first.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wantSuccess(t, r)
	if r.Attempt != 2 || r.Worker != "second" {
		t.Errorf("attempt %d on %s", r.Attempt, r.Worker)
	}
	// The first goes on, finds itself fenced, and is of use again.
	wantSuccess(t, runJob(t, c, longJob(0)))
	wantOnce(t, c, job)
}

func TestKillEverything(t *testing.T) {
	dir := shortDir(t)
	o := harness.Options{Dir: dir, Args: []string{"--images", "base"}}
	p := start(t, o)
	c := connect(t, p)
	running := submit(t, c, lostJob())
	var waiting []string
	for range 5 {
		waiting = append(waiting, submit(t, c, longJob(1)))
	}
	untilOutput(t, c, running)
	members := family(t, p.PID())
	p.Kill()
	wantNothingLeft(t, dir, members)
	o.NATS = strings.TrimPrefix(p.URL, "nats://")
	p = start(t, o)
	c = connect(t, p)
	r := wantOnce(t, c, running)
	wantSuccess(t, r)
	if r.Attempt != 2 {
		t.Errorf("attempt %d", r.Attempt)
	}
	for _, job := range waiting {
		wantSuccess(t, wantOnce(t, c, job))
	}
	members = family(t, p.PID())
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir, members)
}

func TestCancel(t *testing.T) {
	c := up(t)
	s := longJob(600)
	s.Limits.WallMS = 600_000
	job := submit(t, c, s)
	untilOutput(t, c, job)
	if _, err := c.Cancel(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	if r := wantOnce(t, c, job); r.Ending != jobs.Canceled {
		t.Errorf("ended %s", r.Ending)
	}
	if took := time.Since(asked); took > time.Minute {
		t.Errorf("took %s of the ten minutes that it would have run", took)
	}
}
