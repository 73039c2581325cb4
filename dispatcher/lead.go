package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Several processes may share a ledger; one of them leads, for a term that the ledger gives, and has the one Dispatcher. The others stand by.
// What a deposed leader still has on its way is refused by the ledger: every write of it is of a term, and of the current one only.

const (
	// leadTTL is how long a leader leads that nobody hears of any more, and leadEvery how often it renews.
	leadTTL   = 5 * time.Second
	leadEvery = 1500 * time.Millisecond
	// leadMargin is how long before its time is over by the ledger's clock a leader takes it to be over: its own clock may run slower.
	leadMargin = time.Second
)

// Lead runs a dispatcher whenever this process, known as holder, leads, and serves it: serve gets a context that ends with the term. It
// returns when ctx has ended, or with an error that another term would not be without.
func Lead(ctx context.Context, cfg Config, holder string, serve func(ctx context.Context, d *Dispatcher) error) error {
	for ctx.Err() == nil {
		term, at, err := campaign(ctx, cfg.Store, holder)
		if errors.Is(err, ledger.ErrOutdated) {
			return err
		}
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		switch err := reign(ctx, cfg, holder, term, at, serve); {
		case err == nil, errors.Is(err, ledger.ErrNotLeader):
		case errors.Is(err, ledger.ErrUnavailable):
			pause(ctx, leadEvery)
		default:
			return err
		}
	}
	return nil
}

// campaign waits until this process leads, or never may: ErrOutdated. at is when the ledger was asked.
func campaign(ctx context.Context, store ledger.Store, holder string) (term int64, at time.Time, err error) {
	log := zerolog.Ctx(ctx)
	for told := false; ; pause(ctx, leadEvery) {
		if ctx.Err() != nil {
			return 0, at, context.Cause(ctx)
		}
		at = time.Now()
		term, err = store.Lead(ctx, holder, leadTTL)
		switch {
		case err == nil, errors.Is(err, ledger.ErrOutdated):
			return term, at, err
		case errors.Is(err, ledger.ErrNotLeader):
			if !told {
				log.Info().Err(err).Msg("another dispatcher leads; this one stands by")
				told = true
			}
		case ctx.Err() == nil:
			log.Error().Err(err).Msg("ask the ledger who leads")
		}
	}
}

// reign is one term.
func reign(ctx context.Context, cfg Config, holder string, term int64, at time.Time, serve func(context.Context, *Dispatcher) error) error {
	log := zerolog.Ctx(ctx).With().Int64("term", term).Logger()
	log.Info().Msg("this dispatcher leads")
	d, err := New(cfg)
	if err != nil {
		return err
	}
	defer d.metrics.unregister(cfg.Registerer)
	d.leadsUntil(at)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.renew(gctx, holder, term) })
	if cfg.Peers != nil {
		g.Go(func() error { return d.announce(gctx, term) })
		g.Go(func() error { return d.listen(gctx, holder, term) })
	}
	g.Go(func() error { return d.Run(gctx) })
	g.Go(func() error { return serve(gctx, d) })
	err = g.Wait()
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leadEvery)
	defer cancel()
	if rerr := cfg.Store.Resign(rctx); rerr != nil && !errors.Is(rerr, ledger.ErrNotLeader) {
		log.Warn().Err(rerr).Msg("resign; the next leads when the term has run out")
	}
	if ctx.Err() == nil {
		log.Warn().Err(err).Msg("this dispatcher does not lead any more")
	}
	return err
}

// Peers lets the dispatchers of a fleet hear of each other where the ledger cannot be reached.
type Peers interface {
	// Announce tells that a term has its leader.
	Announce(ctx context.Context, term int64) error
	// Announced calls heard with each term that is announced, this process's own included, until ctx ends.
	Announced(ctx context.Context, heard func(term int64)) error
}

// announce tells of the term while it lasts.
func (d *Dispatcher) announce(ctx context.Context, term int64) error {
	for ; ctx.Err() == nil; pause(ctx, leadEvery) {
		if d.leads() {
			_ = d.cfg.Peers.Announce(ctx, term) // who is away from the broker reaches nobody
		}
	}
	return nil
}

// listen ends a term when a later one is heard of, unless the ledger says otherwise: anybody may announce.
func (d *Dispatcher) listen(ctx context.Context, holder string, term int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := d.cfg.Peers.Announced(ctx, func(t int64) {
		if t <= term {
			return
		}
		asking, done := context.WithTimeout(ctx, leadEvery)
		defer done()
		if got, err := d.cfg.Store.Lead(asking, holder, leadTTL); err != nil || got != term {
			d.deposed()
			cancel(fmt.Errorf("term %d has begun: %w", t, ledger.ErrNotLeader))
		}
	})
	if cause := context.Cause(ctx); errors.Is(cause, ledger.ErrNotLeader) {
		return cause
	}
	return err
}

// renew keeps the term. Where the ledger does not answer, this dispatcher goes on holding what it has: workers are told that they are heard,
// and nobody is given or promised anything, until the ledger is back or another is heard of that leads.
func (d *Dispatcher) renew(ctx context.Context, holder string, term int64) error {
	for pause(ctx, leadEvery); ctx.Err() == nil; pause(ctx, leadEvery) {
		at := time.Now()
		asking, cancel := context.WithTimeout(ctx, leadTTL)
		got, err := d.cfg.Store.Lead(asking, holder, leadTTL)
		cancel()
		switch {
		case err == nil && got == term:
			d.leadsUntil(at)
		case err == nil:
			d.deposed()
			return fmt.Errorf("term %d has begun: %w", got, ledger.ErrNotLeader)
		case errors.Is(err, ledger.ErrNotLeader), errors.Is(err, ledger.ErrOutdated):
			d.deposed()
			return err
		case ctx.Err() == nil:
			zerolog.Ctx(ctx).Error().Err(err).Msg("renew the term")
		}
	}
	return nil
}

// ridesOut is how long after its term's end a leader still takes the ledger to be back soon: what it is asked meanwhile waits. A disk that stands
// still for some seconds delays requests, and refuses none.
const ridesOut = 10 * time.Second

// tenure is how long a leader may act.
type tenure struct {
	until time.Time     // zero: another leads
	over  chan struct{} // closed when there is another tenure
}

// leadsUntil notes that the ledger was asked at a time, and gave or kept the term.
func (d *Dispatcher) leadsUntil(asked time.Time) { d.setTenure(asked.Add(leadTTL - leadMargin)) }

// deposed notes that another leads: what is still on its way is refused, and workers are not told that they are heard.
func (d *Dispatcher) deposed() { d.setTenure(time.Time{}) }

func (d *Dispatcher) setTenure(until time.Time) {
	if last := d.tenure.Swap(&tenure{until, make(chan struct{})}); last != nil {
		close(last.over)
	}
}

// leads tells whether this dispatcher may act: always where it runs without Lead.
func (d *Dispatcher) leads() bool {
	t := d.tenure.Load()
	return t == nil || time.Now().Before(t.until)
}

// leadsSoon waits for a ledger that does not answer, until it does, or has not for longer than ridesOut, and tells whether this dispatcher may act.
func (d *Dispatcher) leadsSoon(ctx context.Context) bool {
	for {
		t := d.tenure.Load()
		if d.leads() {
			return true
		}
		left := time.Until(t.until.Add(ridesOut))
		if left <= 0 {
			return false
		}
		select {
		case <-t.over:
		case <-time.After(left):
		case <-ctx.Done():
			return false
		}
	}
}
