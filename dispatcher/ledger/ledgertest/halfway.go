package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

var errCut = errors.New("cut off")

// cut is a ledger's way to commit, which is cut off before or after the n-th from when it is armed.
type cut struct {
	n     int
	after bool
	then  func() // instead of that: called after it; nil for nothing
}

func (c *cut) commit(do func() error) error {
	c.n--
	if c.n == 0 && !c.after {
		return errCut
	}
	if err := do(); err != nil || c.n != 0 {
		return err
	}
	if c.then != nil {
		c.then()
		return nil
	}
	return errCut
}

// pieces is in how many pieces large is written.
const pieces = 3

// large is a batch that is written in pieces.
func (s *suite) large(tenant string) ledger.BatchAdmission {
	b := s.batch(tenant, 300)
	b.Key = "key of " + b.ID
	for i := range b.Jobs {
		b.Jobs[i].Key = fmt.Sprint(b.Key, "/", i)
	}
	return b
}

// Halfway cuts the writing of a batch off before and after each of its transactions: with all of them it is there, and before that nothing of it, for
// anybody, and what was written can be removed, by who has written it or by who comes next. open opens the ledger of the test t, which commits with
// commit.
func Halfway(t *testing.T, open func(t *testing.T, commit func(do func() error) error) ledger.Store) {
	for n := 1; n <= pieces; n++ {
		for _, after := range []bool{false, true} {
			for _, dies := range []bool{false, true} {
				t.Run(fmt.Sprintf("piece=%d,after=%v,dies=%v", n, after, dies), func(t *testing.T) {
					c := &cut{}
					s := newSuite(t, func(t *testing.T) ledger.Store { return open(t, c.commit) })
					s.halfway(c, n, after, dies)
				})
			}
		}
	}
}

func (s *suite) halfway(c *cut, n int, after, dies bool) {
	b := s.large("t")
	before := string(s.exported())
	c.n, c.after = n, after
	if _, err := s.AdmitBatch(s.ctx(), b); !errors.Is(err, errCut) {
		s.Fatalf("admit batch: %v, want that it is cut off", err)
	}
	if dies {
		s.reopen()
	}
	want := jobs.Batch{ID: b.ID, Tenant: "t", Total: len(b.Jobs), AcceptedAt: b.AcceptedAt}
	if n == pieces && after {
		s.wantWhole(b, want)
		if err := s.DropIncoming(s.ctx()); err != nil {
			s.Error("drop incoming:", err)
		}
		s.wantWhole(b, want)
		return
	}
	s.wantNothing(b)
	if n > 1 || after {
		s.wantArriving(b)
	}
	if err := s.DropIncoming(s.ctx()); err != nil {
		s.Error("drop incoming:", err)
	}
	s.same("exported, after what was written is removed", before, string(s.exported()))
	if got := s.admitBatch(b); got.Taken {
		s.Errorf("again: taken by %+v", got.Batch)
	}
	s.wantWhole(b, want)
}

func (s *suite) wantWhole(b ledger.BatchAdmission, want jobs.Batch) {
	s.Helper()
	s.wantBatch(want)
	if n := len(s.entries()); n != len(b.Jobs) {
		s.Errorf("%d jobs are open, want %d", n, len(b.Jobs))
	}
	got := s.admitBatch(b)
	if !got.Taken || got.Batch != want {
		s.Errorf("the same again: %v, %+v", got.Taken, got.Batch)
	}
	for i, t := range got.Each {
		if t == nil || t.Job.ID != b.Jobs[i].Job.ID || t.Job.Batch != b.ID {
			s.Fatalf("job %d of the same again: %+v", i, t)
		}
	}
}

