package objects

import (
	"context"
	"time"
)

// usage is what a tenant's objects take, guarded by S3.mu. All are counted when a tenant puts something for the first time, and whenever they are
// listed, as Collector does within the hour; between that it is known from what is put and deleted here.
type usage struct {
	bytes int64
	at    time.Time // they were counted then
	begun uint64    // the step at which that count began
	step  uint64    // of changes and counts

	// changed has what has changed since the count began that bytes is from: a later one has it in its list, or not.
	changed map[string]change // by name
	count   *outcome          // of a count that somebody waits for; nil: none
}

// change is what an object takes since a step: nothing where it is deleted.
type change struct {
	bytes int64
	step  uint64
}

// countedFor is how long what was counted is believed; a dispatcher that leads counts anew before that.
const countedFor = 3 * time.Hour

// usageOf gives a tenant's; s.mu is held.
func (s *S3) usageOf(tenant string) *usage {
	u := s.usage[tenant]
	if u == nil {
		u = &usage{changed: map[string]change{}}
		s.usage[tenant] = u
	}
	return u
}

// set notes what an object takes from now on, which was that much until now; s.mu is held.
func (u *usage) set(name string, was, is int64) {
	if c, ok := u.changed[name]; ok {
		was = c.bytes
	}
	u.step++
	u.bytes += is - was
	u.changed[name] = change{is, u.step}
}

// room refuses what a tenant has no room for, and notes what it takes, until gone says that it does not. What two dispatchers put at the same
// time, and workers, may be a little more.
func (s *S3) room(ctx context.Context, tenant, name string, size int64) error {
	if s.config.TenantBytes == 0 {
		return nil
	}
	if err := s.counted(ctx, tenant); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.usageOf(tenant)
	if u.bytes+size-u.changed[name].bytes > s.config.TenantBytes {
		return noRoomFor(tenant, "write object")
	}
	u.set(name, 0, size)
	return nil
}

// gone notes that an object which had so many bytes is not there.
func (s *S3) gone(tenant, name string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.usage[tenant]; u != nil {
		u.set(name, size, 0)
	}
}

// counted waits until a tenant's objects are counted. That goes on when ctx has ended: who comes again finds it farther.
func (s *S3) counted(ctx context.Context, tenant string) error {
	s.mu.Lock()
	u := s.usageOf(tenant)
	if !u.at.IsZero() && time.Since(u.at) < countedFor {
		s.mu.Unlock()
		return nil
	}
	c := u.count
	if c == nil {
		c = &outcome{done: make(chan struct{})}
		u.count = c
		s.counting.Go(func() { //nolint:contextcheck // it is for all who wait, and those who come again
			defer close(c.done)
			ctx, cancel := context.WithTimeout(s.ctx, within)
			defer cancel()
			_, c.err = s.List(ctx, tenant)
			s.mu.Lock()
			defer s.mu.Unlock()
			u.count = nil
		})
	}
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return s.failed(ctx, tenant, "", "count the tenant's objects", ctx.Err())
	}
}

// beginCount gives the step at which a list begins, and endCount takes its outcome.
func (s *S3) beginCount(tenant string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.usageOf(tenant)
	u.step++
	return u.step
}

func (s *S3) endCount(tenant string, begun uint64, all []Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.usageOf(tenant)
	if begun < u.begun { // another, which began later, was there first
		return
	}
	u.begun, u.at, u.bytes = begun, time.Now(), 0
	for name, c := range u.changed {
		if c.step < begun {
			delete(u.changed, name)
		} else {
			u.bytes += c.bytes
		}
	}
	for _, i := range all {
		if _, since := u.changed[i.Name]; !since {
			u.bytes += i.Size
		}
	}
}
