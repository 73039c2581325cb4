package dispatcher_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// world is clients, workers and a dispatcher that dies now and then, all at once. Whatever happens in it, each accepted job ends once.
type world struct {
	*rig
	fate fate

	mu   sync.Mutex // guards what follows
	life *life
	dice *rand.Rand
	jobs map[string]bool // accepted; true where somebody wanted it canceled
	// content counts the clients that have got what they wanted.
	content int
	// counted are the reports that a dispatcher took as a job's end, by job.
	counted map[string]int
}

// fate says what befalls an operation of the dispatcher, "before lease" or "after publish".
type fate func(at string, roll func(n int) int) fault

type fault int

const (
	fine  fault = iota
	fails       // it is refused, or its answer lost
	dies        // the dispatcher dies there
)

// life is one dispatcher from start to death; it is dead when ctx has ended.
type life struct {
	context.Context
	*dispatcher.Dispatcher
	die  func()
	down time.Duration // until the next begins
}

func (w *world) roll(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dice.IntN(n)
}

// dispatch has one dispatcher after another until stop is closed.
func (w *world) dispatch(stop <-chan struct{}) {
	for {
		ctx, die := context.WithCancel(context.WithoutCancel(w.Context()))
		store := &memory{disk: w.disk}
		l := &life{Context: ctx, down: time.Duration(w.roll(4)) * time.Second}
		if w.roll(4) == 0 {
			l.down = 5 * time.Minute // longer than leases, and than the broker knows a repeat
		}
		l.die = func() { _ = store.Close(); die() }
		meet := func(at string) error {
			if ctx.Err() == nil {
				switch w.fate(at, w.roll) {
				case fails:
					return errDisk
				case dies:
					l.die()
				}
			}
			return ctx.Err()
		}
		store.before(func(op string) error { return meet("before " + op) })
		store.after(func(op string) error { return meet("after " + op) })
		events := link{w.board, func(op string, do func() error) error {
			if err := meet("before " + op); err != nil {
				return err
			}
			if err := do(); err != nil {
				return err
			}
			return meet("after " + op)
		}}
		d, err := dispatcher.New(dispatcher.Config{Store: store, Events: events})
		if err != nil {
			w.Error(err)
			return
		}
		l.Dispatcher = d
		w.mu.Lock()
		w.life = l
		w.mu.Unlock()
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		select {
		case <-stop:
			l.die()
			<-ended
			return
		case err := <-ended: // the ledger could not be read
			if err == nil && ctx.Err() == nil {
				w.Error("the dispatcher ended")
			}
			l.die()
		case <-ctx.Done():
			<-ended
		}
		time.Sleep(l.down)
	}
}

// call asks the dispatcher that lives; where it dies meanwhile its answer is lost.
func (w *world) call(f func(ctx context.Context, d *dispatcher.Dispatcher) error) error {
	w.mu.Lock()
	l := w.life
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(l.Context, 30*time.Second)
	defer cancel()
	err := f(ctx, l.Dispatcher)
	if l.Err() != nil {
		return l.Err()
	}
	return err
}

// client brings a job in, and perhaps wants it canceled later.
func (w *world) client(n int, stop <-chan struct{}) {
	time.Sleep(time.Duration(w.roll(5_000)) * time.Millisecond)
	s := retries(w.roll(4))
	s.IdempotencyKey = fmt.Sprint("job ", n)
	if w.roll(4) == 0 {
		s.QueueTTLMS = 2000
	}
	id := ""
	w.insist(stop, func(ctx context.Context, d *dispatcher.Dispatcher) error {
		j, _, err := d.Admit(ctx, "t", s)
		id = j.ID
		return err
	})
	w.mu.Lock()
	w.jobs[id] = false
	w.mu.Unlock()
	if w.roll(4) > 0 {
		return
	}
	time.Sleep(time.Duration(w.roll(4000)) * time.Millisecond)
	w.mu.Lock()
	w.jobs[id] = true
	w.mu.Unlock()
	w.insist(stop, func(ctx context.Context, d *dispatcher.Dispatcher) error {
		_, err := d.Cancel(ctx, "t", id)
		return err
	})
}

