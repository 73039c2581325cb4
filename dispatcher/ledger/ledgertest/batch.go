package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// batch is a new batch of n jobs.
func (s *suite) batch(tenant string, n int) ledger.BatchAdmission {
	b := ledger.BatchAdmission{ID: s.id(), Tenant: tenant, AcceptedAt: s.now, KeyUntil: s.now.Add(time.Hour)}
	b.Hash = "hash of " + b.ID
	for range n {
		a := s.admission(tenant)
		a.Job.Batch, a.Entry.Batch = b.ID, b.ID
		b.Jobs = append(b.Jobs, a)
	}
	return b
}

func (s *suite) admitBatch(b ledger.BatchAdmission) ledger.Admitted {
	s.Helper()
	before, err := s.TakenBatch(s.ctx(), b)
	if err != nil {
		s.Fatal("taken batch:", err)
	}
	got, err := s.AdmitBatch(s.ctx(), b)
	if err != nil {
		s.Fatal("admit batch:", err)
	}
	if before.Taken || got.Taken && got.Batch.ID != "" { // else it is another tenant's
		s.same("taken, before it is admitted", got, before)
	}
	return got
}

func (s *suite) wantBatch(want jobs.Batch) {
	s.Helper()
	got, err := s.Batch(s.ctx(), want.Tenant, want.ID)
	if err != nil {
		s.Fatal("batch:", err)
	}
	s.same("batch", want, got)
}

func batches(s *suite) {
	b := s.batch("t", 3)
	want := jobs.Batch{ID: b.ID, Tenant: "t", Total: 3, AcceptedAt: b.AcceptedAt}
	s.same("admitted", ledger.Admitted{Batch: want, Each: make([]*ledger.Taken, 3)}, s.admitBatch(b))
	s.wantBatch(want)
	var open []ledger.Entry
	for _, a := range b.Jobs {
		s.same("job", a.Job, s.job("t", a.Job.ID))
		open = append(open, a.Entry)
	}
	s.same("open", open, s.entries())
	for _, of := range [][2]string{{"other", b.ID}, {"t", s.id()}} {
		if _, err := s.Batch(s.ctx(), of[0], of[1]); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("batch %q: %v, want ErrNotFound", of, err)
		}
	}

	// its jobs end: one well, one queued, one dead; the last has the batch's end follow
	ids := []string{b.Jobs[0].Job.ID, b.Jobs[1].Job.ID, b.Jobs[2].Job.ID}
	first, last := jobs.Held{Job: ids[0], Attempt: 1, Epoch: 5}, jobs.Held{Job: ids[2], Attempt: 1, Epoch: 6}
	s.lease(first, true)
	s.finish(first, true)
	s.finish(first, false)
	want.Ended, want.OK = 1, 1
	s.wantBatch(want)
	s.endQueued(ids[1], 0, true)
	want.Ended = 2
	s.wantBatch(want)
	s.lease(last, true)
	s.requeue(last, true)
	last.Attempt, last.Epoch = 2, 7
	s.lease(last, true)
	s.wantBatch(want)
	if n := len(s.outgoing(100)); n != 3 {
		s.Errorf("%d events before the end, want 3", n)
	}
	r := s.success(2)
	r.Ending, r.Class = jobs.WorkerLost, jobs.ClassInfra
	s.finishAs(last, jobs.StateDead, r, true)
	want.Ended, want.EndedAt = 3, r.EndedAt
	s.wantBatch(want)
	out := s.outgoing(100)
	s.same("the last events", []ledger.Outgoing{
		{ID: out[3].ID, Event: final(last.Job, 2, r), Dead: true},
		{ID: out[4].ID, Batch: &want},
	}, out[3:])
	s.reopen()
	s.wantBatch(want)
}

// batchJobs: jobs are listed by their batch.
func batchJobs(s *suite) {
	b := s.batch("t", 3)
	s.admitBatch(b)
	s.admitBatch(s.batch("t", 1))
	s.admit(s.admission("t"))
	var ids []string
	for _, j := range slices.Concat(s.pages("t", jobs.ListRequest{Limit: 2, Batch: b.ID})...) {
		ids = append(ids, j.ID)
	}
	s.same("the batch's jobs", []string{b.Jobs[2].Job.ID, b.Jobs[1].Job.ID, b.Jobs[0].Job.ID}, ids)
	s.same("of another tenant's batch", [][]jobs.Job{{}}, s.pages("other", jobs.ListRequest{Limit: 2, Batch: b.ID}))
}

