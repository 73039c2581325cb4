package ledgertest

import (
	"errors"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func (s *suite) schedule(name string) jobs.Schedule {
	return jobs.Schedule{
		Name: name, Cron: "@every 90s", TimeZone: "Europe/Berlin", Overlap: jobs.OverlapAllow, NextAt: s.tick(),
		Spec: &jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "echo ü\x01"}}},
	}
}

func (s *suite) put(tenant string, sc jobs.Schedule) {
	s.Helper()
	next, err := s.PutSchedule(s.ctx(), tenant, sc, enough)
	if err != nil {
		s.Fatal("put schedule:", err)
	}
	s.same("its next time", sc.NextAt, next)
}

var enough = ledger.Bound{Count: 1000, Bytes: 1 << 20}

func (s *suite) wantSchedule(tenant string, want jobs.Schedule) {
	s.Helper()
	got, err := s.Schedule(s.ctx(), tenant, want.Name)
	if err != nil {
		s.Fatal("schedule:", err)
	}
	s.same("schedule", want, got)
}

func schedules(s *suite) {
	a, b := s.schedule("a"), s.schedule("b")
	s.put("t", b)
	s.put("t", a)
	s.put("other", a)
	s.wantSchedule("t", a)
	got, err := s.Schedules(s.ctx(), "t")
	if err != nil {
		s.Fatal(err)
	}
	s.same("schedules", []jobs.Schedule{a, b}, got)
	for _, of := range [][2]string{{"other", "b"}, {"t", "A"}} {
		if _, err := s.Schedule(s.ctx(), of[0], of[1]); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("schedule %q: %v, want ErrNotFound", of, err)
		}
	}

	fired := func(want bool, was, next time.Time, job string, missed int64) {
		s.Helper()
		if ok, err := s.Fired(s.ctx(), "t", "a", was, next, job, missed); err != nil || ok != want {
			s.Errorf("fired: %v, %v, want %v", ok, err, want)
		}
	}
	was, next := a.NextAt, a.NextAt.Add(time.Minute)
	fired(false, was.Add(time.Microsecond), next, "job", 0)
	fired(true, was, next, "job", 2)
	fired(false, was, next, "again", 0)
	a.NextAt, a.LastAt, a.LastJob, a.Missed = next, was, "job", 2
	s.wantSchedule("t", a)
	fired(true, next, next.Add(time.Minute), "", 1)
	a.NextAt, a.LastAt, a.Missed = next.Add(time.Minute), next, 3
	s.wantSchedule("t", a)

	a.Cron, a.NextAt, a.Paused = "@daily", a.NextAt.Add(time.Hour), true
	put := a
	put.LastAt, put.LastJob, put.Missed = time.Time{}, "other", 99
	s.put("t", put)
	s.wantSchedule("t", a)
	fired(false, a.NextAt, next, "job", 0) // it is paused
	s.reopen()
	s.wantSchedule("t", a)

	for _, want := range []bool{true, false} {
		if ok, err := s.DeleteSchedule(s.ctx(), "t", "a"); err != nil || ok != want {
			s.Errorf("delete: %v, %v, want %v", ok, err, want)
		}
	}
	s.wantSchedule("t", b)
	if _, err := s.Schedule(s.ctx(), "other", "a"); err != nil {
		s.Error("another tenant's is gone:", err)
	}
}

func schedulesDue(s *suite) {
	a, b, paused, late := s.schedule("a"), s.schedule("b"), s.schedule("paused"), s.schedule("late")
	paused.Paused = true
	for _, sc := range []jobs.Schedule{late, paused, b, a} {
		s.put("t", sc)
	}
	s.put("other", b)
	due := func(now time.Time, limit int, want ...ledger.DueSchedule) {
		s.Helper()
		got, err := s.DueSchedules(s.ctx(), now, limit)
		if err != nil {
			s.Fatal(err)
		}
		s.same("due", want, got)
	}
	due(a.NextAt.Add(-time.Microsecond), 10)
	due(a.NextAt, 10, ledger.DueSchedule{Tenant: "t", Name: "a"})
	due(paused.NextAt, 10, ledger.DueSchedule{Tenant: "t", Name: "a"}, ledger.DueSchedule{Tenant: "other", Name: "b"}, ledger.DueSchedule{Tenant: "t", Name: "b"})
	due(late.NextAt, 2, ledger.DueSchedule{Tenant: "t", Name: "a"}, ledger.DueSchedule{Tenant: "other", Name: "b"})
}
