package ledgertest

import (
	"encoding/json"
	"errors"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func (s *suite) workers() []ledger.Worker {
	s.Helper()
	list, err := s.Workers(s.ctx())
	if err != nil {
		s.Fatal("workers:", err)
	}
	return list
}

// sessions are workers' current ones.
func (s *suite) sessions() map[string]int64 {
	s.Helper()
	m := map[string]int64{}
	for _, w := range s.workers() {
		m[w.Name] = w.Session
	}
	return m
}

func fleet(s *suite) {
	register := func(name string) ledger.Worker {
		s.Helper()
		w := ledger.Worker{Name: name, Seen: s.tick()}
		var err error
		if w.Session, err = s.Register(s.ctx(), name, w.Seen); err != nil {
			s.Fatal(err)
		}
		return w
	}
	flag := func(name string, f ledger.Flags, want error) {
		s.Helper()
		if err := s.Flag(s.ctx(), name, f); !errors.Is(err, want) {
			s.Errorf("flag %s: %v, want %v", name, err, want)
		}
	}
	b, a := register("b"), register("a")
	s.same("workers", []ledger.Worker{a, b}, s.workers())
	a.Cordoned, b.Draining, b.DrainBy = true, true, s.tick()
	flag("c", b.Flags, ledger.ErrNotFound)
	flag("a", a.Flags, nil)
	flag("b", b.Flags, nil)
	s.same("workers", []ledger.Worker{a, b}, s.workers())
	a.Seen, b.Seen, b.Offer = s.tick(), s.tick(), []byte("\x00\xff offers")
	if err := s.Seen(s.ctx(), []ledger.Seen{{Worker: "a", At: a.Seen}, {Worker: "c", At: a.Seen, Offer: b.Offer}, {Worker: "b", At: b.Seen, Offer: b.Offer}}); err != nil {
		s.Error(err)
	}
	b.Seen = s.tick()
	if err := s.Seen(s.ctx(), []ledger.Seen{{Worker: "b", At: b.Seen}}); err != nil {
		s.Error(err)
	}
	if err := s.Seen(s.ctx(), nil); err != nil {
		s.Error(err)
	}
	s.same("workers", []ledger.Worker{a, b}, s.workers())
	again := register("a")
	a.Session, a.Seen = again.Session, again.Seen
	s.reopen()
	s.same("workers: flags outlive sessions and leaders", []ledger.Worker{a, b}, s.workers())
	s.forget(s.tick(), 10, 0)
	s.same("workers: who was told something is not forgotten", []ledger.Worker{a, b}, s.workers())
	b.Flags = ledger.Flags{}
	flag("b", b.Flags, nil)
	for _, want := range []bool{true, false} {
		if ok, err := s.Remove(s.ctx(), "a"); err != nil || ok != want {
			s.Errorf("remove: %v, %v, want %v", ok, err, want)
		}
	}
	s.same("workers", []ledger.Worker{b}, s.workers())
	if w := register("a"); w.Session <= a.Session {
		s.Errorf("session %d after %d", w.Session, a.Session)
	}
}

// hooks: where a job has callbacks, each change that webhooks tell of is written with it, once.
func hooks(s *suite) {
	told := func() (l []string) {
		s.Helper()
		list, err := s.Hooks(s.ctx(), 100)
		if err != nil {
			s.Fatal(err)
		}
		for _, h := range list {
			l = append(l, h.Type+" "+h.Tenant+" "+string(h.Event))
		}
		return l
	}
	_, quiet := s.leased("t")
	if err := s.Running(s.ctx(), []jobs.Held{quiet}, s.now); err != nil {
		s.Fatal(err)
	}
	s.requeue(quiet, true)
	s.endQueued(quiet.Job, 1, true)
	s.same("without callbacks", []string{}, told())

	a := s.admission("t")
	a.Job.Spec.Callbacks = []jobs.Callback{{URL: "https://example.org/"}}
	s.admit(a)
	id := a.Job.ID
	for attempt := 1; attempt <= 2; attempt++ {
		h := jobs.Held{Job: id, Attempt: attempt, Epoch: int64(attempt)}
		s.lease(h, true)
		for range 2 {
			if err := s.Running(s.ctx(), []jobs.Held{h, quiet, {Job: id, Attempt: attempt, Epoch: 99}}, s.now); err != nil {
				s.Fatal(err)
			}
		}
		if attempt == 1 {
			s.requeue(h, true)
			s.requeue(h, false)
		} else {
			s.finish(h, true)
			s.finish(h, false)
		}
	}
	canceled := s.admission("t")
	canceled.Job.Spec.Callbacks = a.Job.Spec.Callbacks
	s.admit(canceled)
	s.endQueued(canceled.Job.ID, 0, true)
	var kinds []string
	list, err := s.Hooks(s.ctx(), 100)
	if err != nil {
		s.Fatal(err)
	}
	for i, h := range list {
		var e jobs.Event
		if err := json.Unmarshal(h.Event, &e); err != nil || h.Tenant != "t" || i > 0 && h.ID <= list[i-1].ID {
			s.Errorf("hook %+v: %v", h, err)
		}
		kinds = append(kinds, h.Type+" "+e.Job)
		s.same("labels", a.Job.Labels, h.Labels)
		s.same("callbacks", a.Job.Spec.Callbacks, h.Callbacks)
	}
	s.same("hooks", []string{
		jobs.HookRunning + " " + id, jobs.HookRequeued + " " + id, jobs.HookRunning + " " + id, jobs.HookEnded + " " + id, jobs.HookEnded + " " + canceled.Job.ID,
	}, kinds)
	select {
	case <-s.Hooked():
	default:
		s.Error("nobody is told that there are hooks")
	}
	first, err := s.Hooks(s.ctx(), 2)
	if err != nil {
		s.Fatal(err)
	}
	s.same("the first two", list[:2], first)
	before := told()
	s.reopen()
	s.same("after reopening", before, told())
}
