package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

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

// rigged runs a test with a dispatcher in a synctest bubble.
func rigged(t *testing.T, cfg dispatcher.Config, test func(r *rig)) {
	t.Helper()
	riggedAt(t, time.Time{}, cfg, test)
}

// riggedAt is rigged for a test that begins at a time, or when bubbles do where that is earlier.
func riggedAt(t *testing.T, at time.Time, cfg dispatcher.Config, test func(r *rig)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(at))
		r := &rig{T: t, cfg: cfg, disk: newDisk(t), board: newBoard(t)}
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

// restartWithoutOffers restarts on a ledger in which a dispatcher of the version before has not written what workers offer.
func (r *rig) restartWithoutOffers() {
	r.Helper()
	r.kill()
	if _, err := r.disk.db.Exec(`UPDATE workers SET offer = X''`); err != nil {
		r.Fatal(err)
	}
	r.start()
}

// loseAnswer lets the ledger's next answer to an operation be lost.
func (r *rig) loseAnswer(op string) {
	var lost atomic.Bool
	r.store.after(func(done string) error {
		if done == op && lost.CompareAndSwap(false, true) {
			return errDisk
		}
		return nil
	})
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
	r.ordered(id)
}

// ordered checks that viewers see attempt after attempt, and each one's events from 1 without gaps and repeats.
func (r *rig) ordered(id string) {
	r.Helper()
	attempt, seq := 0, int64(0)
	for _, e := range r.board.of(id) {
		if e.Attempt > attempt {
			attempt, seq = e.Attempt, 0
		}
		if seq++; e.Attempt != attempt || e.Seq != seq {
			r.Errorf("job %s: the event (%d, %d) where (%d, %d) is due, of %+v", id, e.Attempt, e.Seq, attempt, seq, r.board.of(id))
			return
		}
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
	name     string
	instance string
	session  int64
	images   []string
	networks []string
	// of the images' own templates those that it has; nil: it does not say
	templates []string
}

var size = jobs.Resources{VCPUs: 8, MemoryMiB: 8192}

// worker is one that has registered, with the images it has; "base" where none is named.
func (r *rig) worker(name string, images ...string) *hand {
	r.Helper()
	if images == nil {
		images = []string{"base"}
	}
	h := &hand{rig: r, name: name, images: images}
	h.beat()
	return h
}

func (h *hand) beat(running ...jobs.Held) jobs.BeatReply {
	h.Helper()
	reply, err := h.Beat(h.Context(), h.heartbeat(running...))
	if err != nil {
		h.Fatal("beat:", err)
	}
	h.session = reply.Session
	synctest.Wait() // until the ledger knows what runs
	return reply
}

func (h *hand) heartbeat(running ...jobs.Held) jobs.Beat {
	b := jobs.Beat{Worker: h.name, Instance: h.instance, Session: h.session, Capacity: size, Running: running, Networks: h.networks}
	if h.templates != nil {
		b.Templates = map[string][]jobs.Shape{}
	}
	for _, i := range h.templates {
		b.Templates[i] = []jobs.Shape{{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}
	}
	for _, i := range h.images {
		b.Images = append(b.Images, jobs.OfferedImage{Name: i, NoRoot: i == "rootless", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}})
	}
	return b
}

// drain beats as a worker that takes no more.
func (h *hand) drain(running ...jobs.Held) {
	h.Helper()
	b := h.heartbeat(running...)
	b.Draining = true
	if _, err := h.Beat(h.Context(), b); err != nil {
		h.Fatal("beat:", err)
	}
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

// prints publishes an attempt's output, one event a text, from the sequence number on.
func (h *hand) prints(l jobs.Lease, seq int64, texts ...string) {
	h.Helper()
	for i, text := range texts {
		e := jobs.Event{Type: jobs.EventOutput, Job: l.Job, Tenant: l.Tenant, Attempt: l.Attempt, Seq: seq + int64(i), Stream: jobs.Stdout, Content: jobs.Content{Text: text}}
		if err := h.board.Publish(h.Context(), e); err != nil {
			h.Fatal("publish:", err)
		}
	}
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
