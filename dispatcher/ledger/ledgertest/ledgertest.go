// Package ledgertest is the conformance suite of ledger.Store: what every ledger must do, one at a time and with many callers at once.
//
// It may import ledger, jobs and what tests need, and nothing else of Paddock.
package ledgertest

import (
	"cmp"
	"context"
	"fmt"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Run runs the suite. open opens the ledger of the test t: an empty one at first, and, after Close, the same again. The suite closes
// what it opens.
func Run(t *testing.T, open func(t *testing.T) ledger.Store) {
	for name, test := range map[string]func(*suite){
		"admit":            admit,
		"admit taken id":   admitTakenID,
		"admit taken key":  admitTakenKey,
		"admit key expiry": admitKeyExpiry,
		"open":             openJobs,
		"get":              get,
		"list":             list,
		"list states":      listStates,
		"lease":            lease,
		"lease canceled":   leaseCanceled,
		"running":          running,
		"finish":           finish,
		"finish canceled":  finishCanceled,
		"requeue":          requeue,
		"end queued":       endQueued,
		"cancel":           requestCancel,
		"fence":            fence,
		"sessions":         sessions,
		"outbox":           outbox,
		"forget":           forget,
		"forget workers":   forgetWorkers,
		"reopen":           reopen,
		"race admit":       raceAdmit,
		"race lease":       raceLease,
		"race end":         raceEnd,
		"race queued":      raceQueued,
		"race register":    raceRegister,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{T: t, open: open, Store: open(t), now: time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC)}
			t.Cleanup(s.close)
			test(s)
		})
	}
}

// suite is one test and its ledger.
type suite struct {
	*testing.T
	ledger.Store
	open func(t *testing.T) ledger.Store
	now  time.Time
}

func (s *suite) close() {
	if err := s.Store.Close(); err != nil {
		s.Error("close:", err)
	}
}

func (s *suite) reopen() {
	s.Helper()
	s.close()
	s.Store = s.open(s.T)
}

// ctx ends when the test does, not before its clean-up.
func (s *suite) ctx() context.Context { return context.WithoutCancel(s.Context()) }

// tick moves the suite's clock on.
func (s *suite) tick() time.Time {
	s.now = s.now.Add(1500 * time.Microsecond)
	return s.now
}

func (s *suite) same(what string, want, got any, opts ...gocmp.Option) {
	s.Helper()
	if diff := gocmp.Diff(want, got, append(opts, cmpopts.EquateEmpty())...); diff != "" {
		s.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// id is a UUIDv7, larger than those before.
func (s *suite) id() string {
	n := s.tick().UnixMicro()
	return fmt.Sprintf("%08x-%04x-7000-8000-000000000000", n>>16, n&0xffff)
}

// admission is a new job that sets every field that a ledger must keep.
func (s *suite) admission(tenant string) ledger.Admission {
	id, at := s.id(), s.now
	priority := 7
	spec := &jobs.Spec{
		ID: id, Image: "python", Steps: []jobs.Step{{Cmd: "true", Env: map[string]string{"A": "b\x01'\"ü"}}}, Priority: &priority,
		Labels: map[string]string{"team": "ü"}, Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 512},
	}
	return ledger.Admission{
		Job: jobs.Job{
			ID: id, Tenant: tenant, State: jobs.StateQueued, Image: spec.Image, Labels: spec.Labels, AcceptedAt: at, Spec: spec,
		},
		Hash: "hash of " + id, KeyUntil: at.Add(24 * time.Hour), ExpiresAt: at.Add(time.Hour),
		Entry: ledger.Entry{
			ID: id, Tenant: tenant, Image: spec.Image, State: jobs.StateQueued, Priority: 7, Resources: spec.Resources, Network: jobs.NetworkInternet, AcceptedAt: at,
			ExpiresAt: at.Add(time.Hour), InfraLeft: 3,
		},
	}
}

func (s *suite) admit(a ledger.Admission) *ledger.Taken {
	s.Helper()
	taken, err := s.Admit(s.ctx(), a)
	if err != nil {
		s.Fatal("admit:", err)
	}
	return taken
}

// queued is a job that was admitted.
func (s *suite) queued(tenant string) ledger.Admission {
	s.Helper()
	a := s.admission(tenant)
	if taken := s.admit(a); taken != nil {
		s.Fatalf("a new job was taken: %+v", taken)
	}
	return a
}

// leased is a job in the hands of worker "a", with the epoch 10.
func (s *suite) leased(tenant string) (ledger.Admission, jobs.Held) {
	s.Helper()
	a := s.queued(tenant)
	h := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 10}
	s.lease(h, true)
	return a, h
}

