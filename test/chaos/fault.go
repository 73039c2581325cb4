package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// fault is one thing that is broken and made whole again.
type fault struct {
	on   []*process
	what string
	// hurt breaks it; heal makes it whole. How long it stays broken is last.
	hurt func(ctx context.Context) error
	heal func(ctx context.Context) error
	last time.Duration
	// quiet says that no attempt is to be lost by it.
	quiet bool
}

// classes choose a fault each; nil where there is none at the moment. What is chosen depends on the source of chance alone.
var classes = map[string]func(f *fleet, r *rand.Rand) *fault{
	"clock":     setClock,
	"kill":      kill,
	"pause":     pause,
	"partition": partition,
	"latency":   latency,
	"disk":      fill,
	"rollback":  rollback,
}

func pick[T any](r *rand.Rand, l []T) T { return l[r.IntN(len(l))] }

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// member picks a dispatcher, a worker, a node, the database or one of others, each kind as often as another.
func member(f *fleet, r *rand.Rand, others ...*process) *process {
	groups := [][]*process{f.dispatchers, f.workers, f.nodes}
	for _, p := range append(others, f.postgres) {
		if p != nil {
			groups = append(groups, []*process{p})
		}
	}
	return pick(r, pick(r, groups))
}

// again starts a process that was killed, more than once where what it needs is broken too.
func again(p *process) func(context.Context) error {
	return func(ctx context.Context) error {
		end := time.Now().Add(readyWithin)
		for {
			if err := p.start(); err != nil {
				return err
			}
			if p.standsBy {
				return nil // it is of use when another is not; the supervisor looks after it
			}
			err := p.await(ctx)
			if err == nil || p.alive() || time.Now().After(end) {
				return err
			}
		}
	}
}

// kill ends a process as a crash would, and starts it again soon.
func kill(f *fleet, r *rand.Rand) *fault {
	p := f.leading(member(f, r, f.redis))
	t := &fault{
		on: []*process{p}, what: "SIGKILL " + p.name, last: between(r, 0, 3*time.Second),
		hurt: func(context.Context) error { p.kill(); return nil }, heal: again(p),
	}
	if p == f.postgres {
		t.hurt = func(context.Context) error { f.database.Kill(); return nil }
		t.heal = func(context.Context) error { return f.database.Start() }
	}
	return t
}

// pause stops a process for longer than a lease, and lets it go on as if nothing had been.
func pause(f *fleet, r *rand.Rand) *fault {
	p := f.leading(member(f, r))
	t := &fault{
		on: []*process{p}, what: "SIGSTOP " + p.name, last: leaseTTL + leaseGrace + between(r, time.Second, 4*time.Second),
		hurt: func(context.Context) error { p.signal(syscall.SIGSTOP); return nil },
		heal: func(context.Context) error { p.signal(syscall.SIGCONT); return nil },
	}
	if p == f.postgres {
		t.hurt = func(context.Context) error { f.database.Pause(); return nil }
		t.heal = func(context.Context) error { f.database.Resume(); return nil }
	}
	return t
}

// latency delays what goes between a process and all that it connects to.
func latency(f *fleet, r *rand.Rand) *fault {
	p := pick(r, pick(r, [][]*process{f.dispatchers, f.workers}))
	ms := 20 + r.IntN(400)
	links := f.linksOf(p.name)
	return &fault{
		on: []*process{p}, what: fmt.Sprintf("%d ms between %s and all that it connects to", ms, p.name), last: between(r, 3*time.Second, 8*time.Second),
		hurt: func(context.Context) error { return each(links, func(l *link) error { return l.slow(ms, ms/2) }) },
		heal: func(context.Context) error { return each(links, (*link).renew) },
	}
}

func each(links []*link, do func(*link) error) error {
	var errs []error
	for _, l := range links {
		errs = append(errs, do(l))
	}
	return errors.Join(errs...)
}
