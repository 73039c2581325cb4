package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// board is a dispatcher.Publisher that behaves: an event that it has is not taken again, and two that are one by (job, attempt, seq)
// and differ are a fault of the test, because viewers would see only the first.
type board struct {
	t      *testing.T
	mu     sync.Mutex
	events map[string][]jobs.Event // by job
	dead   map[string][]string     // reasons, by job
	// before may refuse an operation, after may refuse it once it is done: only the answer is lost. Both may be nil.
	before, after func(op string) error
}

var _ dispatcher.Publisher = (*board)(nil)

func newBoard(t *testing.T) *board {
	return &board{t: t, events: map[string][]jobs.Event{}, dead: map[string][]string{}}
}

func (b *board) do(op string, change func()) error {
	if b.before != nil {
		if err := b.before(op); err != nil {
			return err
		}
	}
	b.mu.Lock()
	change()
	b.mu.Unlock()
	if b.after != nil {
		return b.after(op)
	}
	return nil
}

func (b *board) Publish(_ context.Context, events ...jobs.Event) error {
	return b.do("publish", func() {
		for _, e := range events {
			n := slices.IndexFunc(b.events[e.Job], func(o jobs.Event) bool { return o.Attempt == e.Attempt && o.Seq == e.Seq })
			if n < 0 {
				b.events[e.Job] = append(b.events[e.Job], e)
			} else if diff := gocmp.Diff(b.events[e.Job][n], e); diff != "" {
				b.t.Errorf("job %s: two events have attempt %d and seq %d, the second is lost (-first +second):\n%s", e.Job, e.Attempt, e.Seq, diff)
			}
		}
	})
}

func (b *board) LastSeq(_ context.Context, _, job string, attempt int) (last int64, err error) {
	err = b.do("last seq", func() {
		for _, e := range b.events[job] {
			if e.Attempt == attempt {
				last = max(last, e.Seq)
			}
		}
	})
	return last, err
}

func (b *board) DeadLetter(_ context.Context, j jobs.Job, reason string) error {
	return b.do("dead letter", func() { b.dead[j.ID] = append(b.dead[j.ID], reason) })
}

// of gives a job's events.
func (b *board) of(job string) []jobs.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events[job])
}

// finals gives a job's final events.
func (b *board) finals(job string) []jobs.Event {
	return slices.DeleteFunc(b.of(job), func(e jobs.Event) bool { return !e.Final })
}

func (b *board) buried(job string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.dead[job])
}

// rig is a dispatcher in a bubble, over a ledger that outlives it.
type rig struct {
	*testing.T
	*dispatcher.Dispatcher
	cfg   dispatcher.Config
	disk  *disk
	store *memory
	board *board
	kill  func() // the dispatcher dies: its ledger takes no more, and Run has returned
}

// bubble runs a test with a dispatcher in a synctest bubble.
func bubble(t *testing.T, cfg dispatcher.Config, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{T: t, cfg: cfg, disk: newDisk(), board: newBoard(t)}
		r.start()
		defer func() { r.kill() }()
		test(r)
	})
}

// start begins a dispatcher's life, and waits until it has read the ledger.
func (r *rig) start() {
	r.Helper()
	r.store = &memory{disk: r.disk}
	r.run()
	synctest.Wait()
}

func (r *rig) run() {
	r.Helper()
	store := r.store
	r.cfg.Store, r.cfg.Events = store, r.board
	d, err := dispatcher.New(r.cfg)
	if err != nil {
		r.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(r.Context()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	r.Dispatcher = d
	r.kill = sync.OnceFunc(func() {
		_ = store.Close()
		stop()
		if err := <-done; err != nil {
			r.Error("run:", err)
		}
	})
}

// restart kills the dispatcher and starts another over what it left.
func (r *rig) restart() {
	r.Helper()
	r.kill()
	r.start()
}

// code is the error's code; empty for no error, "?" for one that clients could not read.
func code(err error) jobs.Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return "?"
}

func (r *rig) wantCode(what string, want jobs.Code, err error) {
	r.Helper()
	if got := code(err); got != want {
		r.Errorf("%s: code %q (%v), want %q", what, got, err, want)
	}
}

func spec() *jobs.Spec { return &jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}} }

func retries(n int) *jobs.Spec {
	s := spec()
	s.InfraRetries = &n
	return s
}

