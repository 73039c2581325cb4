package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// clocks are the wall clocks of processes that have their own, and what was done to them: so times that those processes wrote can be
// told from when that really was. The nil clocks are none: everybody's clock is this host's.
type clocks struct {
	dir string

	mu   sync.Mutex
	of   map[string]*clock
	past []setting // what is over
}

// clock is one process's.
type clock struct {
	file []byte // mapped: the process's own
	setting
}

// setting is by how much a clock is ahead, negative behind, and when it was so.
type setting struct {
	process     string
	by          time.Duration
	from, until time.Time // until is zero for what is
}

func openClocks(dir string) (*clocks, error) {
	return &clocks{dir: dir, of: map[string]*clock{}}, os.Mkdir(dir, 0o755)
}

// add gives a process a clock of its own, and what to have in its environment.
func (c *clocks) add(process string) (env []string, err error) {
	if c == nil {
		return nil, nil
	}
	name := filepath.Join(c.dir, process)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8); err != nil {
		return nil, err
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the clock of %s: %w", process, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[process] = &clock{file: b, setting: setting{process: process, from: time.Now()}}
	return []string{ClockEnv + "=" + name}, nil
}

// set has a process's clock be so far ahead from now on.
func (c *clocks) set(process string, by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of[process]
	next := setting{process: process, by: by, from: time.Now()}
	atomic.StoreInt64((*int64)(unsafe.Pointer(&k.file[0])), int64(by))
	k.until = time.Now()
	c.past = append(c.past, k.setting)
	k.setting = next
}

// close ends it. What was done to the clocks is still known.
func (c *clocks) close() (err error) {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.of {
		if e := syscall.Munmap(k.file); e != nil {
			err = e
		}
		k.until = time.Now()
		c.past = append(c.past, k.setting)
	}
	clear(c.of)
	return err
}

// settings are all that there have been until now: nothing has been written in the future.
func (c *clocks) settings() []setting {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Clone(c.past)
	for _, k := range c.of {
		s := k.setting
		s.until = time.Now()
		all = append(all, s)
	}
	return all
}

// moment is when something really was, as far as that is known: a time of day that a process wrote may be of more than one moment, if
// clocks were set. What is checked by it accuses nobody of what need not have been.
type moment struct{ earliest, latest time.Time }

// moment gives when a time was written, by a dispatcher, whichever that was, or by a worker, if it may have been one. exact is how exact
// what was written is.
func (c *clocks) moment(t time.Time, exact time.Duration, worker string) moment {
	if c == nil || t.IsZero() {
		return moment{t, t}
	}
	var may []time.Time
	for _, s := range c.settings() {
		if s.process != worker && !strings.HasPrefix(s.process, "dispatcher-") {
			continue
		}
		really := t.Add(-s.by)
		if !really.Before(s.from.Add(-exact)) && !really.After(s.until.Add(exact)) {
			may = append(may, really)
		}
	}
	if len(may) == 0 {
		return moment{t, t}
	}
	return moment{slices.MinFunc(may, time.Time.Compare), slices.MaxFunc(may, time.Time.Compare)}
}

// mostStep is the most by which a clock is set; mostNodeStep that of a NATS server: where one was so much behind and the next is as much
// ahead, events are still younger than those that are deleted.
const mostStep, mostNodeStep = 48 * time.Hour, 30 * time.Hour

// setClock sets the clock of a dispatcher, a worker or a NATS server, which may be started anew then, as a host that comes up with a wrong one, and sets it
// right again while it runs.
func setClock(f *fleet, r *rand.Rand) *fault {
	p := f.leading(pick(r, pick(r, [][]*process{f.dispatchers[:1], f.dispatchers, f.workers, f.workers, f.nodes}))) // that a clock is wrong is felt where it leads
	unit := pick(r, []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour})
	most := mostStep
	if slices.Contains(f.nodes, p) {
		most = mostNodeStep
	}
	by := between(r, unit, min(60*unit, most))
	if r.IntN(2) == 0 {
		by = -by
	}
	t := &fault{
		on: []*process{p}, what: fmt.Sprintf("the clock of %s is set by %+v", p.name, by.Round(time.Millisecond)), last: between(r, time.Second, 2*(leaseTTL+leaseGrace)),
		hurt: func(context.Context) error { f.clocks.set(p.name, by); return nil },
		heal: func(context.Context) error { f.clocks.set(p.name, 0); return nil }, quiet: true,
	}
	if r.IntN(3) == 0 {
		t.what, t.quiet = t.what+", and it is started anew", false
		t.hurt = func(ctx context.Context) error {
			p.kill()
			f.clocks.set(p.name, by)
			return again(p)(ctx)
		}
	}
	return t
}
