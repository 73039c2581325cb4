package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// openJobs: the oldest first, whatever their ids, and none that has ended.
func openJobs(s *suite) {
	var want []ledger.Entry
	for range 4 {
		want = append(want, s.queued("t").Entry)
	}
	older := s.admission("other")
	older.Entry.AcceptedAt = want[0].AcceptedAt.Add(-time.Microsecond)
	older.Job.AcceptedAt = older.Entry.AcceptedAt
	s.admit(older)
	want = append([]ledger.Entry{older.Entry}, want...)
	s.same("open", want, s.entries())

	s.endQueued(want[1].ID, 0, true)
	h := jobs.Held{Job: want[2].ID, Attempt: 1, Epoch: 5}
	at := s.lease(h, true)
	want[2].State, want[2].Attempt, want[2].Epoch, want[2].Worker, want[2].Session, want[2].LeasedAt = jobs.StateLeased, 1, 5, "a", 4, at
	dead := jobs.Held{Job: want[3].ID, Attempt: 1, Epoch: 6}
	s.lease(dead, true)
	s.finishAs(dead, jobs.StateDead, s.success(1), true)
	s.same("open", []ledger.Entry{want[0], want[2], want[4]}, s.entries())

	ids := []string{want[4].ID, want[3].ID, s.id(), want[2].ID}
	for range 40 { // more than one statement asks for
		ids = append(ids, s.id())
	}
	some := func(ids ...string) []ledger.Entry {
		s.Helper()
		list, err := s.OpenOf(s.ctx(), ids)
		if err != nil {
			s.Fatal("open jobs of some:", err)
		}
		return list
	}
	s.same("open, of some", []ledger.Entry{want[0], want[2], want[4]}, some(append(ids, want[0].ID)...))
	s.same("open, of one", []ledger.Entry{want[2]}, some(want[2].ID))
	s.same("open, of one that has ended", 0, len(some(want[1].ID)))
	s.same("open, of none", 0, len(some()))
}

func get(s *suite) {
	a := s.queued("t")
	s.same("job", a.Job, s.job("t", a.Job.ID))
	for _, of := range [][2]string{{"other", a.Job.ID}, {"t", s.id()}, {"", a.Job.ID}, {"t", ""}, {"T", a.Job.ID}} {
		if _, err := s.Get(s.ctx(), of[0], of[1]); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("get %q: %v, want ErrNotFound", of, err)
		}
	}
}

// pages lists with a limit and goes on until there is no more.
func (s *suite) pages(tenant string, q jobs.ListRequest) (pages [][]jobs.Job) {
	s.Helper()
	for range 100 {
		r, err := s.List(s.ctx(), tenant, q)
		if err != nil {
			s.Fatal("list:", err)
		}
		if r.Jobs == nil || r.Error != nil {
			s.Errorf("reply %+v, want a list and no error", r)
		}
		pages = append(pages, r.Jobs)
		if r.Next == "" {
			return pages
		}
		q.Before = r.Next
	}
	s.Fatal("the pages do not end")
	return nil
}

func list(s *suite) {
	var want []jobs.Job
	for range 6 {
		want = append(want, unspecced(s.queued("t").Job))
	}
	foreign := unspecced(s.queued("other").Job)
	slices.SortFunc(want, func(a, b jobs.Job) int { return byID(b, a) })
	for limit, cut := range map[int][]int{1: {0, 1, 2, 3, 4, 5, 6}, 2: {0, 2, 4, 6}, 4: {0, 4, 6}, 6: {0, 6}, 7: {0, 6}, 1000: {0, 6}} {
		var pages [][]jobs.Job
		for i := range cut[1:] {
			pages = append(pages, want[cut[i]:cut[i+1]])
		}
		s.same(fmt.Sprintf("pages of %d", limit), pages, s.pages("t", jobs.ListRequest{Limit: limit}))
	}
	s.same("another tenant's", [][]jobs.Job{{foreign}}, s.pages("other", jobs.ListRequest{Limit: 10}))
	s.same("nobody's", [][]jobs.Job{{}}, s.pages("nobody", jobs.ListRequest{Limit: 10}))

	r, err := s.List(s.ctx(), "t", jobs.ListRequest{Limit: 3})
	if err != nil {
		s.Fatal(err)
	}
	s.queued("t")
	s.same("the next page, though there is a newer job", [][]jobs.Job{want[3:]}, s.pages("t", jobs.ListRequest{Limit: 3, Before: r.Next}))
}

func listStates(s *suite) {
	of := map[jobs.State][]jobs.Job{}
	for range 3 { // interleaved, so that a page must step over others
		a := s.queued("t")
		_, l := s.leased("t")
		_, r := s.leased("t")
		if err := s.Running(s.ctx(), []jobs.Held{r}, s.now); err != nil {
			s.Fatal(err)
		}
		_, e := s.leased("t")
		s.finish(e, true)
		_, d := s.leased("t")
		s.finishAs(d, jobs.StateDead, s.success(1), true)
		for _, id := range []string{a.Job.ID, l.Job, r.Job, e.Job, d.Job} {
			j := unspecced(s.job("t", id))
			of[j.State] = append(of[j.State], j)
		}
	}
	for _, states := range [][]jobs.State{
		{jobs.StateQueued}, {jobs.StateLeased}, {jobs.StateRunning}, {jobs.StateEnded}, {jobs.StateDead}, {jobs.StateEnded, jobs.StateDead},
		{jobs.StateQueued, jobs.StateLeased, jobs.StateRunning, jobs.StateEnded, jobs.StateDead}, {"nonsense"},
	} {
		var want []jobs.Job
		for _, st := range states {
			want = append(want, of[st]...)
		}
		slices.SortFunc(want, func(a, b jobs.Job) int { return byID(b, a) })
		got := slices.Concat(s.pages("t", jobs.ListRequest{Limit: 2, States: states})...)
		s.same(fmt.Sprintf("list of %v", states), want, got)
		for _, st := range states {
			if st != "nonsense" && len(of[st]) != 3 {
				s.Errorf("%d jobs are %s, want 3", len(of[st]), st)
			}
		}
	}
	s.same("another tenant's", [][]jobs.Job{{}}, s.pages("other", jobs.ListRequest{Limit: 10, States: []jobs.State{jobs.StateEnded}}))
}

