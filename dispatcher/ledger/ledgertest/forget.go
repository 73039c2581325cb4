package ledgertest

import (
	"errors"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func (s *suite) forget(before time.Time, limit, want int) {
	s.Helper()
	n, err := s.Forget(s.ctx(), before, limit)
	if err != nil || n != want {
		s.Errorf("forgot %d jobs (%v), want %d", n, err, want)
	}
}

// forget: what ended before is gone, the oldest first, with its key; what ended later, and what has not, stays, with all that it has.
func forget(s *suite) {
	keyed := func(key string) (ledger.Admission, jobs.Held) {
		a := s.admission("t")
		a.Key = key
		s.admit(a)
		h := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 10}
		s.lease(h, true)
		return a, h
	}
	waits := s.queued("t")
	_, has := s.leased("t")
	_, tried := s.leased("t")
	s.requeue(tried, true)
	late, h := keyed("late")
	_, dead := s.leased("other")
	var old []string
	for _, key := range []string{"a", "b", "c"} {
		_, h := keyed(key)
		s.finish(h, true)
		old = append(old, h.Job)
	}
	s.finishAs(dead, jobs.StateDead, s.success(1), true)
	canceled := s.queued("t").Job.ID
	s.endQueued(canceled, 0, true)
	old = append(old, dead.Job, canceled)
	before := s.tick()
	r := s.success(1)
	r.EndedAt = before // not before it
	s.finishAs(h, jobs.StateEnded, r, true)

	told := s.outgoing(100)
	gone := func(n int) {
		s.Helper()
		for i, id := range old {
			_, err := s.Get(s.ctx(), "t", id)
			if id == dead.Job {
				_, err = s.Get(s.ctx(), "other", id)
			}
			if errors.Is(err, ledger.ErrNotFound) != (i < n) {
				s.Errorf("job %d of %d that ended before: %v, want the first %d gone", i, len(old), err, n)
			}
		}
	}
	s.forget(before.Add(-time.Hour), 10, 0)
	gone(0)
	s.forget(before, 2, 2)
	gone(2)
	s.forget(before, 2, 2)
	gone(4)
	s.forget(before, 2, 1)
	s.forget(before, 2, 0)
	gone(5)
	s.same("outbox: as before", told, s.outgoing(100))
	open := []string{waits.Job.ID, has.Job, tried.Job}
	var left []string
	for _, e := range s.entries() {
		left = append(left, e.ID)
	}
	slices.Sort(left)
	s.same("open", open, left)
	s.same("ended later", r, *s.job("t", late.Job.ID).Result)

	again := s.admission("t")
	again.Key = "late"
	if taken := s.admit(again); taken == nil || taken.Job.ID != late.Job.ID {
		s.Errorf("the key of a job that is kept: taken by %+v", taken)
	}
	again.Key = "a"
	s.same("taken: the key of a job that is gone", (*ledger.Taken)(nil), s.admit(again))
	s.same("job", again.Job, s.job("t", again.Job.ID))
}

// forgetWorkers: whoever was seen later, or has a job, stays, and the next session is larger than all that ever were.
func forgetWorkers(s *suite) {
	register := func(worker string) int64 {
		s.Helper()
		session, err := s.Register(s.ctx(), worker, s.tick())
		if err != nil {
			s.Fatal("register:", err)
		}
		return session
	}
	a := register("a")
	_, h := s.leased("t") // by "a"
	for _, worker := range []string{"b", "c", "d"} {
		register(worker)
	}
	before := s.tick()
	late := register("late")
	s.forget(before, 2, 0)
	if n := len(s.sessions()); n != 3 {
		s.Errorf("%d workers are left, want 3", n)
	}
	s.forget(before, 2, 0)
	s.same("sessions", map[string]int64{"a": a, "late": late}, s.sessions())
	s.reopen()
	s.finish(h, true)
	s.forget(before, 2, 0)
	s.same("sessions", map[string]int64{"late": late}, s.sessions())
	s.forget(s.tick(), 2, 1) // the job, and the last worker
	s.same("sessions", map[string]int64{}, s.sessions())
	if next := register("a"); next <= late {
		s.Errorf("session %d after %d", next, late)
	}
}
