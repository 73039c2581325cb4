package ledgertest

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	racers  = 32
	contend = 6 // jobs that they race for
)

// race runs do on every racer at once.
func (s *suite) race(do func(racer int)) {
	var all sync.WaitGroup
	start := make(chan struct{})
	for n := range racers {
		all.Go(func() {
			<-start
			do(n)
		})
	}
	close(start)
	all.Wait()
}

// wins counts who did it, by job.
type wins [contend]atomic.Int32

// count notes an answer. It may be called by any goroutine.
func (s *suite) count(w *wins, job int, ok bool, err error) {
	if err != nil {
		s.Error(err)
	}
	if ok {
		w[job].Add(1)
	}
}

func (s *suite) oneEach(what string, w *wins) {
	s.Helper()
	for job := range w {
		if n := w[job].Load(); n != 1 {
			s.Errorf("%s: job %d was won %d times, want once", what, job, n)
		}
	}
}

// raceAdmit: of many admissions with one key each one is in, and the others are shown it.
func raceAdmit(s *suite) {
	var list [racers][contend]ledger.Admission
	for n := range list {
		for job := range list[n] {
			list[n][job] = s.admission("t")
			list[n][job].Key = fmt.Sprint("key ", job)
		}
	}
	var admitted wins
	var shown [racers][contend]string
	s.race(func(n int) {
		for job, a := range list[n] {
			taken, err := s.Admit(s.ctx(), a)
			s.count(&admitted, job, err == nil && taken == nil, err)
			shown[n][job] = a.Job.ID
			if taken != nil {
				shown[n][job] = taken.Job.ID
			}
		}
	})
	s.oneEach("admit", &admitted)
	for n := range shown {
		s.same("the jobs that were shown", shown[0], shown[n])
	}
	if n := len(s.entries()); n != contend {
		s.Errorf("%d jobs are open, want %d", n, contend)
	}
}

// contended are jobs that nobody has yet.
func (s *suite) contended() (ids [contend]string) {
	for job := range ids {
		ids[job] = s.queued("t").Job.ID
	}
	return ids
}

// raceLease: of many leases of one job, each with an epoch of its own, one holds, and what is stored is that one.
func raceLease(s *suite) {
	ids := s.contended()
	var leased wins
	var winner [contend]atomic.Int64
	s.race(func(n int) {
		leases := make([]ledger.Lease, contend)
		for i := range leases {
			job := (i + n) % contend // not all in one order
			leases[i] = ledger.Lease{Held: jobs.Held{Job: ids[job], Attempt: 1, Epoch: int64(100*n + job + 1)}, Worker: fmt.Sprint("w", n), Session: int64(n), At: s.now}
		}
		specs, err := s.Lease(s.ctx(), leases)
		for i, ok := range begun(specs) {
			job := (i + n) % contend
			s.count(&leased, job, ok, err)
			if ok {
				winner[job].Store(leases[i].Epoch)
			}
		}
	})
	s.oneEach("lease", &leased)
	for job, id := range ids {
		if e := s.entry(id); e == nil || e.Epoch != winner[job].Load() || e.Worker != fmt.Sprint("w", (e.Epoch-1)/100) || e.Attempt != 1 {
			s.Errorf("entry %+v, and the epoch %d was told that it holds", e, winner[job].Load())
		}
	}
}

// raceEnd: of many who finish and requeue one attempt, one does, and there is one event of it.
func raceEnd(s *suite) {
	ids := s.contended()
	for _, id := range ids {
		s.lease(jobs.Held{Job: id, Attempt: 1, Epoch: 1}, true)
	}
	var ended, finished wins
	r := s.success(1)
	s.race(func(n int) {
		for job, id := range ids {
			h := jobs.Held{Job: id, Attempt: 1, Epoch: 1}
			if (n+job)%2 == 0 {
				ok, err := s.Finish(s.ctx(), h, jobs.StateEnded, r, final(id, 1, r))
				s.count(&ended, job, ok, err)
				s.count(&finished, job, ok, nil)
			} else {
				ok, err := s.Requeue(s.ctx(), h, retry(h, s.now), again(id, 1))
				s.count(&ended, job, ok, err)
			}
		}
	})
	s.oneEach("finish or requeue", &ended)
	events := map[string]jobs.Event{}
	for _, e := range s.told() {
		if _, twice := events[e.Job]; twice {
			s.Errorf("job %s has two events", e.Job)
		}
		events[e.Job] = e
	}
	for job, id := range ids {
		state := jobs.StateQueued
		if finished[job].Load() == 1 {
			state = jobs.StateEnded
		}
		if j := s.job("t", id); j.State != state || (j.Result != nil) != (state == jobs.StateEnded) || events[id].Final != (state == jobs.StateEnded) {
			s.Errorf("job %+v with the event %+v, want it %s", j, events[id], state)
		}
	}
}

// raceQueued: a job that waits is leased, or ended, or canceled and then not leased.
func raceQueued(s *suite) {
	ids := s.contended()
	var won, leased, ended wins
	r := jobs.Result{Ending: jobs.Expired, Class: jobs.ClassPolicy, EndedAt: s.now}
	s.race(func(n int) {
		for job, id := range ids {
			switch (n + job) % 3 {
			case 0:
				specs, err := s.Lease(s.ctx(), []ledger.Lease{{Held: jobs.Held{Job: id, Attempt: 1, Epoch: int64(n + 1)}, Worker: "a", At: s.now}})
				got := len(specs) == 1 && specs[0] != nil
				s.count(&won, job, got, err)
				s.count(&leased, job, got, nil)
			case 1:
				ok, err := s.EndQueued(s.ctx(), id, 0, jobs.StateEnded, r, final(id, 0, r))
				s.count(&won, job, ok, err)
				s.count(&ended, job, ok, nil)
			default:
				j, err := s.RequestCancel(s.ctx(), "t", id)
				if err != nil || j.ID != id || !j.CancelRequested && !j.State.Terminal() {
					s.Errorf("cancel of %s: %+v, %v", id, j, err)
				}
			}
		}
	})
	s.oneEach("lease or end", &won)
	for job, id := range ids {
		state := jobs.StateLeased
		if ended[job].Load() == 1 {
			state = jobs.StateEnded
		}
		if j := s.job("t", id); j.State != state {
			s.Errorf("job %s is %s, want %s", id, j.State, state)
		}
	}
}

// raceRegister: no two sessions are one.
func raceRegister(s *suite) {
	var mu sync.Mutex
	given, latest := map[int64]bool{}, map[string]int64{}
	s.race(func(n int) {
		last := int64(0)
		for range 3 {
			worker := fmt.Sprint("w", n%4)
			session, err := s.Register(s.ctx(), worker, s.now)
			if err != nil || session <= last {
				s.Errorf("session %d after %d, %v", session, last, err)
			}
			last = session
			mu.Lock()
			if given[session] {
				s.Errorf("session %d was given twice", session)
			}
			given[session] = true
			latest[worker] = max(latest[worker], session)
			mu.Unlock()
		}
	})
	s.same("sessions", latest, s.sessions())
}
