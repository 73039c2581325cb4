package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Schedules are the operations on what brings jobs in again and again.
type Schedules interface {
	// PutSchedule makes a schedule, or replaces all of it but what has happened: LastAt, LastJob and Missed stay as they are, and NextAt where
	// the times are the same and it was not paused. It gives the next time. ErrBound where the tenant's would be too many or too large.
	PutSchedule(ctx context.Context, tenant string, s jobs.Schedule, b Bound) (next time.Time, err error)
	// Schedule gives one. ErrNotFound if there is none.
	Schedule(ctx context.Context, tenant, name string) (jobs.Schedule, error)
	// Schedules gives a tenant's, by their names.
	Schedules(ctx context.Context, tenant string) ([]jobs.Schedule, error)
	// DeleteSchedule deletes one, and tells whether there was one.
	DeleteSchedule(ctx context.Context, tenant, name string) (bool, error)
	// DueSchedules names those that are not paused and whose NextAt is not after now, the longest due first.
	DueSchedules(ctx context.Context, now time.Time, limit int) ([]DueSchedule, error)
	// Fired moves a schedule on that was due at a time: LastAt is that time then. job is the one that it brought in, empty for none;
	// missed is how many times more it has missed. It gives false, and changes nothing, where the schedule is not due at that time any more.
	Fired(ctx context.Context, tenant, name string, was, next time.Time, job string, missed int64) (bool, error)
}

// DueSchedule names a schedule whose time has come.
type DueSchedule struct{ Tenant, Name string }

// Bound is how many of something a tenant may have, and how many bytes of it.
type Bound struct {
	Count int
	Bytes int64
}

// ErrBound says that a tenant has as much as it may.
var ErrBound = errors.New("the tenant has as much as it may")