// wantNothing: of a batch that was not written to its end nothing is shown, and nothing can be done to it.
func (s *suite) wantNothing(b ledger.BatchAdmission) {
	s.Helper()
	ids := make([]string, len(b.Jobs))
	for i, a := range b.Jobs {
		ids[i] = a.Job.ID
	}
	first := ids[0]
	nothing := map[string]func() (int, error){
		"batches":      func() (int, error) { l, err := s.Batches(s.ctx(), b.Tenant, "", 10); return len(l), err },
		"open":         func() (int, error) { l, err := s.Store.Open(s.ctx()); return len(l), err },
		"open of":      func() (int, error) { l, err := s.OpenOf(s.ctx(), ids); return len(l), err },
		"outcomes":     func() (int, error) { l, err := s.Outcomes(s.ctx(), b.Tenant, ids); return len(l), err },
		"cancel batch": func() (int, error) { l, err := s.CancelBatch(s.ctx(), b.Tenant, b.ID); return len(l), err },
		"list": func() (int, error) {
			r, err := s.List(s.ctx(), b.Tenant, jobs.ListRequest{Limit: 10})
			return len(r.Jobs), err
		},
		"list of the batch": func() (int, error) {
			r, err := s.List(s.ctx(), b.Tenant, jobs.ListRequest{Limit: 10, Batch: b.ID})
			return len(r.Jobs), err
		},
		"outbox": func() (int, error) { l, err := s.Outbox(s.ctx(), 0, 10); return len(l), err },
	}
	for what, f := range nothing {
		if n, err := f(); n != 0 || err != nil {
			s.Errorf("%s: %d, %v, want none", what, n, err)
		}
	}
	_, batch := s.Batch(s.ctx(), b.Tenant, b.ID)
	_, get := s.Get(s.ctx(), b.Tenant, first)
	_, cancel := s.RequestCancel(s.ctx(), b.Tenant, first)
	for what, err := range map[string]error{"batch": batch, "get": get, "cancel": cancel} {
		if !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
}

// wantArriving: a batch that was written in part holds its id and key, and those of its jobs.
func (s *suite) wantArriving(b ledger.BatchAdmission) {
	s.Helper()
	repeat := s.batch(b.Tenant, 1)
	repeat.Key = b.Key
	for what, again := range map[string]ledger.BatchAdmission{"id": b, "key": repeat} {
		_, err := s.AdmitBatch(s.ctx(), again)
		_, taken := s.TakenBatch(s.ctx(), again)
		if !errors.Is(err, ledger.ErrArriving) || !errors.Is(taken, ledger.ErrArriving) {
			s.Errorf("the %s again: %v, %v, want ErrArriving", what, err, taken)
		}
	}
	want := &ledger.Taken{Arriving: true}
	keyed := s.admission(b.Tenant)
	keyed.Key = b.Jobs[0].Key
	for _, a := range []ledger.Admission{b.Jobs[0], keyed} {
		s.same("a job of it", want, s.admit(a))
	}
	small := s.batch(b.Tenant, 2)
	small.Jobs[0].Key = b.Jobs[0].Key
	small.Atomic = true
	if got, err := s.AdmitBatch(s.ctx(), small); !errors.Is(err, ledger.ErrConflict) || got.Each[0] == nil || !got.Each[0].Arriving {
		s.Errorf("an atomic batch with one of its keys: %+v, %v, want ErrConflict", got, err)
	}
	foreign := s.admission("other")
	foreign.Job.ID, foreign.Entry.ID = b.Jobs[0].Job.ID, b.Jobs[0].Job.ID
	s.same("another tenant's with the id of one", &ledger.Taken{}, s.admit(foreign))
}

// batchPieces: of a large atomic batch with a conflict at its end nothing is left, and of all jobs it is told which is taken.
func batchPieces(s *suite) {
	old := s.admission("t")
	s.admit(old)
	last := s.admission("t")
	last.Key = "last"
	s.admit(last)
	before := string(s.exported())
	b := s.large("t")
	b.Atomic = true
	b.Jobs[150].Job.ID, b.Jobs[150].Entry.ID = old.Job.ID, old.Job.ID
	b.Jobs[299].Key = "last"
	got, err := s.AdmitBatch(s.ctx(), b)
	if !errors.Is(err, ledger.ErrConflict) {
		s.Errorf("admit batch: %v, want ErrConflict", err)
	}
	for i, t := range got.Each {
		if want := i == 150 || i == 299; (t != nil) != want {
			s.Errorf("job %d: %+v", i, t)
		}
	}
	s.same("exported", before, string(s.exported()))
	b.Atomic = false
	if got := s.admitBatch(b); got.Batch.Total != 298 || got.Each[150] == nil || got.Each[299] == nil {
		s.Errorf("not atomic: %+v", got.Batch)
	}
	open, err := s.CancelBatch(s.ctx(), "t", b.ID)
	if err != nil || len(open) != 298 {
		s.Errorf("%d canceled, %v", len(open), err)
	}
	canceled := 0
	for _, e := range s.entries() {
		if e.Cancel {
			canceled++
		}
	}
	if canceled != 298 {
		s.Errorf("%d are to be canceled, want 298", canceled)
	}
}

// raceBatch: who sends a large batch again while it is being written gets it whole, whatever others have removed meanwhile.
func raceBatch(s *suite) {
	b := s.large("t")
	ends := make(chan struct{})
	var dropping sync.WaitGroup
	dropping.Go(func() {
		for {
			select {
			case <-ends:
				return
			default:
			}
			if err := s.DropIncoming(s.ctx()); err != nil {
				s.Error("drop incoming:", err)
				return
			}
		}
	})
	var mu sync.Mutex
	fresh := 0
	want := jobs.Batch{}
	s.race(func(n int) {
		own := b
		own.ID = raceID(int64(n) + 1)
		got, err := s.AdmitBatch(s.ctx(), own)
		if err != nil {
			s.Errorf("admit batch: %v", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !got.Taken {
			fresh++
		}
		if want.ID == "" {
			want = got.Batch
		}
		if got.Batch != want || got.Batch.Total != len(b.Jobs) {
			s.Errorf("batch %+v, want %+v", got.Batch, want)
		}
	})
	close(ends)
	dropping.Wait()
	if n := len(s.entries()); fresh != 1 || n != len(b.Jobs) {
		s.Errorf("taken %d times, %d jobs are open", fresh, n)
	}
}

// HalfwayShared has another handle lead while a batch is being written: it removes what it finds, and the first writes no more of it, not when it
// leads again either.
func HalfwayShared(t *testing.T, open func(t *testing.T, commit func(do func() error) error) ledger.Store) {
	c := &cut{}
	s := &suite{T: t, now: time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC), Store: open(t, c.commit)}
	other := open(t, func(do func() error) error { return do() })
	t.Cleanup(func() {
		if err := errors.Join(s.Store.Close(), other.Close()); err != nil {
			t.Error("close:", err)
		}
	})
	s.lead(s, "first", time.Microsecond)
	before := string(s.exported())
	b := s.large("t")
	c.then = func() {
		for { // a microsecond has to pass
			if _, err := other.Lead(s.ctx(), "second", time.Hour); !errors.Is(err, ledger.ErrNotLeader) {
				if err != nil {
					t.Error("lead:", err)
				}
				break
			}
		}
		if err := other.DropIncoming(s.ctx()); err != nil {
			t.Error("drop incoming:", err)
		}
	}
	c.n, c.after = 2, true
	if _, err := s.AdmitBatch(s.ctx(), b); !errors.Is(err, ledger.ErrNotLeader) {
		t.Errorf("admit batch: %v, want ErrNotLeader", err)
	}
	s.same("exported", before, string(s.exported()))
	if err := other.Resign(s.ctx()); err != nil {
		t.Error("resign:", err)
	}
	s.lead(s, "first", time.Hour)
	if got := s.admitBatch(b); got.Taken || got.Batch.Total != len(b.Jobs) {
		t.Errorf("again: %+v", got.Batch)
	}
}
