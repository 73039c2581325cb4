// Package ledgertest is the conformance suite of ledger.Store: what every ledger must do, one at a time and with many callers at once.
//
// It may import ledger, jobs and what tests need, and nothing else of Paddock.
package ledgertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
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
		"admit key before": admitKeyBefore,
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
		"forget needed":    forgetNeeded,
		"batches":          batches,
		"batch keys":       batchKeys,
		"batch jobs":       batchJobs,
		"batch taken":      batchTaken,
		"batch list":       batchList,
		"batch cancel":     batchCancel,
		"batch large":      batchLarge,
		"batch pieces":     batchPieces,
		"schedules":        schedules,
		"schedules due":    schedulesDue,
		"redrive":          redrive,
		"drop":             drop,
		"outcomes":         outcomes,
		"fleet":            fleet,
		"hooks":            hooks,
		"leader":           leader,
		"named objects":    namedObjects,
		"export":           export,
		"import refuses":   importRefuses,
		"reopen":           reopen,
		"race admit":       raceAdmit,
		"race lease":       raceLease,
		"race end":         raceEnd,
		"race queued":      raceQueued,
		"race register":    raceRegister,
		"race batch":       raceBatch,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(newSuite(t, open))
		})
	}
}

// newSuite is a test that leads, until its end.
func newSuite(t *testing.T, open func(t *testing.T) ledger.Store) *suite {
	t.Helper()
	s := &suite{T: t, open: open, now: time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC)}
	s.begin()
	t.Cleanup(s.close)
	return s
}

// suite is one test and its ledger.
type suite struct {
	*testing.T
	ledger.Store
	open func(t *testing.T) ledger.Store
	now  time.Time
}

// begin opens the ledger and leads.
func (s *suite) begin() {
	s.Helper()
	s.Store = s.open(s.T)
	if _, err := s.Lead(s.ctx(), "the test", time.Hour); err != nil {
		s.Fatal("lead:", err)
	}
}

func (s *suite) close() {
	if err := s.Resign(s.ctx()); err != nil {
		s.Error("resign:", err)
	}
	if err := s.Store.Close(); err != nil {
		s.Error("close:", err)
	}
}

func (s *suite) reopen() {
	s.Helper()
	s.close()
	s.begin()
}

// ctx ends when the test does, not before its clean-up.
func (s *suite) ctx() context.Context { return context.WithoutCancel(s.Context()) }

// tick moves the suite's clock on.
func (s *suite) tick() time.Time {
	s.now = s.now.Add(1500 * time.Microsecond)
	return s.now
}

// sameSet compares lists whose order says nothing.
func (s *suite) sameSet(what string, want, got []string) {
	s.Helper()
	s.same(what, slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got)))
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

// raceID is an id that needs no clock.
func raceID(n int64) string { return fmt.Sprintf("%08x-0000-7000-8000-%012x", n, n) }

// admission is a new job that sets every field that a ledger must keep.
func (s *suite) admission(tenant string) ledger.Admission {
	id := s.id()
	return s.admissionOf(tenant, id, s.now)
}

func (s *suite) admissionOf(tenant, id string, at time.Time) ledger.Admission {
	priority := 7
	spec := &jobs.Spec{
		ID: id, Image: "python", Steps: []jobs.Step{{Cmd: "true", Env: map[string]string{"A": "b\x01'\"ü"}}}, Priority: &priority,
		Labels: map[string]string{"team": "ü"}, Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 512},
	}
	return ledger.Admission{
		Job: jobs.Job{
			ID: id, Tenant: tenant, State: jobs.StateQueued, Image: spec.Image, Labels: spec.Labels, AcceptedAt: at, RunAt: at.Add(time.Second), Spec: spec,
		},
		Hash: "hash of " + id, KeyUntil: at.Add(24 * time.Hour), ExpiresAt: at.Add(time.Hour),
		Entry: ledger.Entry{
			ID: id, Tenant: tenant, Image: spec.Image, State: jobs.StateQueued, Priority: 7, Resources: spec.Resources, Network: jobs.NetworkInternet, AcceptedAt: at,
			ExpiresAt: at.Add(time.Hour), NotBefore: at.Add(time.Second), InfraLeft: 3, UserLeft: 4, Pool: "gpu", Requires: "arch=arm64,os=linux", Key: "key\x01ü", KeyLimit: 2,
			DependsOn: []string{"0190a0b0-0000-7000-8000-000000000000", "0190a0b0-0000-7000-8000-000000000001"}, Bytes: 123, Rules: true,
		},
	}
}

func (s *suite) admit(a ledger.Admission) *ledger.Taken {
	s.Helper()
	before, err := s.Taken(s.ctx(), a)
	if err != nil {
		s.Fatal("taken:", err)
	}
	taken, err := s.Admit(s.ctx(), a)
	if err != nil {
		s.Fatal("admit:", err)
	}
	if taken == nil || taken.Job.ID != "" || taken.Arriving { // else it is another tenant's
		s.same("taken, before it is admitted", taken, before)
	} else if before != nil {
		s.Errorf("another tenant's job is shown: %+v", before)
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
	specs, err := s.Lease(s.ctx(), []ledger.Lease{{Held: h, Worker: "a", Session: 4, At: at}})
	if err != nil {
		s.Fatal("lease:", err)
	}
	s.same(fmt.Sprintf("lease of %+v", h), []bool{want}, begun(specs))
	return at
}

// begun tells of each of Lease's leases whether the attempt was begun.
func begun(specs [][]byte) []bool {
	ok := make([]bool, len(specs))
	for i, spec := range specs {
		ok[i] = spec != nil
	}
	return ok
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

func (s *suite) requeue(h jobs.Held, want bool) ledger.Retry {
	s.Helper()
	r := retry(h, s.now)
	ok, err := s.Requeue(s.ctx(), h, r, again(h.Job, h.Attempt))
	if err != nil || ok != want {
		s.Errorf("requeue of %+v: %v, %v, want %v", h, ok, err, want)
	}
	return r
}

// retry is what a job gets that goes back to the queue after an attempt.
func retry(h jobs.Held, now time.Time) ledger.Retry {
	return ledger.Retry{
		NotBefore: now.Add(time.Minute), InfraLeft: 3 - h.Attempt, UserLeft: 4 - h.Attempt, FailedOn: []string{"a", fmt.Sprint("ü", h.Attempt)},
		Attempt: jobs.Attempt{Attempt: h.Attempt, Worker: "a", Ending: jobs.AgentLost, Class: jobs.ClassInfra, Reason: "a\x00b", LeasedAt: now, EndedAt: now.Add(time.Second)},
	}
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
	list, err := s.Outbox(s.ctx(), 0, limit)
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
	j.Spec, j.Attempts = nil, nil
	return j
}

func byID(a, b jobs.Job) int { return cmp.Compare(a.ID, b.ID) }
