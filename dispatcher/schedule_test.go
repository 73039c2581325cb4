package dispatcher_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // for hosts without

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func every(cron string) jobs.Schedule { return jobs.Schedule{Name: "s", Cron: cron, Spec: spec()} }

func (r *rig) put(s jobs.Schedule) jobs.Schedule {
	r.Helper()
	s, err := r.PutSchedule(r.Context(), "t", s)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *rig) schedule() jobs.Schedule {
	r.Helper()
	l, err := r.Schedules(r.Context(), "t")
	if err != nil || len(l) != 1 {
		r.Fatalf("schedules %+v, %v", l, err)
	}
	return l[0]
}

// count is how many jobs the tenant has.
func (r *rig) count() int {
	r.Helper()
	l, err := r.List(r.Context(), "t", jobs.ListRequest{Limit: 1000})
	if err != nil {
		r.Fatal(err)
	}
	return len(l.Jobs)
}

func TestScheduleInvalid(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		with := func(change func(s *jobs.Schedule)) jobs.Schedule {
			s := every("@daily")
			change(&s)
			return s
		}
		for path, s := range map[string]jobs.Schedule{
			"name":                 with(func(s *jobs.Schedule) { s.Name = "a b" }),
			"cron":                 with(func(s *jobs.Schedule) { s.Cron = "61 * * * *" }),
			"time_zone":            with(func(s *jobs.Schedule) { s.TimeZone = "Mars/Olympus" }),
			"overlap":              with(func(s *jobs.Schedule) { s.Overlap = "queue" }),
			"spec":                 with(func(s *jobs.Schedule) { s.Spec = nil }),
			"spec.steps":           with(func(s *jobs.Schedule) { s.Spec.Steps = nil }),
			"spec.idempotency_key": with(func(s *jobs.Schedule) { s.Spec.IdempotencyKey = "k" }),
		} {
			_, err := r.PutSchedule(r.Context(), "t", s)
			if got := paths(err); len(got) != 1 || got[0] != path {
				r.Errorf("%s: %v", path, err)
			}
		}
		_, err := r.PutSchedule(r.Context(), "t", every("0 0 30 2 *"))
		r.wantCode("a day that never comes", jobs.CodeInvalid, err)
		r.wantCode("delete an unknown one", jobs.CodeNotFound, r.DeleteSchedule(r.Context(), "t", "s"))
	})
}

// A schedule brings in one job for each of its times, whatever is started anew in between.
func TestSchedule(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		s := r.put(every("*/10 * * * *")) // the bubble begins at midnight
		if want := time.Date(2000, 1, 1, 0, 10, 0, 0, time.UTC); !s.NextAt.Equal(want) {
			r.Fatalf("the first is at %v, want %v", s.NextAt, want)
		}
		for n := range 6 {
			at := s.NextAt.Add(time.Duration(n) * 10 * time.Minute)
			time.Sleep(time.Until(at))
			if n == 3 {
				r.restart()
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if got := r.count(); got != n+1 {
				r.Fatalf("%d jobs after %d times", got, n+1)
			}
			a := r.worker("a")
			a.ok(a.one())
		}
		if got := r.schedule(); got.Missed != 0 || got.LastJob == "" || !got.NextAt.Equal(s.NextAt.Add(time.Hour)) {
			r.Errorf("%+v", got)
		}
		if err := r.DeleteSchedule(r.Context(), "t", "s"); err != nil {
			r.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := r.count(); got != 6 {
			r.Errorf("%d jobs, and the schedule was deleted", got)
		}
	})
}

// While the last job has not ended, times pass; or there are two at once, where it says so.
func TestScheduleOverlap(t *testing.T) {
	for overlap, want := range map[string]int{"": 1, jobs.OverlapSkip: 1, jobs.OverlapAllow: 3} {
		t.Run(overlap, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				s := every("@hourly")
				s.Overlap = overlap
				r.put(s)
				time.Sleep(3*time.Hour + time.Minute)
				if got := r.count(); got != want {
					r.Errorf("%d jobs, want %d", got, want)
				}
				if got := r.schedule(); got.Missed != int64(3-want) {
					r.Errorf("%d missed", got.Missed)
				}
			})
		})
	}
}

// Where clocks are set forwards a time that does not exist is passed over; where they are set back one that comes twice brings in two jobs.
func TestScheduleDaylightSaving(t *testing.T) {
	at := func(month time.Month, day, hour, minute int) time.Time {
		return time.Date(2000, month, day, hour, minute, 0, 0, time.UTC)
	}
	for name, c := range map[string]struct {
		begin, end  time.Time
		first, last time.Time // the next times then
		jobs        int
	}{
		"forwards": {at(time.March, 25, 12, 0), at(time.March, 26, 12, 0), at(time.March, 27, 0, 30), at(time.March, 27, 0, 30), 0},
		"back":     {at(time.October, 28, 12, 0), at(time.October, 29, 12, 0), at(time.October, 29, 0, 30), at(time.October, 30, 1, 30), 2},
	} {
		t.Run(name, func(t *testing.T) {
			riggedAt(t, c.begin, dispatcher.Config{}, func(r *rig) {
				s := every("30 2 * * *")
				s.TimeZone, s.Overlap = "Europe/Berlin", jobs.OverlapAllow
				if s = r.put(s); !s.NextAt.Equal(c.first) {
					r.Errorf("the first is at %s, want %s", s.NextAt, c.first)
				}
				time.Sleep(time.Until(c.end))
				if n := r.count(); n != c.jobs {
					r.Errorf("%d jobs, want %d", n, c.jobs)
				}
				if got := r.schedule(); got.Missed != 0 || !got.NextAt.Equal(c.last) {
					r.Errorf("the next is at %s, want %s, and %d are missed", got.NextAt, c.last, got.Missed)
				}
			})
		})
	}
}

