package ledgertest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// leader: the term stays while the handle leads, and is a larger one when it leads again; between nothing is written.
func leader(s *suite) {
	lead := func() int64 {
		s.Helper()
		term, err := s.Lead(s.ctx(), "me", time.Minute)
		if err != nil {
			s.Fatal("lead:", err)
		}
		return term
	}
	term := lead()
	if again := lead(); again != term || term < 1 {
		s.Errorf("term %d, then %d, want the same", term, again)
	}
	a := s.queued("t")
	before := s.everything()
	if err := s.Resign(s.ctx()); err != nil {
		s.Fatal(err)
	}
	s.refused(s.Store, a.Job.ID)
	s.same("everything", before, s.everything())
	if next := lead(); next <= term {
		s.Errorf("term %d after %d", next, term)
	}
	s.queued("t")
	last := lead()
	s.reopen()
	if next := lead(); next <= last {
		s.Errorf("term %d of another handle after %d", next, last)
	}
}

// refused tries every operation that writes, about a job that is queued.
func (s *suite) refused(st ledger.Store, id string) {
	s.Helper()
	ctx, h := s.ctx(), jobs.Held{Job: id, Attempt: 1, Epoch: 99}
	r := s.success(1)
	all := map[string]error{}
	_, all["admit"] = st.Admit(ctx, s.admission("t"))
	_, all["lease"] = st.Lease(ctx, []ledger.Lease{{Held: h, Worker: "a", At: s.now}})
	all["running"] = st.Running(ctx, []jobs.Held{h}, s.now)
	_, all["finish"] = st.Finish(ctx, h, jobs.StateEnded, r, final(id, 1, r))
	_, all["requeue"] = st.Requeue(ctx, h, retry(h, s.now), again(id, 1))
	_, all["end queued"] = st.EndQueued(ctx, id, 0, jobs.StateEnded, r, final(id, 0, r))
	_, all["cancel"] = st.RequestCancel(ctx, "t", id)
	_, _, all["redrive"] = st.Redrive(ctx, id, s.admission("t"))
	_, all["drop"] = st.Drop(ctx, "t", id)
	all["published"] = st.Published(ctx, []int64{1})
	_, all["forget"] = st.Forget(ctx, s.now, 10)
	_, all["admit batch"] = st.AdmitBatch(ctx, s.batch("t", 2))
	all["drop incoming"] = st.DropIncoming(ctx)
	_, all["cancel batch"] = st.CancelBatch(ctx, "t", id)
	_, all["put schedule"] = st.PutSchedule(ctx, "t", s.schedule("a"), enough)
	_, all["delete schedule"] = st.DeleteSchedule(ctx, "t", "a")
	_, all["fired"] = st.Fired(ctx, "t", "a", s.now, s.now, "", 0)
	_, all["register"] = st.Register(ctx, "b", s.now)
	all["seen"] = st.Seen(ctx, []ledger.Seen{{Worker: "b"}})
	all["flag"] = st.Flag(ctx, "b", ledger.Flags{Cordoned: true, Draining: true})
	_, all["remove"] = st.Remove(ctx, "b")
	for name, err := range all {
		if !errors.Is(err, ledger.ErrNotLeader) {
			s.Errorf("%s: %v, want ErrNotLeader", name, err)
		}
	}
}

// RunShared runs what is for a ledger that several handles have open at once. open gives another handle of the test's ledger.
func RunShared(t *testing.T, open func(t *testing.T) ledger.Store) {
	for name, test := range map[string]func(s *suite, other ledger.Store){
		"one leads":   oneLeads,
		"taken over":  takenOver,
		"never led":   neverLed,
		"race leader": raceLeader,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &suite{T: t, open: open, now: time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC), Store: open(t)}
			other := open(t)
			t.Cleanup(func() {
				if err := errors.Join(s.Store.Close(), other.Close()); err != nil {
					t.Error("close:", err)
				}
			})
			test(s, other)
		})
	}
}

func (s *suite) lead(st ledger.Store, who string, ttl time.Duration) int64 {
	s.Helper()
	term, err := st.Lead(s.ctx(), who, ttl)
	if err != nil {
		s.Fatalf("%s leads: %v", who, err)
	}
	return term
}

func oneLeads(s *suite, other ledger.Store) {
	s.lead(s.Store, "one", time.Hour)
	a := s.queued("t")
	_, err := other.Lead(s.ctx(), "two", time.Hour)
	if !errors.Is(err, ledger.ErrNotLeader) || err.Error() != `another dispatcher leads: "one"` {
		s.Errorf("lead: %v, want ErrNotLeader and who leads", err)
	}
	s.refused(other, a.Job.ID)
	if j, err := other.Get(s.ctx(), "t", a.Job.ID); err != nil || j.State != jobs.StateQueued {
		s.Errorf("who does not lead reads %+v, %v", j, err)
	}
	s.lease(jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 1}, true)
	if err := s.Resign(s.ctx()); err != nil {
		s.Fatal(err)
	}
	s.lead(other, "two", time.Hour)
	s.refused(s.Store, a.Job.ID)
}

