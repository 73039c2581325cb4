package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report is what a run came to.
type Report struct {
	// Machines is how many of the jobs ended that had a real machine.
	Machines int
	// Jobs is how many ended; Lost how many were accepted and did not, Doubled how many results, events, webhooks or runs there were twice.
	Jobs, Lost, Doubled int
	// Dead is how many ended because all their attempts failed by Paddock's doing.
	Dead int
	// Attempts is how many there were, Fenced how many of those ran on after they had been given to others.
	Attempts, Fenced int
	// Forgotten is how many were enqueued, acknowledged, and then forgotten by a broker with an older store.
	Forgotten int
	// Unjudged is how many histories took too long to look at; each is in Wrong.
	Unjudged int
	// Late is how many events a lost attempt's worker wrote after the attempt's end.
	Late int
	// Marked is how many marks of lost events were seen.
	Marked int
	// Hooks is how many webhooks were taken.
	Hooks int
	// Starts is how often a process had to be started again that had ended while what it needed was broken.
	Starts int
	// Endings counts jobs by how they ended, Retried attempts by why another followed, Refused clients' tries by why they had to try again.
	Endings, Retried, Refused map[string]int
	// Most is how many jobs of each tenant ran at once.
	Most map[string]int
	// Faults is how often each class was injected.
	Faults map[string]int
	// Wrong is every invariant that did not hold. Where it is empty, all did.
	Wrong []string
	// Took is how long the whole run took, Drained how long the last jobs took after everything was whole.
	Took, Drained time.Duration
}

// String is the report for people.
func (r *Report) String() string {
	s := fmt.Sprintf("%d jobs, %d of them in real machines, %d attempts (%d fenced), faults %v, lost %d, doubled %d, dead %d, forgotten by the broker %d, events of lost attempts after their end %d, marks of lost events %d; ended %v; tried again for %v; refused or unanswered %v; at once %v; %d webhooks; histories not judged %d; started again %d; drained in %v, all in %v",
		r.Jobs, r.Machines, r.Attempts, r.Fenced, r.Faults, r.Lost, r.Doubled, r.Dead, r.Forgotten, r.Late, r.Marked, r.Endings, r.Retried, r.Refused, r.Most, r.Hooks, r.Unjudged, r.Starts,
		r.Drained.Round(time.Millisecond), r.Took.Round(time.Millisecond))
	if len(r.Wrong) > 0 {
		s += fmt.Sprintf("\n%d invariants do not hold:\n%s", len(r.Wrong), strings.Join(r.Wrong[:min(len(r.Wrong), 50)], "\n"))
	}
	return s
}

// Run is one run. An error is about the run itself; what Paddock did wrong is in the report. Nothing but cfg.Dir is left behind.
func Run(ctx context.Context, cfg Config) (_ *Report, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := os.Mkdir(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	s := &schedule{to: cfg.Log, start: start}
	var clocks *clocks
	if cfg.stepsClocks() {
		if clocks, err = openClocks(filepath.Join(cfg.Dir, "clock")); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, clocks.close()) }()
	}
	hooks, err := openReceiver(clocks)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hooks.close()) }()
	if err := goBuild(ctx, filepath.Join(cfg.Dir, "program"), "github.com/paddockvm/paddock/test/chaos/program"); err != nil {
		return nil, err
	}
	f, err := startFleet(ctx, &cfg, hooks, clocks)
	stopped := false
	defer func() {
		if !stopped {
			err = errors.Join(err, f.stop())
		}
	}()
	if err != nil {
		return nil, err
	}
	s.say("seed %d: everything runs", cfg.Seed)
	g := &generator{rand: rand.New(rand.NewPCG(cfg.Seed, 1)), program: f.program(), socket: f.socket(), asynq: f.redis != nil, width: cfg.Width, machines: cfg.Machines}
	l, err := connect(ctx, f, hooks, g.units(cfg.Jobs))
	if err != nil {
		return nil, err
	}
	defer l.close()
	v := &supervisor{f: f, say: s.say}
	supervising, enough := context.WithCancel(ctx)
	var supervised sync.WaitGroup
	b := &breaker{f: f, say: s.say, counts: map[string]int{}}
	supervised.Go(func() { v.run(supervising) })
	supervised.Go(func() { b.stalls(supervising) })
	dismiss := func() { enough(); supervised.Wait() }
	defer dismiss()
	r := &Report{Endings: map[string]int{}, Retried: map[string]int{}, Most: map[string]int{}}
	if err := disturb(ctx, &cfg, l, b); err != nil {
		return nil, err
	}
	whole := time.Now()
	w, err := drain(ctx, &cfg, f, l, hooks, r, s)
	if err != nil {
		return nil, err
	}
	r.Drained, r.Faults, r.Refused = time.Since(whole), b.counts, l.refused
	dismiss()
	r.Starts, stopped = v.starts, true
	if err := f.stop(); err != nil {
		r.Wrong = append(r.Wrong, err.Error())
	}
	c := &checker{witnesses: w, l: l, r: r, forgetful: slices.Contains(cfg.Faults, "rollback"), faults: b.past, width: cfg.Width, patience: 10 * time.Second}
	c.check()
	r.Wrong = append(r.Wrong, l.wrong...)
	r.Wrong = append(r.Wrong, hooks.wrong...)
	r.Wrong = append(r.Wrong, f.panics()...)
	r.Wrong = append(r.Wrong, f.pastProxies()...)
	r.Wrong = append(r.Wrong, f.leftovers()...)
	r.Wrong = append(r.Wrong, v.died...)
	for _, err := range b.errs {
		r.Wrong = append(r.Wrong, "a fault could not be made or healed: "+err.Error())
	}
	r.Took = time.Since(start)
	return r, nil
}

