package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// A schedule's job has an idempotency key of the schedule and the time that it is for, so that it comes in once, whatever dies between its
// admission and the note that it was admitted.

// maxSchedules is how many a tenant may have, and maxScheduleBytes what they may have together: those that a quota holds up are read again and
// again.
const (
	maxSchedules     = 1000
	maxScheduleBytes = 8 << 20
)

// PutSchedule makes a schedule, or changes the one of its name; one whose times stay as they are keeps the next of them. An error is a
// *jobs.Error.
func (d *Dispatcher) PutSchedule(ctx context.Context, tenant string, s jobs.Schedule) (jobs.Schedule, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return s, err
	}
	if err := s.Validate(); err != nil {
		return s, err
	}
	when, err := timetable(s)
	if err != nil {
		return s, err
	}
	if err := d.ready(ctx); err != nil {
		return s, err
	}
	s.NextAt, s.LastAt, s.LastJob, s.Missed, s.LastError = when.Next(time.Now()).UTC(), time.Time{}, "", 0, nil // the ledger keeps what has happened
	if s.NextAt.IsZero() {
		return s, invalid(jobs.Fault{Path: "cron", Message: "names no time in the next five years"})
	}
	s.NextAt, err = d.cfg.Store.PutSchedule(ctx, tenant, s, ledger.Bound{Count: maxSchedules, Bytes: maxScheduleBytes})
	d.newSchedule.set() // also where the answer was lost
	if errors.Is(err, ledger.ErrBound) {
		return s, &jobs.Error{Code: jobs.CodeQuota, Message: fmt.Sprintf("a tenant may have %d schedules, of %d MiB together", maxSchedules, maxScheduleBytes>>20)}
	}
	if err != nil {
		return s, d.broken(ctx, "keep schedule", err)
	}
	d.refusedBy(tenant, s.Name, nil)
	return s, nil
}

// refusedBy notes why a schedule's job was not taken; nil where it was.
func (d *Dispatcher) refusedBy(tenant, name string, err *jobs.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if key := tenant + "/" + name; err == nil {
		delete(d.refusals, key)
	} else {
		d.refusals[key] = err
	}
}

// timetable gives the times of a schedule.
func timetable(s jobs.Schedule) (cron.Schedule, error) {
	line := s.Cron
	if strings.Contains(line, "TZ=") {
		return nil, invalid(jobs.Fault{Path: "cron", Message: "names a time zone: give it in time_zone"})
	}
	zone := s.TimeZone
	if zone == "" {
		zone = "UTC"
	}
	if _, err := time.LoadLocation(zone); err != nil || zone == "Local" {
		return nil, invalid(jobs.Fault{Path: "time_zone", Message: fmt.Sprintf("%.80q is no IANA time zone, like Europe/Berlin", s.TimeZone)})
	}
	if !strings.HasPrefix(line, "@every ") {
		line = "CRON_TZ=" + zone + " " + line
	}
	when, err := cron.ParseStandard(line)
	if err != nil {
		return nil, invalid(jobs.Fault{Path: "cron", Message: fmt.Sprintf("%.80q: %v; want five fields (minute hour day month weekday), @hourly, @daily, @weekly, @monthly or @every 90s", s.Cron, err)})
	}
	return when, nil
}