// takenOver: the lease runs out, another leads, and the first hears of it with its next write.
func takenOver(s *suite, other ledger.Store) {
	first := s.lead(s.Store, "one", 50*time.Millisecond)
	a := s.queued("t")
	var second int64
	for end := time.Now().Add(10 * time.Second); second == 0; time.Sleep(5 * time.Millisecond) {
		term, err := other.Lead(s.ctx(), "two", time.Hour)
		if err == nil {
			second = term
		} else if !errors.Is(err, ledger.ErrNotLeader) || time.Now().After(end) {
			s.Fatal("take over:", err)
		}
	}
	if second <= first {
		s.Errorf("term %d after %d", second, first)
	}
	s.refused(s.Store, a.Job.ID)
	if _, err := s.Store.Lead(s.ctx(), "one", time.Hour); !errors.Is(err, ledger.ErrNotLeader) {
		s.Errorf("lead again: %v, want ErrNotLeader", err)
	}
	h := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 7}
	if specs, err := other.Lease(s.ctx(), []ledger.Lease{{Held: h, Worker: "a", At: s.now}}); err != nil || specs[0] == nil {
		s.Errorf("the new leader's lease: %q, %v", specs, err)
	}
}

func neverLed(s *suite, other ledger.Store) {
	s.lead(other, "two", time.Hour)
	if err := other.Resign(s.ctx()); err != nil {
		s.Fatal(err)
	}
	s.refused(s.Store, s.id())
}

// raceLeader: two handles write without pause and take the leadership from each other as fast as they can. What was acknowledged is there,
// what was refused is not, and nothing of an earlier term comes after something of a later one.
func raceLeader(s *suite, other ledger.Store) {
	var mu sync.Mutex
	acknowledged, terms := map[string]bool{}, map[int64]bool{}
	var ids atomic.Int64
	write := func(st ledger.Store, term int64) error {
		id := raceID(ids.Add(1))
		if _, err := st.Admit(s.ctx(), s.admissionOf("t", id, s.now)); err != nil {
			return err
		}
		r := jobs.Result{Ending: jobs.Expired, Class: jobs.ClassPolicy, EndedAt: s.now}
		event := final(id, 0, r)
		event.Seq = term
		ok, err := st.EndQueued(s.ctx(), id, 0, jobs.StateEnded, r, event)
		if err == nil && !ok {
			s.Errorf("%s could not be ended", id)
		}
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			acknowledged[id], terms[term] = true, true
		}
		return err
	}
	began := time.Now()
	enough := func() bool { // terms in which something was written; a minute is a hang
		mu.Lock()
		defer mu.Unlock()
		took := time.Since(began)
		return took > time.Minute || took > 3*time.Second && len(terms) >= 3
	}
	handle := func(st ledger.Store, who string) {
		for ; !enough(); time.Sleep(time.Millisecond) {
			term, err := st.Lead(s.ctx(), who, time.Millisecond)
			if err != nil {
				if !errors.Is(err, ledger.ErrNotLeader) {
					s.Error("lead:", err)
				}
				continue
			}
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for {
						if err := write(st, term); err != nil { // until the other takes over
							if !errors.Is(err, ledger.ErrNotLeader) {
								s.Error("write:", err)
							}
							return
						}
					}
				})
			}
			all.Wait()
		}
	}
	var both sync.WaitGroup
	third := s.open(s.T)
	defer third.Close()
	both.Go(func() { handle(s.Store, "one") })
	both.Go(func() { handle(other, "two") })
	for led := false; !led; time.Sleep(time.Millisecond) { // when both have had enough, a third ends the last one's writing
		if !enough() {
			continue
		}
		_, err := third.Lead(s.ctx(), "three", time.Hour)
		if led = err == nil; !led && (!errors.Is(err, ledger.ErrNotLeader) || time.Since(began) > 2*time.Minute) {
			s.Error("three leads:", err)
			break
		}
	}
	both.Wait()
	if len(terms) < 3 {
		s.Errorf("there were %d terms: this shows nothing", len(terms))
	}
	s.Logf("%d jobs in %d terms", ids.Load(), len(terms))
	inTerms(s, acknowledged)
}

// inTerms checks that what was written is what was acknowledged, and that terms follow each other in it.
func inTerms(s *suite, acknowledged map[string]bool) {
	last := int64(0)
	for _, o := range s.outgoing(1 << 30) {
		if o.Event.Seq < last {
			s.Errorf("something of the term %d after something of the term %d", o.Event.Seq, last)
		}
		last = o.Event.Seq
		if !acknowledged[o.Event.Job] {
			s.Errorf("%s was refused, and is there", o.Event.Job)
		}
		delete(acknowledged, o.Event.Job)
	}
	if len(acknowledged) > 0 {
		s.Errorf("%d jobs were acknowledged and are not there", len(acknowledged))
	}
}
