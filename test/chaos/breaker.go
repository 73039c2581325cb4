package chaos

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// breaker breaks things and makes them whole again.
type breaker struct {
	f   *fleet
	say func(format string, args ...any)

	mu     sync.Mutex
	counts map[string]int
	past   []happened
	errs   []error
}

// happened is a fault that was, from before it was made until after it was healed.
type happened struct {
	from, until time.Time
	quiet       bool
}

// run is one of Config.AtOnce: its faults follow each other.
func (b *breaker) run(ctx context.Context, r *rand.Rand) {
	for wait(ctx, between(r, 500*time.Millisecond, 2*time.Second)) {
		class := pick(r, b.f.cfg.Faults)
		t := classes[class](b.f, r)
		if t == nil {
			continue
		}
		release := hold(t.on)
		if release == nil {
			continue // another fault has it
		}
		b.one(ctx, class, t)
		release()
	}
}

// hold takes processes for one fault; nil where another has one of them.
func hold(list []*process) (release func()) {
	var held []*process
	release = func() {
		for _, p := range held {
			p.busy.Unlock()
		}
	}
	for _, p := range list {
		if !p.busy.TryLock() {
			release()
			return nil
		}
		held = append(held, p)
	}
	return release
}

// one has one fault happen. It is healed whatever happens.
func (b *breaker) one(ctx context.Context, class string, t *fault) {
	b.say("%s for %v", t.what, t.last.Round(time.Millisecond))
	whole := context.WithoutCancel(ctx) // a fault lasts as long as it is to
	was := happened{from: time.Now(), quiet: t.quiet}
	err := t.hurt(whole)
	wait(whole, t.last)
	err = errors.Join(err, t.heal(whole))
	was.until = time.Now()
	b.say("%s is over", t.what)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[class]++
	b.past = append(b.past, was)
	if err != nil {
		b.errs = append(b.errs, fmt.Errorf("%s: %w", t.what, err))
	}
}

// stall is how long this process goes without its turn where the machine stands still, or does so much else that others may as well.
const stall = time.Second

// stalls takes notice of what nobody has made: that for a while nothing went on.
func (b *breaker) stalls(ctx context.Context) {
	for last := time.Now(); wait(ctx, stall/10); last = time.Now() {
		if now := time.Now(); now.Sub(last) > stall {
			b.say("this machine stood still for %v", now.Sub(last).Round(time.Millisecond))
			b.mu.Lock()
			b.past = append(b.past, happened{from: last, until: now})
			b.mu.Unlock()
		}
	}
}

// leading gives the dispatcher that leads in the place of the first, where it is known; any other process as it is. So of two dispatchers
// that are chosen alike the one that leads is hurt more often.
func (f *fleet) leading(p *process) *process {
	if len(f.dispatchers) > 1 && p == f.dispatchers[0] {
		if l := f.leader(); l != nil {
			return l
		}
	}
	return p
}

// leader is the dispatcher that the ledger says leads; nil where it does not say.
func (f *fleet) leader() *process {
	db, err := f.openLedger()
	if err != nil {
		return nil
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var holder string
	if db.QueryRowContext(ctx, `SELECT holder FROM leader`).Scan(&holder) != nil {
		return nil
	}
	m := holderPID.FindStringSubmatch(holder)
	if m == nil {
		return nil
	}
	for _, d := range f.dispatchers {
		if strconv.Itoa(d.pid()) == m[1] {
			return d
		}
	}
	return nil
}

var holderPID = regexp.MustCompile(`process (\d+)`)

// openLedger opens the ledger's database, past Paddock.
func (f *fleet) openLedger() (*sql.DB, error) { return sql.Open(f.ledgerDriver, f.ledgerName) }
