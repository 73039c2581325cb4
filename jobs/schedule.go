package jobs

import "time"

var (
	_ request = (*Schedule)(nil)
	_ request = (*ScheduleQuery)(nil)
	_ request = (*BatchQuery)(nil)
)

// Schedule brings in a job again and again.
type Schedule struct {
	// Name is unique among the tenant's: 1 to 63 letters, digits, _ or -.
	Name string `json:"name"`
	// Cron is when: five fields (minute, hour, day of the month, month, day of the week), or @hourly, @daily, @weekly, @monthly, @every 90s.
	Cron string `json:"cron"`
	// TimeZone is an IANA name like "Europe/Berlin"; empty means UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// Overlap says what happens when it is time and the last job has not ended: "skip" (the default) or "allow".
	Overlap string `json:"overlap,omitempty"`
	// Paused schedules bring in nothing.
	Paused bool `json:"paused,omitempty"`
	// Spec is the job, without id and idempotency key.
	Spec *Spec `json:"spec"`
	// NextAt is when the next job comes in. It and what follows are Paddock's to say: what a put has there is passed over.
	NextAt time.Time `json:"next_at,omitzero"`
	// LastAt is when the last job came in, or was skipped.
	LastAt time.Time `json:"last_at,omitzero"`
	// LastJob is the last job's id.
	LastJob string `json:"last_job,omitempty"`
	// Missed counts times that passed while nobody could bring a job in, and were not made up for, and those that were skipped or refused.
	Missed int64 `json:"missed,omitempty"`
	// LastError is why the last job was not taken. Where that may change it is tried again every second.
	LastError *Error `json:"last_error,omitempty"`
}

// Overlaps of a Schedule.
const (
	OverlapSkip  = "skip"
	OverlapAllow = "allow"
)

// Validate checks a schedule but its times, which the dispatcher reads.
func (s *Schedule) Validate() (err error) {
	defer caught(&err)
	c := &checker{}
	if !tokenRE.MatchString(s.Name) {
		c.fault("name", "%.80q must be 1 to 63 letters, digits, _ or -", s.Name)
	}
	c.text("cron", s.Cron, 200)
	c.oneOf("overlap", s.Overlap, OverlapSkip, OverlapAllow)
	switch {
	case s.Spec == nil:
		c.fault("spec", "is required")
	case s.Spec.ID != "":
		c.fault("spec.id", "cannot be given: each time is a job of its own")
	case s.Spec.IdempotencyKey != "":
		c.fault("spec.idempotency_key", "cannot be given: each time has one of its own")
	case !s.Spec.RunAt.IsZero() || len(s.Spec.DependsOn) > 0:
		c.fault("spec", "cannot have run_at and depends_on: the schedule says when")
	default:
		for _, f := range s.Spec.faults() {
			c.fault("spec."+f.Path, "%s", f.Message)
		}
	}
	if len(*c) > 0 {
		return invalid("invalid schedule", *c)
	}
	return nil
}

// ScheduleQuery names a schedule, to delete it.
type ScheduleQuery struct {
	// Name is the schedule's.
	Name string `json:"name,omitempty"`
}

// SchedulesReply answers what is asked of schedules.
type SchedulesReply struct {
	// Schedules are the one that was put, or all of the tenant's, by name; of delete none.
	Schedules []Schedule `json:"schedules,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it was refused.
	Error *Error `json:"error,omitempty"`
}

func (q *ScheduleQuery) check(c *checker) { c.name("name", q.Name) }

// check leaves the schedule itself to the dispatcher, which validates it in any case.
func (*Schedule) check(*checker) {}
