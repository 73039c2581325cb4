package ledgertest

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func lease(s *suite) {
	a, b := s.queued("t"), s.queued("t")
	first := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 10}
	at := s.tick()
	specs, err := s.Lease(s.ctx(), []ledger.Lease{
		{Held: first, Worker: "a", Session: 4, At: at},
		{Held: jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 11}, Worker: "b", Session: 5, At: at},
		{Held: jobs.Held{Job: a.Job.ID, Attempt: 2, Epoch: 12}, Worker: "b", Session: 5, At: at},
		{Held: jobs.Held{Job: s.id(), Attempt: 1, Epoch: 13}, Worker: "b", Session: 5, At: at},
		{Held: jobs.Held{Job: b.Job.ID, Attempt: 1, Epoch: 14}, Worker: "b", Session: 5, At: at},
	})
	if err != nil {
		s.Fatal(err)
	}
	s.same("leased", []bool{true, false, false, false, true}, begun(specs))
	for i, a := range map[int]ledger.Admission{0: a, 4: b} {
		var spec jobs.Spec
		if err := json.Unmarshal(specs[i], &spec); err != nil {
			s.Error(err)
		}
		s.same("spec", a.Job.Spec, &spec)
	}
	j, e := a.Job, a.Entry
	j.State, j.Attempt, j.Worker, j.LeasedAt = jobs.StateLeased, 1, "a", at
	s.same("job", j, s.job("t", j.ID))
	e.State, e.Attempt, e.Epoch, e.Worker, e.Session, e.LeasedAt = jobs.StateLeased, 1, 10, "a", 4, at
	s.same("entry", &e, s.entry(e.ID))
	s.same("outbox", 0, len(s.told()))
	if specs, err := s.Lease(s.ctx(), nil); err != nil || len(specs) != 0 {
		s.Errorf("lease of nothing: %q, %v", specs, err)
	}

	s.requeue(first, true)
	e = *s.entry(e.ID)
	for _, h := range []jobs.Held{
		{Job: j.ID, Attempt: 1, Epoch: 20}, // the attempt was
		{Job: j.ID, Attempt: 3, Epoch: 20}, // one is left out
		{Job: j.ID, Attempt: 2, Epoch: 10}, // the epoch was
		{Job: j.ID, Attempt: 2, Epoch: 9},
	} {
		s.lease(h, false)
	}
	s.same("entry: as before", &e, s.entry(e.ID))
	at = s.lease(jobs.Held{Job: j.ID, Attempt: 2, Epoch: 15}, true)
	e.State, e.Attempt, e.Epoch, e.LeasedAt = jobs.StateLeased, 2, 15, at
	s.same("entry", &e, s.entry(e.ID))
	s.finish(jobs.Held{Job: j.ID, Attempt: 2, Epoch: 15}, true)
	s.lease(jobs.Held{Job: j.ID, Attempt: 3, Epoch: 20}, false)
}

func leaseCanceled(s *suite) {
	a := s.queued("t")
	s.cancel("t", a.Job.ID)
	s.lease(jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 1}, false)

	_, h := s.leased("t")
	s.cancel("t", h.Job)
	s.requeue(h, true)
	s.lease(jobs.Held{Job: h.Job, Attempt: 2, Epoch: 20}, false)
	s.endQueued(h.Job, 1, true)
}

func running(s *suite) {
	a, h := s.leased("t")
	b, other := s.leased("t")
	c := s.queued("t")
	e := *s.entry(h.Job)
	run := func(list ...jobs.Held) {
		s.Helper()
		if err := s.Running(s.ctx(), list, s.now); err != nil {
			s.Error("running:", err)
		}
	}
	state := func(id string, want jobs.State) {
		s.Helper()
		if got := s.job("t", id).State; got != want {
			s.Errorf("%s is %s, want %s", id, got, want)
		}
	}
	run()
	run(jobs.Held{Job: h.Job, Attempt: 2, Epoch: 10}, jobs.Held{Job: h.Job, Attempt: 1, Epoch: 9}, jobs.Held{Job: c.Job.ID}, jobs.Held{Job: s.id(), Attempt: 1, Epoch: 10})
	state(a.Job.ID, jobs.StateLeased)
	state(c.Job.ID, jobs.StateQueued)
	run(h, jobs.Held{Job: h.Job, Attempt: 1, Epoch: 11}, other)
	state(a.Job.ID, jobs.StateRunning)
	state(b.Job.ID, jobs.StateRunning)
	e.State = jobs.StateRunning
	s.same("entry", &e, s.entry(h.Job))
	run(h)
	s.same("entry: again", &e, s.entry(h.Job))
	s.finish(h, true)
	run(h)
	state(a.Job.ID, jobs.StateEnded)
	s.requeue(other, true)
	run(other)
	state(b.Job.ID, jobs.StateQueued)
}

