package ledgertest

import (
	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// dead is a job that every attempt failed.
func (s *suite) dead(tenant string) jobs.Job {
	s.Helper()
	_, h := s.leased(tenant)
	r := s.success(1)
	r.Ending, r.Class = jobs.VMFailed, jobs.ClassInfra
	s.finishAs(h, jobs.StateDead, r, true)
	return s.job(tenant, h.Job)
}

func (s *suite) redrive(dead string, a ledger.Admission, want bool) *ledger.Taken {
	s.Helper()
	taken, ok, err := s.Redrive(s.ctx(), dead, a)
	if err != nil || ok != want {
		s.Errorf("redrive of %s: %v, %v, want %v", dead, ok, err, want)
	}
	return taken
}

func redrive(s *suite) {
	d, a := s.dead("t"), s.admission("t")
	ended := s.queued("t").Job.ID
	s.endQueued(ended, 0, true)
	for _, id := range []string{ended, s.queued("t").Job.ID, s.dead("other").ID, s.id()} {
		s.same("taken", (*ledger.Taken)(nil), s.redrive(id, a, false))
	}
	dup := s.admission("t")
	dup.Job.ID, dup.Entry.ID = ended, ended
	if taken := s.redrive(d.ID, dup, false); taken == nil || taken.Job.ID != ended {
		s.Errorf("taken by %+v, want %s", taken, ended)
	}
	s.same("the dead job, as before", d, s.job("t", d.ID))

	s.same("taken", (*ledger.Taken)(nil), s.redrive(d.ID, a, true))
	a.Job.RedriveOf, a.Entry.RedriveOf = d.ID, d.ID
	s.same("job", a.Job, s.job("t", a.Job.ID))
	s.same("entry", &a.Entry, s.entry(a.Job.ID))
	d.RedrivenBy = a.Job.ID
	s.same("the dead job", d, s.job("t", d.ID))
	s.redrive(d.ID, s.admission("t"), false) // once
}

func drop(s *suite) {
	d, kept := s.dead("t"), s.dead("t")
	live := s.queued("t").Job.ID
	for _, c := range []struct {
		tenant, id string
		want       bool
	}{{"other", d.ID, false}, {"t", live, false}, {"t", d.ID, true}, {"t", d.ID, false}} {
		if ok, err := s.Drop(s.ctx(), c.tenant, c.id); err != nil || ok != c.want {
			s.Errorf("drop of %s's %s: %v, %v, want %v", c.tenant, c.id, ok, err, c.want)
		}
	}
	d.State = jobs.StateEnded
	s.same("the dropped job", d, s.job("t", d.ID))
	s.same("the dead ones", [][]jobs.Job{{unspecced(kept)}}, s.pages("t", jobs.ListRequest{Limit: 10, States: []jobs.State{jobs.StateDead}}))
	s.redrive(d.ID, s.admission("t"), false)
}

func outcomes(s *suite) {
	want := map[string]ledger.Outcome{}
	var ids []string
	add := func(id string, o ledger.Outcome) { ids, want[id] = append(ids, id), o }
	add(s.queued("t").Job.ID, ledger.Outcome{Open: true})
	for range 20 {
		_, h := s.leased("t")
		s.finish(h, true)
		add(h.Job, ledger.Outcome{OK: true})
	}
	_, running := s.leased("t")
	add(running.Job, ledger.Outcome{Open: true})
	_, failed := s.leased("t")
	r, one := s.success(1), 1
	r.ExitCode = &one
	s.finishAs(failed, jobs.StateEnded, r, true)
	add(failed.Job, ledger.Outcome{})
	add(s.dead("t").ID, ledger.Outcome{})
	ids = append(ids, s.id(), s.queued("other").Job.ID)
	got, err := s.Outcomes(s.ctx(), "t", ids)
	if err != nil {
		s.Fatal(err)
	}
	s.same("outcomes", want, got)
	if got, err := s.Outcomes(s.ctx(), "t", nil); err != nil || len(got) != 0 {
		s.Errorf("outcomes of none: %v, %v", got, err)
	}
}

// forgetNeeded: what an open job depends on stays until that has ended.
func forgetNeeded(s *suite) {
	_, h := s.leased("t")
	s.finish(h, true)
	a := s.admission("t")
	a.Entry.DependsOn = []string{h.Job}
	s.admit(a)
	b := s.batch("t", 1)
	b.Jobs[0].Entry.DependsOn = []string{h.Job}
	s.admitBatch(b)
	s.forget(s.tick(), 10, 0)
	s.job("t", h.Job)
	s.endQueued(a.Job.ID, 0, true)
	s.forget(s.tick(), 10, 1)
	s.job("t", h.Job)
	s.endQueued(b.Jobs[0].Job.ID, 0, true)
	if _, err := s.Batch(s.ctx(), "t", b.ID); err != nil {
		s.Error("a batch that has just ended:", err)
	}
	s.forget(s.tick(), 10, 2)
	if _, err := s.Batch(s.ctx(), "t", b.ID); err == nil {
		s.Error("the batch is kept")
	}
}