// insist calls until it is answered.
func (w *world) insist(stop <-chan struct{}, f func(ctx context.Context, d *dispatcher.Dispatcher) error) {
	for w.call(f) != nil {
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// over tells whether all is done. The outbox is looked at last: a job's end comes into it with the job's last state.
func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.content < worldJobs {
		return false
	}
	for _, r := range w.disk.rows() {
		if !r.State.Terminal() {
			return false
		}
	}
	return len(w.disk.out()) == 0
}

const (
	worldJobs    = 12
	worldWorkers = 3
)

// live runs a world until all its jobs have ended, and checks them.
func live(t *testing.T, seed uint64, f fate) {
	bubble.Test(t, func(t *testing.T) {
		w := &world{
			rig: &rig{T: t, disk: newDisk(t), board: newBoard(t)}, fate: f, dice: rand.New(rand.NewPCG(seed, 0)), jobs: map[string]bool{}, counted: map[string]int{},
		}
		stop := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() { w.dispatch(stop) })
		synctest.Wait()
		for n := range worldJobs {
			all.Go(func() {
				w.client(n, stop)
				w.mu.Lock()
				defer w.mu.Unlock()
				w.content++
			})
		}
		for n := range worldWorkers {
			all.Go(func() { (&machinist{world: w, name: fmt.Sprint("w", n)}).work(stop) })
		}
		start := time.Now()
		for !w.over() && time.Since(start) < 24*time.Hour {
			time.Sleep(time.Second)
		}
		close(stop)
		all.Wait()
		w.check()
	})
}

// check is what holds in every world.
func (w *world) check() {
	rows := w.disk.rows()
	if len(w.jobs) != worldJobs || len(rows) != worldJobs {
		w.Errorf("%d jobs were accepted, and %d are in the ledger, want %d", len(w.jobs), len(rows), worldJobs)
	}
	for id, canceled := range w.jobs {
		row, finals, all := rows[id], w.board.finals(id), w.board.of(id)
		if row == nil || !row.State.Terminal() {
			w.Errorf("job %s has not ended: %+v", id, row)
			continue
		}
		result := row.job.Result
		if len(finals) != 1 || !all[len(all)-1].Final {
			w.Errorf("job %s has %d final events among %+v, want one, the last", id, len(finals), all)
			continue
		}
		if diff := gocmp.Diff(result, finals[0].Result); diff != "" {
			w.Errorf("result of %s (-ledger +event):\n%s", id, diff)
		}
		w.ordered(id)
		if result.Attempt != row.Attempt {
			w.Errorf("job %s ended with the result of attempt %d, its last is %d", id, result.Attempt, row.Attempt)
		}
		if result.Ending == jobs.Exited && result.Reason != machineOf(id, row.Attempt, row.Epoch) {
			w.Errorf("job %s ended with the result of %q, its attempt is %q", id, result.Reason, machineOf(id, row.Attempt, row.Epoch))
		}
		if result.Ending == jobs.Canceled && !canceled {
			w.Errorf("job %s ended as canceled, and nobody wanted that", id)
		}
		if w.counted[id] > 1 {
			w.Errorf("%d reports counted as the end of job %s", w.counted[id], id)
		}
		if dead := w.board.buried(id); (len(dead) > 0) != (row.State == jobs.StateDead) {
			w.Errorf("job %s is %s and was buried as %q", id, row.State, dead)
		}
	}
}

func machineOf(job string, attempt int, epoch int64) string {
	return fmt.Sprint(job, " attempt ", attempt, " epoch ", epoch)
}

// The dispatcher dies once, at one operation of the ledger or the broker, before it is done or after.
func TestCrashAtEachOperation(t *testing.T) {
	for _, op := range []string{
		"workers", "open", "admit", "register", "lease", "get", "running", "finish", "requeue", "end queued", "cancel", "outbox", "published",
		"publish", "close attempt", "has", "dead letter",
	} {
		for _, when := range []string{"before ", "after "} {
			t.Run(when+op, func(t *testing.T) {
				met := false
				for seed := range uint64(20) { // which world has what, and how often, is a matter of chance
					nth := int64(seed%3) + 1
					var n atomic.Int64
					live(t, seed, func(at string, _ func(int) int) fault {
						if at == when+op && n.Add(1) == nth {
							return dies
						}
						return fine
					})
					if met = met || n.Load() >= nth; met && seed >= 2 {
						return
					}
				}
				t.Errorf("no world has %q: the test shows nothing", op)
			})
		}
	}
}

// The dispatcher dies anywhere, again and again, and its ledger and broker fail now and then.
func TestCrashAnywhere(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			live(t, uint64(seed), func(_ string, roll func(int) int) fault {
				switch n := roll(150); {
				case n == 0:
					return dies
				case n < 8:
					return fails
				}
				return fine
			})
		})
	}
}
