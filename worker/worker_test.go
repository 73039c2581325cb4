package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
	"github.com/paddockvm/paddock/worker"
)

func TestMain(m *testing.M) {
	if dir, url, ok := strings.Cut(os.Getenv(workerEnv), " "); ok {
		if err := beWorker(dir, url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leak.VerifyTestMain(m, leak.NATS()...)
}

// rig is a worker on the in-process driver, its fleet and its board.
type rig struct {
	*fleet
	board *board
	cfg   worker.Config
	log   io.Writer
	stop  func() error // drains and gives what Run returned
	abort context.CancelFunc
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{fleet: newFleet(), board: &board{}, log: zerolog.NewTestWriter(t)}
	driver := inproc.New(func(ctx context.Context, c net.Conn) { guestagent.InProcess(ctx, c) })
	r.cfg = worker.Config{
		Name: "w", Dir: t.TempDir(), Driver: driver, Images: catalog{driver: driver.Name()}, Dispatcher: r.fleet, Events: r.board,
		Capacity: jobs.Resources{VCPUs: 4, MemoryMiB: 1024}, Ready: 2, Prepared: 1, Warm: []string{"base"},
		BeatEvery: 20 * time.Millisecond, CancelGrace: 200 * time.Millisecond, GuestSlack: 200 * time.Millisecond,
	}
	return r
}

// A job's first program is sent with the time, whatever the machine's clock has become while it waited; the clock is the job's own from then on.
func TestFirstProgramHasTheTime(t *testing.T) {
	r := newRig(t)
	sent := make(chan int64, 2)
	r.cfg.Driver = inproc.New(func(ctx context.Context, c net.Conn) {
		converse(ctx, c, func(ctx context.Context, s *wire.Stream, q *wire.Request) wire.Reply {
			if q.Op != wire.OpExec {
				return answer(ctx, s, q)
			}
			sent <- q.Exec.TimeUnixNS
			return wire.Reply{Exit: &wire.Exit{}}
		})
	})
	r.run(t)
	before := time.Now().UnixNano()
	if res := r.report(t, r.put(steps([]string{"true"}, []string{"true"})).Job).Result; !res.Success() {
		t.Fatalf("ended %s: %s", res.Ending, res.Reason)
	}
	if first, second := <-sent, <-sent; first < before || first > time.Now().UnixNano() || second != 0 {
		t.Errorf("%d was sent after %d, then %d", first, before, second)
	}
}

// run starts the worker and ends it with the test.
func (r *rig) run(t *testing.T) *rig {
	t.Helper()
	w, err := worker.New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, abort := context.WithCancel(zerolog.New(r.log).WithContext(context.WithoutCancel(t.Context())))
	drain, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Run(ctx, drain) }()
	var err2 error
	stopped := false
	r.abort = abort
	r.stop = func() error {
		if !stopped {
			stopped = true
			close(drain)
			err2 = <-done
			abort()
		}
		return err2
	}
	t.Cleanup(func() {
		abort()
		if err := r.stop(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error("Run:", err)
		}
	})
	return r
}

func steps(argv ...[]string) jobs.Spec {
	var s jobs.Spec
	for _, a := range argv {
		s.Steps = append(s.Steps, jobs.Step{Cmd: a[0], Args: a[1:]})
	}
	return s
}

func TestRunsJobs(t *testing.T) {
	r := newRig(t).run(t)
	l := r.put(steps([]string{"echo", "hello"}, []string{"true"}))
	rep := r.report(t, l.Job)
	if !rep.Result.Success() || len(rep.Result.Steps) != 2 || rep.Result.Steps[0].Stdout.Text != "hello\n" {
		t.Errorf("result %+v", rep.Result)
	}
	if rep.Result.Template != "template-digest" || rep.Result.Worker != "w" || rep.Result.Machine == "" {
		t.Errorf("result without its marks: %+v", rep.Result)
	}
	events := r.board.of(l.Job)
	for i, e := range events {
		if e.Seq != int64(i+1) || e.Attempt != 1 || e.Job != l.Job {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	if rep.Events != int64(len(events)) {
		t.Errorf("reported %d events, published %d", rep.Events, len(events))
	}
	if events[0].State != jobs.StateRunning {
		t.Errorf("first event %+v", events[0])
	}
}

func TestFailureStopsTheSteps(t *testing.T) {
	r := newRig(t).run(t)
	l := r.put(steps([]string{"false"}, []string{"echo", "never"}))
	res := r.report(t, l.Job).Result
	if res.Ending != jobs.Exited || *res.ExitCode != 1 || len(res.Steps) != 1 {
		t.Errorf("result %+v", res)
	}
	l = r.put(steps([]string{"/no/such"}))
	if res := r.report(t, l.Job).Result; res.Ending != jobs.StartFailed || res.Class != jobs.ClassUser {
		t.Errorf("result %+v", res)
	}
}

func TestManyAtOnce(t *testing.T) {
	r := newRig(t).run(t)
	var ids []string
	for range 100 {
		ids = append(ids, r.put(steps([]string{"true"})).Job)
	}
	for _, id := range ids {
		if res := r.report(t, id).Result; !res.Success() {
			t.Fatalf("%s: %+v", id, res)
		}
	}
	r.set(func() {
		for _, q := range r.requests {
			if q.Free.VCPUs > 4 || q.Slots > 4 {
				t.Errorf("asked for more than there is: %+v", q)
			}
		}
	})
}

func TestCancelAndDrop(t *testing.T) {
	r := newRig(t).run(t)
	canceled, dropped := r.put(steps([]string{"sleep", "100"})), r.put(steps([]string{"sleep", "100"}))
	r.set(func() { r.cancel[canceled.Job] = true; r.drop[dropped.Job] = true })
	if res := r.report(t, canceled.Job).Result; res.Ending != jobs.Canceled {
		t.Errorf("canceled job: %+v", res)
	}
	// The dropped one ends silently, and its slot is free again.
	r.until(t, "the dropped job's end", func() bool {
		last := r.beats[len(r.beats)-1]
		return len(last.Running) == 0
	})
	r.set(func() {
		for _, rep := range r.reports {
			if rep.Job == dropped.Job {
				t.Errorf("reported a job that was dropped: %+v", rep)
			}
		}
	})
}

// spooled waits until a result is in the spool.
func (r *rig) spooled(t *testing.T) {
	t.Helper()
	settled(t, "a result is in the spool", func() bool {
		files, err := filepath.Glob(filepath.Join(r.cfg.Dir, "spool", "*.json"))
		return err == nil && len(files) > 0
	})
}

// A result that no dispatcher takes waits on disk and outlives the worker.
func TestResultOutlivesTheWorker(t *testing.T) {
	r := newRig(t)
	r.set(func() { r.deaf = true })
	r.run(t)
	l := r.put(steps([]string{"echo", "kept"}))
	r.spooled(t)
	// A copy of the directory as a crash would leave it, with a torn file in it, is a new worker's.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(r.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "spool", "new-torn"), []byte(`{"jo`), 0o600); err != nil {
		t.Fatal(err)
	}
	next := newRig(t)
	next.fleet.holds[l.Job] = l.Held
	next.cfg.Dir = dir
	next.run(t)
	if rep := next.report(t, l.Job); rep.Result.Steps[0].Stdout.Text != "kept\n" {
		t.Errorf("report %+v", rep)
	}
	if err := next.stop(); err != nil { // it has gone through the spool by then
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "spool"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v %v", left, err)
	}
	r.set(func() { r.deaf = false })
}

func TestDrainFinishesWhatRuns(t *testing.T) {
	r := newRig(t).run(t)
	l := r.put(steps([]string{"sleep", "2"}))
	r.until(t, "the job runs", func() bool { return len(r.beats) > 0 && len(r.beats[len(r.beats)-1].Running) == 1 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if res := r.report(t, l.Job).Result; !res.Success() {
		t.Errorf("drained job: %+v", res)
	}
}

func TestAbortReportsWhatItLost(t *testing.T) {
	r := newRig(t).run(t)
	l := r.put(steps([]string{"sleep", "100"}))
	r.until(t, "the job runs", func() bool { return len(r.beats) > 0 && len(r.beats[len(r.beats)-1].Running) == 1 })
	r.abort()
	if res := r.report(t, l.Job).Result; res.Ending != jobs.WorkerLost || res.Class != jobs.ClassInfra {
		t.Errorf("aborted job: %+v", res)
	}
}

// Events that cannot be published hold the report back, not the program's output away.
func TestEventsAreKeptWhileTheBrokerIsAway(t *testing.T) {
	r := newRig(t).run(t)
	r.board.mu.Lock()
	r.board.broken = true
	r.board.mu.Unlock()
	l := r.put(steps([]string{"echo", "late"}))
	time.Sleep(150 * time.Millisecond)
	r.set(func() {
		if len(r.reports) > 0 {
			t.Error("reported before the events were stored")
		}
	})
	r.board.mu.Lock()
	r.board.broken = false
	r.board.mu.Unlock()
	rep := r.report(t, l.Job)
	var out strings.Builder
	for _, e := range r.board.of(l.Job) {
		out.WriteString(e.Text)
	}
	if out.String() != "late\n" || rep.Events != int64(len(r.board.of(l.Job))) {
		t.Errorf("events hold %q, report says %d", out.String(), rep.Events)
	}
}

func TestNoTemplateIsImageFailed(t *testing.T) {
	r := newRig(t)
	r.cfg.Images = catalog{driver: "inproc", err: errors.New("the root file is corrupt")}
	r.cfg.Warm = nil
	r.run(t)
	l := r.put(steps([]string{"true"}))
	if res := r.report(t, l.Job).Result; res.Ending != jobs.ImageFailed || !strings.Contains(res.Reason, "corrupt") {
		t.Errorf("result %+v", res)
	}
}

// A result stays within what a message carries, whatever the steps print; the last steps' output is what it keeps.
func TestResultFitsIntoAMessage(t *testing.T) {
	r := newRig(t).run(t)
	var argv [][]string
	for range jobs.MaxSteps {
		argv = append(argv, []string{"echo", strings.Repeat("\x01", jobs.MaxResultOutput)}) // six bytes each in JSON
	}
	res := r.report(t, r.put(steps(argv...)).Job).Result
	b, err := json.Marshal(res)
	if err != nil || len(b) > jobs.MaxResultBytes {
		t.Fatalf("a result of %d bytes: %v", len(b), err)
	}
	if !res.Success() || len(res.Steps) != jobs.MaxSteps {
		t.Fatalf("ended %s with %d steps", res.Ending, len(res.Steps))
	}
	first, last := res.Steps[0].Stdout, res.Steps[jobs.MaxSteps-1].Stdout
	if len(last.Text) != jobs.MaxResultOutput || last.Bytes != jobs.MaxResultOutput+1 || first.Text != "" || first.Bytes != last.Bytes {
		t.Errorf("the first step's head has %d bytes of %d, the last's %d of %d", len(first.Text), first.Bytes, len(last.Text), last.Bytes)
	}
}

// clumsy is an object store with a bug in it.
type clumsy struct{ worker.Objects }

// A panic costs its attempt, and neither the worker nor the machine.
func TestPanicCostsOneAttempt(t *testing.T) {
	r := newRig(t)
	r.cfg.Objects = clumsy{} // a nil interface within: calling it panics
	r.run(t)
	s := steps([]string{"true"})
	s.Files = []jobs.File{{Path: "x", Object: &jobs.ObjectRef{Name: "x", SHA256: strings.Repeat("0", 64)}}}
	if res := r.report(t, r.put(s).Job).Result; res.Ending != jobs.HostResources || !strings.Contains(res.Reason, "bug") {
		t.Errorf("ended %s: %s", res.Ending, res.Reason)
	}
	if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; !res.Success() {
		t.Errorf("the next ended %s: %s", res.Ending, res.Reason)
	}
}

// A dispatcher that is away for longer than a lease still gets the result when it comes back.
func TestReportWaitsForTheDispatcher(t *testing.T) {
	r := newRig(t)
	r.ttl = 300 * time.Millisecond
	r.set(func() { r.deaf = true })
	r.run(t)
	l := r.put(steps([]string{"sleep", "0.1"}))
	r.spooled(t)
	time.Sleep(time.Second) // its report fails past the lease
	r.set(func() { r.away = true })
	time.Sleep(2 * r.ttl)
	r.set(func() { r.away, r.deaf = false, false })
	if res := r.report(t, l.Job).Result; !res.Success() {
		t.Errorf("ended %s", res.Ending)
	}
	settled(t, "nothing is left in the spool", func() bool {
		left, err := os.ReadDir(filepath.Join(r.cfg.Dir, "spool"))
		return err == nil && len(left) == 0
	})
}

// An image that is built anew while the worker runs is what the next job gets; one whose template is gone is made again.
func TestImageIsBuiltAnew(t *testing.T) {
	r := newRig(t)
	images := &changing{catalog: catalog{driver: r.cfg.Driver.Name()}, digest: "first"}
	r.cfg.Images = images
	r.run(t)
	for _, want := range []string{"first", "first", "second"} {
		if want == "second" {
			images.mu.Lock()
			images.digest = want
			images.mu.Unlock()
		}
		if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; !res.Success() || res.Template != "template of "+want {
			t.Errorf("ended %s with the %s, want that of %s", res.Ending, res.Template, want)
		}
	}
	if n := images.templates.Load(); n != 2 {
		t.Errorf("%d templates were asked for, want 2", n)
	}
}

// telling is a catalog that tells which templates it has.
type telling struct {
	catalog
	mu   sync.Mutex
	here map[string][]jobs.Shape
}

func (c *telling) set(here map[string][]jobs.Shape) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.here = here
}

func (c *telling) Templates() map[string][]jobs.Shape {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.here
}

// Each heartbeat says which templates are there then, the first too; that there are none is said, and is not the same as nothing said.
func TestHeartbeatTellsTemplates(t *testing.T) {
	r := newRig(t)
	last := func() (b jobs.Beat) {
		r.fleet.set(func() { b = r.beats[len(r.beats)-1] })
		return b
	}
	images := &telling{catalog: catalog{driver: r.cfg.Driver.Name()}}
	own := map[string][]jobs.Shape{"base": {{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 64}}, {Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 128}, NIC: true}}}
	images.set(own)
	r.cfg.Images = images
	r.run(t)
	r.until(t, "first heartbeat", func() bool { return len(r.beats) > 0 })
	r.fleet.set(func() {
		if diff := cmp.Diff(own, r.beats[0].Templates); diff != "" {
			t.Errorf("first heartbeat (-want +got):\n%s", diff)
		}
	})
	for _, here := range []map[string][]jobs.Shape{{"base": own["base"][1:]}, {}, own, nil} {
		images.set(here)
		r.until(t, fmt.Sprint("heartbeat that tells of ", here), func() bool { return cmp.Equal(here, r.beats[len(r.beats)-1].Templates) })
		b, err := json.Marshal(last())
		var read jobs.Beat
		if err = errors.Join(err, json.Unmarshal(b, &read)); err != nil || !cmp.Equal(here, read.Templates) {
			t.Errorf("%s tells of %v, %v; want %v", b, read.Templates, err, here)
		}
	}
}

// changing is a catalog whose image can be built anew.
type changing struct {
	catalog
	templates atomic.Int64
	mu        sync.Mutex
	digest    string
}

func (c *changing) now() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.digest
}

func (c *changing) Offer(name string) (jobs.OfferedImage, bool) { return offered(c, name) }

func (c *changing) Offered() []jobs.OfferedImage {
	o := c.catalog.Offered()
	o[0].Digest = c.now()
	return o
}

func (c *changing) Template(context.Context, string, jobs.Shape) (vmm.Template, string, error) {
	c.templates.Add(1)
	return vmm.Template{Driver: c.driver}, "template of " + c.now(), nil
}