func batchKeys(s *suite) {
	b := s.batch("t", 2)
	b.Key = "key"
	b.Jobs[0].Key, b.Jobs[1].Key = "key/0", "key/1"
	first := s.admitBatch(b)
	repeat := s.batch("t", 3)
	repeat.Key = "key"
	for i := range repeat.Jobs {
		repeat.Jobs[i].Key = fmt.Sprint("key/", i)
	}
	taken := func(a ledger.Admission) *ledger.Taken { return &ledger.Taken{Job: unspecced(a.Job), Hash: a.Hash} }
	want := ledger.Admitted{Batch: first.Batch, Taken: true, Hash: b.Hash, Each: []*ledger.Taken{taken(b.Jobs[0]), taken(b.Jobs[1]), nil}}
	s.same("the key again", want, s.admitBatch(repeat))
	if _, err := s.Batch(s.ctx(), "t", repeat.ID); !errors.Is(err, ledger.ErrNotFound) {
		s.Errorf("batch: %v, want ErrNotFound", err)
	}
	want.Each = want.Each[:2]
	b.Key = ""
	s.same("the id again", want, s.admitBatch(b))
	if n := len(s.entries()); n != 2 {
		s.Errorf("%d jobs are open, want 2", n)
	}

	other := s.batch("other", 1)
	other.ID, other.Key = b.ID, "key"
	s.same("another tenant's id", ledger.Admitted{Taken: true, Each: []*ledger.Taken{nil}}, s.admitBatch(other))
	other = s.batch("other", 1)
	other.Key = "key"
	if got := s.admitBatch(other); got.Taken {
		s.Errorf("another tenant's key: %+v", got)
	}
	a := s.admission("t")
	a.Key = "key"
	s.same("a job's key is apart", (*ledger.Taken)(nil), s.admit(a))

	s.now = b.KeyUntil.Add(time.Second)
	late := s.batch("t", 1)
	late.Key = "key"
	if got := s.admitBatch(late); got.Taken || got.Batch.ID != late.ID {
		s.Errorf("after the key's end: %+v", got)
	}
	again := s.batch("t", 1)
	again.Key = "key"
	if got := s.admitBatch(again); !got.Taken || got.Batch.ID != late.ID {
		s.Errorf("the key is the new batch's: %+v", got)
	}
}

// batchTaken: jobs of a batch that are there already are not of it.
func batchTaken(s *suite) {
	old := s.admission("t")
	old.Key = "old"
	s.admit(old)
	foreign := s.queued("other")
	b := s.batch("t", 6)
	b.Jobs[1].Key = "old"
	b.Jobs[2].Job.ID, b.Jobs[2].Entry.ID = old.Job.ID, old.Job.ID
	b.Jobs[3].Job.ID, b.Jobs[3].Entry.ID, b.Jobs[3].Key = foreign.Job.ID, foreign.Job.ID, "free"
	b.Jobs[4].Key, b.Jobs[5].Key = "twice", "twice"
	b.Atomic = true
	got, err := s.AdmitBatch(s.ctx(), b)
	if !errors.Is(err, ledger.ErrConflict) || len(got.Each) != 6 || got.Each[1] == nil || got.Each[0] != nil {
		s.Errorf("atomic: %+v, %v, want ErrConflict and which", got, err)
	}
	if n := len(s.entries()); n != 2 {
		s.Errorf("%d jobs are open, want the 2 from before", n)
	}
	b.Atomic = false
	was := &ledger.Taken{Job: unspecced(old.Job), Hash: old.Hash}
	twin := &ledger.Taken{Job: unspecced(b.Jobs[4].Job), Hash: b.Jobs[4].Hash}
	want := jobs.Batch{ID: b.ID, Tenant: "t", Total: 2, AcceptedAt: b.AcceptedAt}
	s.same("admitted", ledger.Admitted{Batch: want, Each: []*ledger.Taken{nil, was, was, {}, nil, twin}}, s.admitBatch(b))
	s.same("a job that was there", old.Job, s.job("t", old.Job.ID))
	free := s.admission("t")
	free.Key = "free"
	s.same("the key of what was not admitted is free", (*ledger.Taken)(nil), s.admit(free))
	s.endQueued(old.Job.ID, 0, true)
	s.wantBatch(want)
	s.endQueued(b.Jobs[0].Job.ID, 0, true)
	s.endQueued(b.Jobs[4].Job.ID, 0, true)
	if got, err := s.Batch(s.ctx(), "t", b.ID); err != nil || got.Ended != 2 || got.EndedAt.IsZero() {
		s.Errorf("batch %+v, %v, want it ended", got, err)
	}

	dup := s.batch("t", 1)
	dup.Jobs[0].Key = "twice"
	dup.Jobs[0].Hash = b.Jobs[4].Hash
	dup.Atomic = true
	empty := jobs.Batch{ID: dup.ID, Tenant: "t", AcceptedAt: dup.AcceptedAt, EndedAt: dup.AcceptedAt}
	if got := s.admitBatch(dup); got.Batch != empty || got.Each[0] == nil {
		s.Errorf("a batch with nothing new: %+v, want it ended", got)
	}
	out := s.outgoing(100)
	s.same("its end", &empty, out[len(out)-1].Batch)
}

