package client_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// From whatever position somebody joins, and whenever: what has been and what comes make the whole, each once and in order.
func TestFollowFromEveryPosition(t *testing.T) {
	r := newRig(t)
	type event struct {
		attempt int
		seq     int64
	}
	var want []event
	for seq := int64(1); seq <= 40; seq++ {
		want = append(want, event{1, seq})
	}
	for seq := int64(1); seq <= 30; seq++ {
		want = append(want, event{2, seq})
	}
	var viewers sync.WaitGroup
	follow := func(from int) {
		defer viewers.Done()
		after := client.Position{}
		if from > 0 {
			after = client.Position{Attempt: want[from-1].attempt, Seq: want[from-1].seq}
		}
		next := from
		for e, err := range r.client.Follow(t.Context(), r.job, after) {
			switch {
			case err != nil:
				t.Errorf("after %+v: %v", after, err)
				return
			case e.Final && next != len(want):
				t.Errorf("after %+v: the end comes after %d events of %d", after, next-from, len(want)-from)
			case !e.Final && (event{e.Attempt, e.Seq} != want[next] || e.Text != text(e.Attempt, e.Seq)):
				t.Errorf("after %+v: got %d.%d %q, want %+v", after, e.Attempt, e.Seq, e.Text, want[next])
				return
			}
			next++
		}
		if next != len(want)+1 {
			t.Errorf("after %+v: it ends after %d of %d", after, next-from, len(want)-from)
		}
	}
	for i, e := range want {
		r.publish(bustest.Event(r.job, e.attempt, e.seq, text(e.attempt, e.seq)))
		if e.attempt == 2 && e.seq < 20 { // a worker that does not know yet
			r.publish(bustest.Event(r.job, 1, 40+e.seq, "late"))
		}
		for from := range i + 2 {
			if from == i+1 || (from*7+i)%61 == 0 {
				viewers.Add(1)
				go follow(from)
			}
		}
	}
	r.brain.End(r.job, jobs.Result{Ending: jobs.Exited, Attempt: 2}, time.Now())
	r.publish(bustest.Final(r.job, 2, 31))
	viewers.Wait()
	viewers.Add(1)
	follow(len(want))
}

func text(attempt int, seq int64) string { return fmt.Sprintf("<%d.%d>", attempt, seq) }