// sessions are larger than all before, whoever's they are, and whatever happened between.
func sessions(s *suite) {
	s.same("sessions of an empty ledger", map[string]int64{}, s.sessions())
	want, last := map[string]int64{}, int64(0)
	for n, worker := range []string{"a", "b", "a", "a", "c", "b"} {
		if n == 3 {
			s.reopen()
		}
		got, err := s.Register(s.ctx(), worker, s.now)
		if err != nil || got <= last {
			s.Errorf("session %d of %s after %d, %v", got, worker, last, err)
		}
		want[worker], last = got, got
	}
	s.same("sessions", want, s.sessions())
}

func outbox(s *suite) {
	s.same("an empty outbox", 0, len(s.outgoing(10)))
	var want []jobs.Event
	for n := range 5 {
		_, h := s.leased("t")
		if n%2 == 0 {
			s.requeue(h, true)
			want = append(want, again(h.Job, 1))
		} else {
			want = append(want, final(h.Job, 1, s.finish(h, true)))
		}
	}
	s.same("the oldest first", want, s.told())
	all := s.outgoing(100)
	for i := 1; i < len(all); i++ {
		if all[i].ID <= all[i-1].ID {
			s.Errorf("the ids are not in order: %d, %d", all[i-1].ID, all[i].ID)
		}
	}
	s.same("the first two", all[:2], s.outgoing(2))
	for n, o := range all {
		after, err := s.Outbox(s.ctx(), o.ID, 2)
		if err != nil {
			s.Fatal("outbox:", err)
		}
		s.same("the next two", all[n+1:min(n+3, len(all))], after)
	}
	s.published(all[1].ID, all[2].ID)
	s.same("without what was published", []ledger.Outgoing{all[0], all[3], all[4]}, s.outgoing(100))
	s.published(all[2].ID, all[4].ID+1000) // twice, and never there
	s.published()
	s.same("as before", []ledger.Outgoing{all[0], all[3], all[4]}, s.outgoing(100))
	s.published(all[0].ID, all[3].ID, all[4].ID)
	s.same("an empty outbox", 0, len(s.outgoing(10)))

	s.reopen()
	_, h := s.leased("t")
	s.finish(h, true)
	if got := s.outgoing(10); len(got) != 1 || got[0].ID <= all[4].ID { // a late Published of an old event must not take a new one
		s.Errorf("outbox %+v, want one with an id above %d", got, all[4].ID)
	}
}

func (s *suite) published(ids ...int64) {
	s.Helper()
	if err := s.Published(s.ctx(), ids); err != nil {
		s.Fatal("published:", err)
	}
}

// reopen: what was written is there again, in every place.
func reopen(s *suite) {
	keyed := s.admission("t")
	keyed.Key = "key"
	s.admit(keyed)
	s.queued("other")
	s.leased("t")
	_, running := s.leased("t")
	if err := s.Running(s.ctx(), []jobs.Held{running}, s.now); err != nil {
		s.Fatal(err)
	}
	_, again := s.leased("t")
	s.requeue(again, true)
	_, ended := s.leased("t")
	s.cancel("t", ended.Job)
	s.finish(ended, true)
	_, dead := s.leased("t")
	s.finishAs(dead, jobs.StateDead, s.success(1), true)
	canceled := s.queued("t")
	s.cancel("t", canceled.Job.ID)
	if _, err := s.Register(s.ctx(), "a", s.now); err != nil {
		s.Fatal(err)
	}

	before := s.everything()
	s.reopen()
	s.same("after reopening", before, s.everything())
	dup := s.admission("t")
	dup.Key = "key"
	s.same("taken", &ledger.Taken{Job: unspecced(keyed.Job), Hash: keyed.Hash}, s.admit(dup))
	s.finish(running, true)
	s.finish(ended, false)
	s.lease(jobs.Held{Job: again.Job, Attempt: 2, Epoch: 11}, true)
	s.lease(jobs.Held{Job: canceled.Job.ID, Attempt: 1, Epoch: 11}, false)
}

// everything is all that a ledger shows.
type everything struct {
	Open    []ledger.Entry
	Jobs    map[string]jobs.Job
	Outbox  []ledger.Outgoing
	Batches []jobs.Batch
	Hooks   []ledger.Hook
	Workers []ledger.Worker
}

func (s *suite) everything() (e everything) {
	s.Helper()
	e.Open, e.Outbox, e.Jobs = s.entries(), s.outgoing(1000), map[string]jobs.Job{}
	for _, tenant := range []string{"t", "other"} {
		for _, j := range slices.Concat(s.pages(tenant, jobs.ListRequest{Limit: 1000})...) {
			e.Jobs[j.ID] = s.job(tenant, j.ID)
			s.same("job in a list", unspecced(e.Jobs[j.ID]), j)
		}
	}
	var err error
	if e.Batches, err = s.Batches(s.ctx(), "t", "", 1000); err != nil {
		s.Fatal("batches:", err)
	}
	if e.Hooks, err = s.Hooks(s.ctx(), 1000); err != nil {
		s.Fatal("hooks:", err)
	}
	e.Workers = s.workers()
	return e
}