// Schedules gives a tenant's, by name; Schedule one of them.
func (d *Dispatcher) Schedules(ctx context.Context, tenant string) ([]jobs.Schedule, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return nil, err
	}
	l, err := d.cfg.Store.Schedules(ctx, tenant)
	if err != nil {
		return nil, d.broken(ctx, "list schedules", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range l {
		l[i].LastError = d.refusals[tenant+"/"+l[i].Name]
	}
	return l, nil
}

// DeleteSchedule takes a schedule away. The jobs that it brought in stay.
func (d *Dispatcher) DeleteSchedule(ctx context.Context, tenant, name string) error {
	if err := jobs.ValidTenant(tenant); err != nil {
		return err
	}
	was, err := d.cfg.Store.DeleteSchedule(ctx, tenant, name)
	if err != nil {
		return d.broken(ctx, "delete schedule", err)
	}
	if !was {
		return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no schedule %.80q", name)}
	}
	d.refusedBy(tenant, name, nil)
	return nil
}

const (
	// scheduleLooks is how often schedules whose time has come are looked for; the ledger is asked where one may have, and for scheduleAhead.
	scheduleLooks = time.Second
	scheduleAhead = 30 * time.Second
	dueAtOnce     = 10_000 // those that a quota holds up stay due, and are not to hold up others
	// fireAtOnce of them are brought in at once, so that the ledger commits them together: many are due on the hour.
	fireAtOnce = 64
)

// fire brings in the jobs of schedules, until ctx ends.
func (d *Dispatcher) fire(ctx context.Context) error {
	tick := time.NewTicker(scheduleLooks)
	defer tick.Stop()
	var none time.Time // until when, by the clock that schedules go by, there is none, unless one is put
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.newSchedule:
			none = time.Time{}
		case <-tick.C:
		}
		now := time.Now().Round(0)
		if now.Before(none) {
			continue
		}
		due, err := d.cfg.Store.DueSchedules(ctx, now.Add(scheduleAhead), 1)
		switch {
		case err == nil && len(due) == 0:
			none = now.Add(scheduleAhead)
		case err == nil:
			due, err = d.cfg.Store.DueSchedules(ctx, now, dueAtOnce)
		}
		if err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("look after schedules") // the next tick tries again
		}
		var g errgroup.Group
		g.SetLimit(fireAtOnce)
		for _, s := range due {
			g.Go(func() error {
				if err := d.fireOne(ctx, s.Tenant, s.Name); err != nil && ctx.Err() == nil {
					zerolog.Ctx(ctx).Error().Err(err).Str("tenant", s.Tenant).Str("schedule", s.Name).Msg("look after a schedule")
					d.refusedBy(s.Tenant, s.Name, jobs.ErrorOf(err))
				}
				return nil
			})
		}
		_ = g.Wait() // each has handled its own
	}
}

// fireOne brings in the job of a schedule whose time has come: one, however many times have passed since.
func (d *Dispatcher) fireOne(ctx context.Context, tenant, name string) error {
	s, err := d.cfg.Store.Schedule(ctx, tenant, name)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && (s.Paused || s.NextAt.After(time.Now())) {
		return nil // somebody has changed it meanwhile
	}
	if err != nil {
		return err
	}
	when, err := timetable(s)
	if err != nil {
		return err
	}
	now := time.Now()
	at, missed := latest(when, s.NextAt, now)
	next := when.Next(now).UTC()
	skip, err := d.overlaps(ctx, tenant, s)
	if err != nil {
		return err
	}
	job := ""
	if skip {
		missed++
	} else {
		spec := *s.Spec
		spec.IdempotencyKey = scheduleKey(s.Name, at)
		j, _, err := d.admit(ctx, tenant, &spec, spec.IdempotencyKey)
		refused := jobs.ErrorOf(err)
		d.refusedBy(tenant, s.Name, refused)
		if refused != nil && refused.RetryAfterMS > 0 {
			return nil // it stays due
		}
		if job = j.ID; refused != nil {
			missed++
		}
	}
	_, err = d.cfg.Store.Fired(ctx, tenant, s.Name, s.NextAt, next, job, missed)
	return err
}

// latest gives the last time of a schedule that is not after now, from one that has come, and how many have passed before it.
func latest(when cron.Schedule, due, now time.Time) (at time.Time, passed int64) {
	const most = 100_000 // of a schedule that nobody looked after for long
	for at = due; passed < most; passed++ {
		next := when.Next(at)
		if next.IsZero() || next.After(now) {
			break
		}
		at = next
	}
	return at.UTC(), passed
}

// overlaps tells whether a schedule's last job has not ended and it wants no two.
func (d *Dispatcher) overlaps(ctx context.Context, tenant string, s jobs.Schedule) (bool, error) {
	if s.Overlap == jobs.OverlapAllow || s.LastJob == "" {
		return false, nil
	}
	o, err := d.cfg.Store.Outcomes(ctx, tenant, []string{s.LastJob})
	return o[s.LastJob].Open, err
}