func finish(s *suite) {
	for _, state := range []jobs.State{jobs.StateEnded, jobs.StateDead} {
		a, h := s.leased("t")
		s.published(idsOf(s.outgoing(100))...)
		if state == jobs.StateDead {
			if err := s.Running(s.ctx(), []jobs.Held{h}, s.now); err != nil {
				s.Fatal(err)
			}
		}
		want := s.job("t", h.Job)
		r := s.finishAs(h, state, s.success(1), true)
		want.State, want.EndedAt, want.Result = state, r.EndedAt, &r
		s.same("job", want, s.job("t", h.Job))
		s.same("entry", (*ledger.Entry)(nil), s.entry(a.Job.ID))
		out := s.outgoing(100)
		if len(out) == 1 {
			s.same("outgoing", ledger.Outgoing{ID: out[0].ID, Event: final(h.Job, 1, r), Dead: state == jobs.StateDead}, out[0])
		} else {
			s.Errorf("outbox %+v, want one event", out)
		}
		s.finish(h, false)
		s.requeue(h, false)
		s.same("job: as before", want, s.job("t", h.Job))
		s.same("outbox: as before", out, s.outgoing(100))
	}
}

func idsOf(list []ledger.Outgoing) (ids []int64) {
	for _, o := range list {
		ids = append(ids, o.ID)
	}
	return ids
}

// finishCanceled: a job that ended before it heard of its cancel has ended as it did.
func finishCanceled(s *suite) {
	_, h := s.leased("t")
	s.cancel("t", h.Job)
	r := s.finish(h, true)
	j := s.job("t", h.Job)
	s.same("result", &r, j.Result)
	if j.State != jobs.StateEnded || !j.CancelRequested {
		s.Errorf("job is %s, cancel requested %v", j.State, j.CancelRequested)
	}
}

func requeue(s *suite) {
	a, h := s.leased("t")
	want := *s.entry(h.Job)
	var attempts []jobs.Attempt
	for range 3 {
		r := s.requeue(h, true)
		want.State, want.NotBefore, want.InfraLeft, want.UserLeft, want.FailedOn = jobs.StateQueued, r.NotBefore, r.InfraLeft, r.UserLeft, r.FailedOn
		attempts = append(attempts, r.Attempt)
		s.same("attempts", attempts, s.job("t", h.Job).Attempts)
		s.same("entry", &want, s.entry(h.Job))
		s.requeue(h, false)
		s.same("entry: as before", &want, s.entry(h.Job))
		if j := s.job("t", h.Job); j.State != jobs.StateQueued || j.Attempt != h.Attempt || j.Result != nil || !j.EndedAt.IsZero() {
			s.Errorf("job %+v", j)
		}
		h.Attempt++
		h.Epoch += 5
		want.LeasedAt = s.lease(h, true)
		want.State, want.Attempt, want.Epoch = jobs.StateLeased, h.Attempt, h.Epoch
		if err := s.Running(s.ctx(), []jobs.Held{h}, s.now); err != nil {
			s.Fatal(err)
		}
	}
	s.finish(h, true)
	s.same("attempts of a job that has ended", attempts, s.job("t", h.Job).Attempts)
	s.same("outbox", []jobs.Event{again(a.Job.ID, 1), again(a.Job.ID, 2), again(a.Job.ID, 3)}, s.told()[:3])
}

