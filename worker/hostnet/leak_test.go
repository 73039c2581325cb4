package hostnet_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// open is what this process holds: descriptors by what they are, goroutines, threads that are in another network namespace.
type open struct {
	Files      map[string]int
	Goroutines int
	Astray     int
}

// openNow counts. What nobody refers to any more is closed first: of pipes that Go keeps for copies between sockets (splice) that takes two calls.
func openNow(t testing.TB) open {
	t.Helper()
	runtime.GC()
	o := open{Files: map[string]int{}, Goroutines: runtime.NumGoroutine()}
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the directory's own
		}
		kind, _, _ := strings.Cut(name, ":")
		o.Files[kind]++
	}
	home, err := os.Readlink("/proc/thread-self/ns/net") // tests come back, or their thread ends
	must(t, err)
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, e := range tasks {
		if e.Name() == fmt.Sprint(os.Getpid()) {
			continue // Go has no way to end the first thread: where a test's namespace was entered on it, there it stays
		}
		if ns, err := os.Readlink("/proc/self/task/" + e.Name() + "/ns/net"); err == nil && ns != home {
			o.Astray++
		}
	}
	return o
}

// calm is what this process holds when it has settled: of what made the lab, goroutines and threads may be counted for a while yet, which is
// long where they wait for a processor.
func calm(t testing.TB) open {
	t.Helper()
	last, since := openNow(t), time.Now()
	for end := time.Now().Add(30 * time.Second); ; {
		time.Sleep(20 * time.Millisecond)
		now := openNow(t)
		switch {
		case fmt.Sprint(now) != fmt.Sprint(last):
			last, since = now, time.Now()
		case time.Since(since) > time.Second:
			return now
		}
		if time.Now().After(end) {
			t.Fatalf("not calm after 30 s: %+v, then %+v", last, now)
		}
	}
}

// TestLeaks takes 200 slots, does with them what machines do, gives up at any step, and counts.
func TestLeaks(t *testing.T) {
	l := newLab(t)
	docker(t, l)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	cfg := l.config(t)
	cfg.Slots = 3
	before, held := leftOf(t, l, cfg.StateDir), calm(t)
	ctx, stop := context.WithCancel(zerolog.New(zerolog.NewTestWriter(t)).WithContext(context.Background()))
	h, err := hostnet.New(ctx, cfg)
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	rounds := make(chan int)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for i := range rounds {
				round(t, h, l, rand.New(rand.NewPCG(1, uint64(i))))
			}
		})
	}
	for i := range 200 {
		rounds <- i
	}
	close(rounds)
	workers.Wait()
	stop()
	must(t, <-ended)
	settled(t, l, cfg.StateDir, before)
	var now open
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // a goroutine that has ended is counted for a moment
		if now = openNow(t); fmt.Sprint(now) == fmt.Sprint(held) || time.Now().After(end) {
			break
		}
	}
	if fmt.Sprint(now) != fmt.Sprint(held) {
		t.Errorf("held after: %+v\nbefore: %+v", now, held)
	}
}

func round(t *testing.T, h *hostnet.Host, l *lab, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	if r.IntN(2) == 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(60_000))*time.Microsecond)
	}
	defer cancel()
	s, err := h.Take(ctx)
	if err != nil {
		return
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	p := hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example"}, Prefixes: []netip.Prefix{netip.MustParsePrefix(third + "/32")}}
	if r.IntN(2) == 0 {
		p = hostnet.Policy{Kind: hostnet.Internet}
	}
	if err := s.Allow(ctx, p); err != nil && ctx.Err() == nil {
		t.Errorf("Allow: %v", err)
	}
	for range r.IntN(3) { // nobody answers; the slot may close while it is waited for
		go func() {
			if c, err := s.Dial(ctx, 80); err == nil {
				c.Close()
			}
		}()
	}
	if r.IntN(8) == 0 {
		wait := make(chan error, 1)
		go func() { wait <- s.Close() }() // twice, at once
		s.Close()
		if err := <-wait; err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
