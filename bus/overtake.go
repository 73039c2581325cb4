package bus

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/jobs"
)

// The stream of enqueued specs is one for all tenants and given out in its order, and no more than maxJudging at once. So that nobody's spec
// waits for another's many, those of tenants of whom the consumer gives out nothing at the moment are read where they lie, judged, and
// removed. One that the consumer gives out all the same finds its job by its key.

// overtaking is what is known for it.
type overtaking struct {
	behind chan struct{} // has something when the consumer gave out a spec and had more

	mu    sync.Mutex
	turns map[string]time.Time // of whom it gave out something, and when
	busy  map[string]uint64    // whose specs are being judged here, and how many there are
	read  map[string]uint64    // up to where they have been
	later map[string]time.Time // whose spec is to be tried again, and when: those behind it wait as well
	none  map[string]looked    // of whose specs the consumer has given out all
}

// looked is what there was of a tenant's at a time.
type looked struct {
	specs uint64
	at    time.Time
}

const (
	// overtakeEvery is how long somebody's first spec behind many of others' waits, about, and overtakeIdle the pause between two looks when
	// nothing seems to be behind.
	overtakeEvery = 20 * time.Millisecond
	overtakeIdle  = time.Second
	// overtakeAtOnce is of how many tenants specs are judged at once that overtake, and about of how many specs where they are fewer; of each
	// tenant's it is overtakeInRow at least.
	overtakeAtOnce = 32
	overtakeInRow  = 4
	// inTurn is for how long after a spec of a tenant's the consumer is taken to give out the next by itself.
	inTurn = 100 * time.Millisecond
)

func newOvertaking() *overtaking {
	return &overtaking{behind: make(chan struct{}, 1), turns: map[string]time.Time{}, busy: map[string]uint64{}, read: map[string]uint64{}, later: map[string]time.Time{}, none: map[string]looked{}}
}

// given notes that the consumer has given out a tenant's spec, and how many of all it has not yet.
func (o *overtaking) given(tenant string, pending uint64) {
	o.mu.Lock()
	o.turns[tenant] = time.Now()
	o.mu.Unlock()
	if pending > 0 {
		select {
		case o.behind <- struct{}{}:
		default:
		}
	}
}

// overtake looks for what overtakes until ctx ends.
func (e *enqueueing) overtake(ctx context.Context) {
	var judging errgroup.Group
	judging.SetLimit(overtakeAtOnce)
	defer judging.Wait() //nolint:errcheck // they give none
	for told := false; ctx.Err() == nil; {
		began := time.Now()
		tenants, n, more, err := e.look(ctx)
		if err != nil && ctx.Err() == nil && !told {
			e.bus.log.Warn().Err(err).Msg("nats: look for enqueued specs behind others'")
		}
		told = err != nil
		for i, tenant := range tenants {
			if !judging.TryGo(func() error {
				e.some(ctx, tenant, n)
				return nil
			}) {
				e.rest(tenants[i:]) // the places are taken, for now
				break
			}
		}
		if more {
			pause(ctx, max(overtakeEvery, 4*time.Since(began))) // to look takes the longer the more tenants there are
			continue
		}
		idle := time.NewTimer(overtakeIdle)
		select {
		case <-ctx.Done():
		case <-e.behind:
		case <-idle.C:
		}
		idle.Stop()
	}
}

// look tells which tenants wait behind others, to be judged now, in no order, and how many of each one's specs. more: there is something
// behind, or the consumer gives out nothing more.
func (e *enqueueing) look(ctx context.Context) (tenants []string, each int, more bool, err error) {
	e.mu.Lock()
	now := time.Now()
	maps.DeleteFunc(e.turns, func(_ string, at time.Time) bool { return now.Sub(at) > inTurn })
	maps.DeleteFunc(e.later, func(_ string, at time.Time) bool { return now.After(at) })
	e.mu.Unlock()
	c, err := e.consumer.Info(ctx)
	if err != nil || c.NumPending == 0 {
		return nil, 0, err == nil && c.NumAckPending >= c.Config.MaxAckPending, err
	}
	info, err := e.stream.Info(ctx, jetstream.WithSubjectFilter(jobs.EnqueueSubjects))
	if err != nil {
		return nil, 0, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.none, func(tenant string, l looked) bool {
		return info.State.Subjects[jobs.EnqueueSubject(tenant)] != l.specs || now.Sub(l.at) > overtakeIdle
	})
	maps.DeleteFunc(e.read, func(_ string, seq uint64) bool { return seq <= c.Delivered.Stream })
	for subject, specs := range info.State.Subjects {
		tenant := token(subject, 3)
		_, turn := e.turns[tenant]
		_, later := e.later[tenant]
		_, none := e.none[tenant]
		if turn || later || none || e.busy[tenant] > 0 || jobs.ValidTenant(tenant) != nil {
			continue
		}
		e.read[tenant] = max(e.read[tenant], c.Delivered.Stream)
		e.busy[tenant] = specs
		tenants = append(tenants, tenant)
	}
	return tenants, max(overtakeInRow, overtakeAtOnce/max(1, len(e.busy))), true, nil
}

// rest notes that nothing of the tenants' is being judged here.
func (o *overtaking) rest(tenants []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range tenants {
		delete(o.busy, t)
	}
}

// some judges up to n of the specs of a tenant's that follow what has been read.
func (e *enqueueing) some(ctx context.Context, tenant string, n int) {
	defer e.rest([]string{tenant})
	e.mu.Lock()
	from := e.read[tenant]
	e.mu.Unlock()
	var specs []enqueued
	for len(specs) < n {
		m, err := e.stream.GetMsg(ctx, from+1, jetstream.WithGetMsgSubject(jobs.EnqueueSubject(tenant)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			if ctx.Err() == nil {
				e.bus.log.Warn().Err(err).Str("tenant", tenant).Msg("nats: read an enqueued spec")
			}
			return
		}
		from = m.Sequence
		specs = append(specs, enqueued{subject: m.Subject, header: m.Header, data: m.Data, seq: m.Sequence, at: m.Time})
	}
	pauses := make([]time.Duration, len(specs))
	var judging sync.WaitGroup
	for i, o := range specs {
		judging.Go(func() {
			if pauses[i], _ = e.judge(ctx, o); pauses[i] == 0 {
				_ = e.stream.DeleteMsg(ctx, o.seq) // where that fails the consumer gives it out, and it finds its job
			}
		})
	}
	judging.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.IndexFunc(pauses, func(d time.Duration) bool { return d > 0 }); i >= 0 {
		from = specs[i].seq - 1
		e.later[tenant] = time.Now().Add(pauses[i])
	}
	e.read[tenant] = from
	if len(specs) == 0 {
		e.none[tenant] = looked{e.busy[tenant], time.Now()}
	}
}