func endQueued(s *suite) {
	a := s.queued("t")
	s.endQueued(a.Job.ID, 1, false)
	s.endQueued(s.id(), 0, false)
	r := s.endQueued(a.Job.ID, 0, true)
	want := a.Job
	want.State, want.EndedAt, want.Result = jobs.StateEnded, r.EndedAt, &r
	s.same("job", want, s.job("t", want.ID))
	s.same("entry", (*ledger.Entry)(nil), s.entry(want.ID))
	s.same("outbox", []jobs.Event{final(want.ID, 0, r)}, s.told())
	s.endQueued(a.Job.ID, 0, false)
	s.lease(jobs.Held{Job: want.ID, Attempt: 1, Epoch: 99}, false)

	_, h := s.leased("t")
	s.endQueued(h.Job, 0, false)
	s.endQueued(h.Job, 1, false)
	s.requeue(h, true)
	s.endQueued(h.Job, 0, false)
	s.endQueued(h.Job, 1, true)

	c := s.queued("t")
	dead := jobs.Result{Ending: jobs.ImageFailed, Class: jobs.ClassInfra, EndedAt: s.tick()}
	if ok, err := s.EndQueued(s.ctx(), c.Job.ID, 0, jobs.StateDead, dead, final(c.Job.ID, 0, dead)); !ok || err != nil {
		s.Errorf("end as dead: %v, %v", ok, err)
	}
	out := s.outgoing(100)
	for i, o := range out {
		if o.Dead != (i == len(out)-1) {
			s.Errorf("outgoing %d of %s: dead is %v", i, o.Event.Job, o.Dead)
		}
	}
}

func requestCancel(s *suite) {
	a := s.queued("t")
	id := a.Job.ID
	for _, of := range [][2]string{{"other", id}, {"t", s.id()}, {"", id}} {
		if _, err := s.RequestCancel(s.ctx(), of[0], of[1]); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("cancel %q: %v, want ErrNotFound", of, err)
		}
	}
	s.same("entry: not canceled by another tenant", &a.Entry, s.entry(id))
	for range 2 {
		j := s.cancel("t", id)
		if j.ID != id || j.Tenant != "t" || j.State != jobs.StateQueued || !j.CancelRequested {
			s.Errorf("canceled job %+v", j)
		}
	}
	a.Entry.Cancel = true
	s.same("entry", &a.Entry, s.entry(id))
	a.Job.CancelRequested = true
	s.same("job", a.Job, s.job("t", id))

	_, h := s.leased("t")
	if j := s.cancel("t", h.Job); j.State != jobs.StateLeased || !j.CancelRequested || j.Attempt != 1 {
		s.Errorf("canceled job %+v", j)
	}
	if e := s.entry(h.Job); e == nil || !e.Cancel || e.State != jobs.StateLeased {
		s.Errorf("entry %+v", e)
	}

	_, h = s.leased("t")
	s.finish(h, true)
	want := s.job("t", h.Job)
	s.same("a job that has ended", unspecced(want), unspecced(s.cancel("t", h.Job)))
	s.same("job: as before", want, s.job("t", h.Job))
}

// fence: an attempt that is not the current one changes nothing, whatever it tries.
func fence(s *suite) {
	_, old := s.leased("t")
	s.requeue(old, true)
	current := jobs.Held{Job: old.Job, Attempt: 2, Epoch: 20}
	queued := s.everything()
	s.stale(old, queued)
	s.stale(current, queued) // not yet
	s.stale(jobs.Held{Job: old.Job}, queued)
	s.lease(current, true)
	leased := s.everything()
	for _, h := range []jobs.Held{
		old,
		{Job: old.Job, Attempt: 2, Epoch: 10},
		{Job: old.Job, Attempt: 1, Epoch: 20},
		{Job: old.Job, Attempt: 2, Epoch: 21},
		{Job: old.Job, Attempt: 3, Epoch: 20},
		{Job: "", Attempt: 2, Epoch: 20},
	} {
		s.stale(h, leased)
	}
	s.finish(current, true)
	ended := s.everything()
	s.stale(current, ended)
	s.stale(old, ended)
}

func (s *suite) stale(h jobs.Held, before everything) {
	s.Helper()
	s.finish(h, false)
	s.requeue(h, false)
	if err := s.Running(s.ctx(), []jobs.Held{h}, s.now); err != nil {
		s.Error("running:", err)
	}
	s.same(fmt.Sprintf("everything after stale %+v", h), before, s.everything())
}