// disturb has clients bring in their jobs while things break. It returns when everything is whole and accepted.
func disturb(ctx context.Context, cfg *Config, l *load, b *breaker) error {
	breaking, enough := context.WithTimeout(ctx, cfg.For)
	defer enough()
	looking, seen := context.WithCancel(ctx)
	defer seen()
	var faults, lookers sync.WaitGroup
	for i := range cfg.AtOnce {
		if len(cfg.Faults) > 0 {
			faults.Go(func() { b.run(breaking, rand.New(rand.NewPCG(cfg.Seed, 100+uint64(i)))) })
		}
	}
	lookers.Go(func() { l.look(looking, rand.New(rand.NewPCG(cfg.Seed, 2))) })
	// What is not accepted soon after everything is whole never will be.
	accepting, cancel := context.WithTimeout(ctx, cfg.For+cfg.Drain)
	defer cancel()
	l.bringIn(accepting, cfg.For, faults.Wait)
	seen()
	lookers.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if accepting.Err() != nil {
		l.note("jobs were still refused %v after everything was whole", cfg.Drain)
	}
	return nil
}

// drain waits until Paddock has nothing to do any more, and reads what it has done.
func drain(ctx context.Context, cfg *Config, f *fleet, l *load, hooks *receiver, r *Report, s *schedule) (*witnesses, error) {
	db, err := f.openLedger()
	if err != nil {
		return nil, err
	}
	defer db.Close()
	end, told := time.Now().Add(cfg.Drain), time.Now()
	for {
		what, err := unfinished(ctx, db, l)
		if err == nil && what == "" {
			break
		}
		if err != nil {
			what = err.Error()
		}
		if time.Since(told) > 10*time.Second {
			s.say("waiting: %s", what)
			told = time.Now()
			if slices.Contains(cfg.Faults, "rollback") {
				r.Forgotten += l.enqueueAgain(ctx, db)
			}
		}
		if time.Now().After(end) {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%v after everything was whole: %s", cfg.Drain, what))
			break
		}
		if !wait(ctx, 300*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
	w := &witnesses{runs: f.journal.of, hooks: hooks.of}
	if w.records, err = readLedger(ctx, db, f.clocks); err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	if w.tasks, err = l.readTasks(); err != nil {
		r.Wrong = append(r.Wrong, err.Error())
	}
	reading, cancel := context.WithTimeout(ctx, cfg.Drain)
	defer cancel()
	if w.events, err = readEvents(reading, l.js); err != nil {
		return nil, fmt.Errorf("read the events: %w", err)
	}
	if w.seen, err = l.follow(reading); err != nil {
		r.Wrong = append(r.Wrong, err.Error())
	}
	w.over = time.Now()
	return w, nil
}

var panicked = regexp.MustCompile(`(?m)^(panic: |fatal error: |.*DATA RACE).*$`)

// panics finds what no process may print.
func (f *fleet) panics() (l []string) {
	for _, p := range f.processes() {
		b, err := os.ReadFile(p.log)
		if err != nil {
			l = append(l, err.Error())
		}
		if m := panicked.Find(b); m != nil {
			l = append(l, fmt.Sprintf("%s: %s", p.name, m))
		}
	}
	return l
}

// schedule tells what happens, and when.
type schedule struct {
	mu    sync.Mutex
	to    io.Writer
	start time.Time
}

func (s *schedule) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.to, "%7.1fs %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}