// Times that passed while nobody was there are made up for by one job.
func TestScheduleMissed(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.put(every("@hourly"))
		r.kill()
		time.Sleep(5*time.Hour + 30*time.Minute)
		r.start()
		time.Sleep(2 * time.Second)
		if got := r.count(); got != 1 {
			r.Errorf("%d jobs, want one", got)
		}
		if got := r.schedule(); got.Missed != 4 || !got.NextAt.Equal(time.Date(2000, 1, 1, 6, 0, 0, 0, time.UTC)) {
			r.Errorf("%+v", got)
		}
	})
}

// What is refused for now comes in later; what can never run is told of.
func TestScheduleRefused(t *testing.T) {
	rigged(t, dispatcher.Config{MaxQueued: 1}, func(r *rig) {
		r.worker("a")
		other := r.admit(spec())
		r.put(every("@hourly"))
		time.Sleep(time.Hour + time.Minute)
		if got := r.schedule(); got.LastError == nil || got.LastError.Code != jobs.CodeQueueFull {
			r.Errorf("%+v", got)
		}
		if _, err := r.Cancel(r.Context(), "t", other.ID); err != nil {
			r.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := r.schedule(); got.LastError != nil || got.LastJob == "" {
			r.Errorf("%+v", got)
		}
		if _, err := r.Cancel(r.Context(), "t", r.schedule().LastJob); err != nil {
			r.Fatal(err)
		}
		s := every("@hourly")
		s.Spec.Image = "cobol"
		s = r.put(s)
		time.Sleep(time.Until(s.NextAt) - time.Second)
		r.worker("a")
		time.Sleep(3 * time.Second)
		if got := r.schedule(); got.LastError == nil || got.LastError.Code != jobs.CodeInvalid || !got.NextAt.After(time.Now()) {
			r.Errorf("%+v", got)
		}
	})
}

// Who puts a schedule again and again, as a deployment does, does not push its next time away.
func TestSchedulePutAgain(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		first := r.put(every("@every 1h"))
		for range 5 {
			time.Sleep(10 * time.Minute)
			if again := r.put(every("@every 1h")); !again.NextAt.Equal(first.NextAt) {
				r.Errorf("put again the next time is %s, it was %s", again.NextAt, first.NextAt)
			}
		}
		time.Sleep(11 * time.Minute)
		if n := r.count(); n != 1 {
			r.Errorf("after an hour there are %d jobs", n)
		}
		if other := r.put(every("@every 2h")); other.NextAt.Sub(time.Now().UTC()) < time.Hour {
			r.Errorf("with other times it comes at %s", other.NextAt)
		}
		s := every("@every 2h")
		s.Paused = true
		r.put(s)
		time.Sleep(24 * time.Hour)
		if again := r.put(every("@every 2h")); again.NextAt.Before(time.Now()) {
			r.Errorf("after a pause it makes up for what was passed over: %s", again.NextAt)
		}
	})
}

func TestSchedulesBounded(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		for n := range 1000 {
			s := every("@daily")
			s.Name = fmt.Sprint("s", n)
			r.put(s)
		}
		s := every("@daily")
		s.Name = "more"
		_, err := r.PutSchedule(r.Context(), "t", s)
		r.wantCode("one more", jobs.CodeQuota, err)
		s.Name = "s7"
		r.put(s)
	})
}

// Those that are due at one time are not brought in one after the other: one tenant's many would hold up all others'.
func TestSchedulesTogether(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		for n := range 100 {
			s := every("@hourly")
			s.Name = fmt.Sprint("s", n)
			r.put(s)
		}
		if _, err := r.PutSchedule(r.Context(), "z", every("@hourly")); err != nil {
			r.Fatal(err)
		}
		r.store.before(func(op string) error {
			if op == "admit" {
				time.Sleep(time.Second) // what a commit takes of a ledger that is slow
			}
			return nil
		})
		time.Sleep(time.Hour + 10*time.Second)
		if l, err := r.List(r.Context(), "z", jobs.ListRequest{}); err != nil || len(l.Jobs) != 1 {
			r.Errorf("ten seconds after its time it has brought in %d jobs, %v", len(l.Jobs), err)
		}
		if n := r.count(); n != 100 {
			r.Errorf("%d jobs of the other's 100", n)
		}
	})
}

// A schedule that cannot be read, because a newer version has written it, holds up no other.
func TestScheduleUnreadable(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		for _, name := range []string{"bad", "good"} {
			s := every("@hourly")
			s.Name = name
			if _, err := r.PutSchedule(r.Context(), "t", s); err != nil {
				r.Fatal(err)
			}
		}
		r.kill()
		if _, err := r.disk.db.ExecContext(r.Context(), `UPDATE schedules SET data = '?' WHERE name = 'bad'`); err != nil {
			r.Fatal(err)
		}
		r.start()
		time.Sleep(time.Hour + 2*time.Second)
		if n := r.count(); n != 1 {
			r.Errorf("%d jobs came in, want the good one's", n)
		}
	})
}