// lease leases one job to worker "a" in session 4.
func (s *suite) lease(h jobs.Held, want bool) time.Time {
	s.Helper()
	at := s.tick()
	ok, err := s.Lease(s.ctx(), []ledger.Lease{{Held: h, Worker: "a", Session: 4, At: at}})
	if err != nil {
		s.Fatal("lease:", err)
	}
	s.same(fmt.Sprintf("lease of %+v", h), []bool{want}, ok)
	return at
}

func (s *suite) finish(h jobs.Held, want bool) jobs.Result {
	s.Helper()
	return s.finishAs(h, jobs.StateEnded, s.success(h.Attempt), want)
}

func (s *suite) finishAs(h jobs.Held, state jobs.State, r jobs.Result, want bool) jobs.Result {
	s.Helper()
	ok, err := s.Finish(s.ctx(), h, state, r, final(h.Job, h.Attempt, r))
	if err != nil || ok != want {
		s.Errorf("finish of %+v: %v, %v, want %v", h, ok, err, want)
	}
	return r
}

func (s *suite) requeue(h jobs.Held, want bool) time.Time {
	s.Helper()
	notBefore := s.now.Add(time.Minute)
	ok, err := s.Requeue(s.ctx(), h, notBefore, again(h.Job, h.Attempt))
	if err != nil || ok != want {
		s.Errorf("requeue of %+v: %v, %v, want %v", h, ok, err, want)
	}
	return notBefore
}

func (s *suite) endQueued(id string, attempt int, want bool) jobs.Result {
	s.Helper()
	r := jobs.Result{Ending: jobs.Canceled, Class: jobs.ClassPolicy, Reason: "canceled", Attempt: attempt, EndedAt: s.tick()}
	ok, err := s.EndQueued(s.ctx(), id, attempt, jobs.StateEnded, r, final(id, attempt, r))
	if err != nil || ok != want {
		s.Errorf("end of %s queued after attempt %d: %v, %v, want %v", id, attempt, ok, err, want)
	}
	return r
}

func (s *suite) cancel(tenant, id string) jobs.Job {
	s.Helper()
	j, err := s.RequestCancel(s.ctx(), tenant, id)
	if err != nil {
		s.Fatal("cancel:", err)
	}
	return j
}

func (s *suite) job(tenant, id string) jobs.Job {
	s.Helper()
	j, err := s.Get(s.ctx(), tenant, id)
	if err != nil {
		s.Fatal("get:", err)
	}
	return j
}

// entry is a job that is open; nil where it is not.
func (s *suite) entry(id string) *ledger.Entry {
	s.Helper()
	for _, e := range s.entries() {
		if e.ID == id {
			return &e
		}
	}
	return nil
}

func (s *suite) entries() []ledger.Entry {
	s.Helper()
	list, err := s.Store.Open(s.ctx())
	if err != nil {
		s.Fatal("open jobs:", err)
	}
	return list
}

func (s *suite) outgoing(limit int) []ledger.Outgoing {
	s.Helper()
	list, err := s.Outbox(s.ctx(), limit)
	if err != nil {
		s.Fatal("outbox:", err)
	}
	return list
}

// told are the events in the outbox.
func (s *suite) told() (events []jobs.Event) {
	s.Helper()
	for _, o := range s.outgoing(1000) {
		events = append(events, o.Event)
	}
	return events
}

// success is a result with something in every corner.
func (s *suite) success(attempt int) jobs.Result {
	zero := 0
	return jobs.Result{
		Ending: jobs.Exited, Class: jobs.ClassUser, ExitCode: &zero, Attempt: attempt, Worker: "a", EndedAt: s.tick(), Degraded: []string{"seccomp"},
		Steps: []jobs.StepResult{{Name: "0", Ending: jobs.Exited, ExitCode: &zero, Stdout: jobs.Output{Content: jobs.Content{Base64: []byte{0xff, 0}}, Bytes: 2}}},
		Usage: jobs.Usage{WallMS: 1.25},
	}
}

func final(id string, attempt int, r jobs.Result) jobs.Event {
	return jobs.Event{Type: jobs.EventResult, Job: id, Tenant: "t", Attempt: attempt, Seq: 4, Time: r.EndedAt, Final: true, Result: &r}
}

func again(id string, attempt int) jobs.Event {
	return jobs.Event{Type: jobs.EventState, Job: id, Tenant: "t", Attempt: attempt, Seq: 4, State: jobs.StateQueued, Reason: "ü"}
}

// unspecced is a job as lists and Taken show it.
func unspecced(j jobs.Job) jobs.Job {
	j.Spec = nil
	return j
}

func byID(a, b jobs.Job) int { return cmp.Compare(a.ID, b.ID) }