// admit takes a job in, which must be new.
func (r *rig) admit(s *jobs.Spec) jobs.Job {
	r.Helper()
	j, duplicate, err := r.Admit(r.Context(), "t", s)
	if err != nil || duplicate {
		r.Fatalf("admit: duplicate %v, %v", duplicate, err)
	}
	return j
}

func (r *rig) job(id string) jobs.Job {
	r.Helper()
	j, err := r.Get(r.Context(), "t", id)
	if err != nil {
		r.Fatal("get:", err)
	}
	return j
}

// ended checks that a job has ended so, with one final event that is its last and says the same.
func (r *rig) ended(id string, state jobs.State, ending jobs.Ending) {
	r.Helper()
	synctest.Wait()
	j := r.job(id)
	if j.State != state || j.Result == nil || j.Result.Ending != ending || j.Result.Class != ending.Class() || j.EndedAt.IsZero() {
		r.Errorf("job %s is %s with the result %+v, want %s as %s", id, j.State, j.Result, state, ending)
		return
	}
	finals, all := r.board.finals(id), r.board.of(id)
	if len(finals) != 1 || !all[len(all)-1].Final {
		r.Errorf("job %s has %d final events among %+v, want one, the last", id, len(finals), all)
		return
	}
	if diff := gocmp.Diff(j.Result, finals[0].Result); diff != "" {
		r.Errorf("result of %s (-ledger +event):\n%s", id, diff)
	}
}

func (r *rig) stands(id string, want jobs.State) {
	r.Helper()
	synctest.Wait()
	if j := r.job(id); j.State != want {
		r.Errorf("job %s is %s, want %s", id, j.State, want)
	}
}

// hand is a worker in the test's hand.
type hand struct {
	*rig
	name    string
	session int64
	images  []string
}

var size = jobs.Resources{VCPUs: 8, MemoryMiB: 8192}

// worker is one that has registered, with the images it has; "base" where none is named.
func (r *rig) worker(name string, images ...string) *hand {
	r.Helper()
	if images == nil {
		images = []string{"base"}
	}
	h := &hand{rig: r, name: name, images: images}
	h.session = h.beat().Session
	return h
}

func (h *hand) beat(running ...jobs.Held) jobs.BeatReply {
	h.Helper()
	b := jobs.Beat{Worker: h.name, Session: h.session, Capacity: size, Running: running}
	for _, i := range h.images {
		b.Images = append(b.Images, jobs.OfferedImage{Name: i, Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}})
	}
	reply, err := h.Beat(h.Context(), b)
	if err != nil {
		h.Fatal("beat:", err)
	}
	return reply
}

// live beats every 2 s for so long.
func (h *hand) live(d time.Duration, running ...jobs.Held) {
	h.Helper()
	for end := time.Now().Add(d); ; time.Sleep(min(2*time.Second, time.Until(end))) {
		if h.beat(running...); !time.Now().Before(end) {
			return
		}
	}
}

func (h *hand) request(slots int, wait time.Duration) jobs.LeaseRequest {
	return jobs.LeaseRequest{Worker: h.name, Session: h.session, Slots: slots, Free: size, WaitMS: wait.Milliseconds()}
}

// lease asks once.
func (h *hand) lease(slots int, wait time.Duration) []jobs.Lease {
	h.Helper()
	reply, err := h.Lease(h.Context(), h.request(slots, wait))
	if err != nil {
		h.Fatal("lease:", err)
	}
	return reply.Leases
}

// one leases one job, asking and beating as a worker does, for a minute at most.
func (h *hand) one() jobs.Lease {
	h.Helper()
	for range 30 {
		h.beat()
		if got := h.lease(1, 2*time.Second); len(got) == 1 {
			return got[0]
		}
	}
	h.Fatal("no job came within a minute")
	return jobs.Lease{}
}

// report sends a result of an attempt that had published nothing.
func (h *hand) report(l jobs.Lease, ending jobs.Ending) jobs.ReportReply {
	h.Helper()
	return h.send(l, jobs.Report{Result: jobs.Result{Ending: ending, Reason: fmt.Sprintf("by %s, attempt %d", h.name, l.Attempt)}})
}

func (h *hand) send(l jobs.Lease, r jobs.Report) jobs.ReportReply {
	h.Helper()
	r.Worker, r.Session, r.Held = h.name, h.session, l.Held
	reply, err := h.Report(h.Context(), r)
	if err != nil {
		h.Fatal("report:", err)
	}
	return reply
}

// names are the jobs of leases.
func names(leases []jobs.Lease) (ids []string) {
	for _, l := range leases {
		ids = append(ids, l.Job)
	}
	return ids
}