// A viewer who sleeps gets all, while what comes for it is many times what is kept for it; another sees no difference.
func TestFollowSlowly(t *testing.T) {
	r := newRig(t)
	const n = 3000
	chunk := strings.Repeat("z", 4<<10)
	fast, slow, wake := make(chan error, 1), make(chan error, 1), make(chan struct{})
	var seen atomic.Int64 // by who is fast
	view := func(done chan<- error, each func(int64)) {
		want := int64(1)
		for e, err := range r.client.Follow(t.Context(), r.job, client.Position{}) {
			if err != nil {
				done <- err
				return
			}
			if e.Seq != want || e.Type == jobs.EventLost {
				done <- fmt.Errorf("got %s %d.%d, want %d", e.Type, e.Attempt, e.Seq, want)
				return
			}
			want++
			each(e.Seq)
		}
		if want != n+2 {
			done <- fmt.Errorf("it ends at %d", want)
			return
		}
		done <- nil
	}
	go view(fast, seen.Store)
	go view(slow, func(seq int64) {
		switch {
		case seq == 5:
			<-wake
		case seq%500 == 0:
			time.Sleep(50 * time.Millisecond)
		}
	})
	for seq := int64(1); seq <= n; seq += 20 {
		var events []jobs.Event
		for i := seq; i < seq+20; i++ {
			events = append(events, bustest.Event(r.job, 1, i, chunk))
		}
		r.publish(events...)
		if seq == n/2+1 {
			bustest.Eventually(t, "who is fast sees what comes while the other sleeps", func() bool { return seen.Load() >= n/2 })
			close(wake)
		}
	}
	r.publish(bustest.Final(r.job, 1, n+1))
	for name, done := range map[string]chan error{"fast": fast, "slow": slow} {
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// While no dispatcher answers, those who are there see on; and what they miss then they get afterwards.
func TestFollowWithoutDispatcher(t *testing.T) {
	r := &rig{T: t, server: bustest.Start(t), brain: &bustest.Brain{}}
	r.bus = r.server.Connect()
	stop := bustest.Serve(t, r.bus, r.brain)
	r.client = connect(t, r.server)
	r.job = r.brain.Add("default")
	r.publish(bustest.Event(r.job, 1, 1, "a"))
	var got []string
	for e, err := range r.client.Follow(t.Context(), r.job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		switch got = append(got, told(e)); len(got) {
		case 1:
			stop()
			r.publish(bustest.Event(r.job, 1, 2, "b"))
		case 2:
			r.publish(bustest.Event(r.job, 1, 3, "c"))
		case 3:
			bustest.Serve(t, r.bus, r.brain)
			r.publish(bustest.Final(r.job, 1, 4))
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "final exited"}, got); diff != "" {
		t.Error(diff)
	}
}

// The broker goes and comes back again and again, and each time some of what was published is on neither side of that.
func TestFollowOverRestarts(t *testing.T) {
	r := newRig(t)
	const n = 60
	done := make(chan error, 1)
	go func() {
		want := int64(1)
		for e, err := range r.client.Follow(t.Context(), r.job, client.Position{}) {
			if err != nil || e.Seq != want {
				done <- errors.Join(err, fmt.Errorf("got %d.%d, want %d", e.Attempt, e.Seq, want))
				return
			}
			want++
		}
		if want != n+2 {
			done <- fmt.Errorf("it ends at %d", want)
		}
		done <- nil
	}()
	for seq := int64(1); seq <= n; seq++ {
		if seq%20 == 0 {
			r.server.Close()
			r.server.Restart()
		}
		r.publish(bustest.Event(r.job, 1, seq, "x"))
	}
	r.publish(bustest.Final(r.job, 1, n+1))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What the stream has let go while a viewer slept is told, and so is the rest.
func TestFollowLost(t *testing.T) {
	r := newRig(t)
	r.publish(bustest.Event(r.job, 1, 1, "a"))
	js := bustest.JetStream(t, r.server.Plain())
	stream, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range r.client.Follow(t.Context(), r.job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, told(e)); len(got) > 1 {
			continue
		}
		var events []jobs.Event
		for seq := int64(2); seq <= 600; seq++ { // more than is kept for it
			events = append(events, bustest.Event(r.job, 1, seq, "x"))
		}
		r.publish(events...)
		if err := stream.Purge(t.Context(), jetstream.WithPurgeKeep(1)); err != nil {
			t.Fatal(err)
		}
		r.publish(bustest.Final(r.job, 1, 601))
	}
	if diff := cmp.Diff([]string{"a", "598 lost from 1.2 to 1.599", "x", "final exited"}, got); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkViewers: what a viewer costs, of one job or each tenth of another, and what it costs the publisher. A benchmark's iteration is
// an event of each job, published and seen by all of its viewers.
func BenchmarkViewers(b *testing.B) {
	for _, c := range []struct{ viewers, jobs int }{{0, 1}, {2000, 1}, {2000, 200}} {
		b.Run(fmt.Sprintf("viewers=%d/jobs=%d", c.viewers, c.jobs), func(b *testing.B) { viewers(b, c.viewers, c.jobs) })
	}
}

func viewers(b *testing.B, n, jobCount int) {
	server := bustest.Start(b)
	brain := &bustest.Brain{}
	bus := server.Connect()
	bustest.Serve(b, bus, brain)
	ids := make([]string, jobCount)
	for i := range ids {
		ids[i] = brain.Add("default")
		bustest.Publish(b, bus, bustest.Event(ids[i], 1, 1, "first"))
	}
	clients := make([]*client.Client, 20) // processes have several viewers
	for i := range clients {
		c, err := client.Connect(server.URL())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		clients[i] = c
	}
	before := usage()
	var viewing sync.WaitGroup
	var seen atomic.Int64
	begun := time.Now()
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	for i := range n {
		viewing.Go(func() {
			for _, err := range clients[i%len(clients)].Follow(ctx, ids[i%jobCount], client.Position{}) {
				if err != nil {
					if ctx.Err() == nil {
						b.Error(err)
					}
					return
				}
				seen.Add(1)
			}
		})
	}
	bustest.Eventually(b, "all have joined", func() bool { return seen.Load() >= int64(n) })
	if n > 0 {
		now := usage()
		b.Logf("%d viewers joined in %v; each takes %.1f KiB and %.2f goroutines, server included",
			n, time.Since(begun).Round(time.Millisecond), float64(now.bytes-before.bytes)/1024/float64(n), float64(now.goroutines-before.goroutines)/float64(n))
	}
	chunk := strings.Repeat("o", 1<<10)
	var publishing time.Duration
	b.ResetTimer()
	for i := range b.N {
		t := time.Now()
		for _, id := range ids {
			bustest.Publish(b, bus, bustest.Event(id, 1, int64(i+2), chunk))
		}
		publishing += time.Since(t)
		for seen.Load() < int64(n*(i+2)) && !b.Failed() {
			time.Sleep(100 * time.Microsecond)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(publishing.Microseconds())/float64(b.N*jobCount), "µs/publish")
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "seen/s")
	stop()
	viewing.Wait()
}

type used struct {
	bytes      uint64
	goroutines int
}

func usage() used {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return used{m.HeapInuse + m.StackInuse, runtime.NumGoroutine()}
}