func batchList(s *suite) {
	var want []jobs.Batch
	for range 4 {
		want = append([]jobs.Batch{s.admitBatch(s.batch("t", 1)).Batch}, want...)
	}
	s.admitBatch(s.batch("other", 1))
	for _, c := range []struct {
		before   string
		limit    int
		from, to int
	}{{"", 10, 0, 4}, {"", 2, 0, 2}, {want[1].ID, 2, 2, 4}, {want[3].ID, 2, 4, 4}} {
		got, err := s.Batches(s.ctx(), "t", c.before, c.limit)
		if err != nil {
			s.Fatal(err)
		}
		s.same(fmt.Sprintf("%d before %q", c.limit, c.before), want[c.from:c.to], got)
	}
}

func batchCancel(s *suite) {
	b := s.batch("t", 3)
	s.admitBatch(b)
	kept := s.queued("t")
	ended, leased := b.Jobs[0].Job.ID, jobs.Held{Job: b.Jobs[1].Job.ID, Attempt: 1, Epoch: 4}
	s.endQueued(ended, 0, true)
	s.lease(leased, true)
	for _, of := range [][2]string{{"other", b.ID}, {"t", s.id()}, {"t", ""}} {
		if open, err := s.CancelBatch(s.ctx(), of[0], of[1]); err != nil || len(open) != 0 {
			s.Errorf("cancel of %q: %v, %v", of, open, err)
		}
	}
	open, err := s.CancelBatch(s.ctx(), "t", b.ID)
	if err != nil {
		s.Fatal(err)
	}
	s.sameSet("open", []string{leased.Job, b.Jobs[2].Job.ID}, open)
	for _, id := range open {
		if !s.job("t", id).CancelRequested {
			s.Errorf("%s is not to be canceled", id)
		}
	}
	if s.job("t", ended).CancelRequested || s.job("t", kept.Job.ID).CancelRequested {
		s.Error("others are to be canceled too")
	}
}

// batchLarge: the most jobs that a batch may have, and all of them end.
func batchLarge(s *suite) {
	b := s.batch("t", jobs.MaxBatch/10) // a tenth, for the sake of the tests' time
	b.Atomic = true
	if got := s.admitBatch(b); got.Batch.Total != len(b.Jobs) {
		s.Fatalf("%d jobs of %d", got.Batch.Total, len(b.Jobs))
	}
	s.race(func(n int) {
		for i := n; i < len(b.Jobs); i += racers {
			r := jobs.Result{Ending: jobs.Expired, Class: jobs.ClassPolicy, EndedAt: s.now}
			if ok, err := s.EndQueued(s.ctx(), b.Jobs[i].Job.ID, 0, jobs.StateEnded, r, final(b.Jobs[i].Job.ID, 0, r)); err != nil || !ok {
				s.Errorf("end: %v, %v", ok, err)
			}
		}
	})
	s.wantBatch(jobs.Batch{ID: b.ID, Tenant: "t", Total: len(b.Jobs), Ended: len(b.Jobs), AcceptedAt: b.AcceptedAt, EndedAt: s.now})
	out := s.outgoing(1 << 20)
	ends := 0
	for _, o := range out {
		if o.Batch != nil {
			ends++
		}
	}
	if ends != 1 || out[len(out)-1].Batch == nil {
		s.Errorf("%d ends of the batch, want one, the last of all", ends)
	}
}
