package bus_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// queued is the event that gives a job back to the queue, without its number.
func queued(job string, attempt int) jobs.Event {
	e := bustest.Event(job, attempt, 0, "")
	e.Type, e.State = jobs.EventState, jobs.StateQueued
	return e
}

func TestCloseAttempt(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	for _, c := range []struct {
		name   string
		before []jobs.Event
		e      jobs.Event
		want   string
	}{
		{"no events", nil, queued("", 1), "1.1 s"},
		{"no events, the end", nil, bustest.Final("", 1, 0), "1.1 r"},
		{"some", series("", 1, 1, 3), queued("", 1), "1.1 xo, 1.2 xo, 1.3 xo, 1.4 s"},
		{"some, the end", series("", 1, 1, 3), bustest.Final("", 1, 0), "1.1 xo, 1.2 xo, 1.3 xo, 1.4 r"},
		{"another attempt's", series("", 1, 1, 3), queued("", 2), "1.1 xo, 1.2 xo, 1.3 xo, 2.1 s"},
		{"a late worker", append(series("", 2, 1, 2), series("", 1, 3, 3)...), queued("", 2), "2.1 xo, 2.2 xo, 1.3 xo, 2.3 s"},
		{"a late worker, the end", append(series("", 2, 1, 2), series("", 1, 3, 3)...), bustest.Final("", 2, 0), "2.1 xo, 2.2 xo, 1.3 xo, 2.3 r"},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := jobs.NewID()
			for i := range c.before {
				c.before[i].Job = job
			}
			c.e.Job = job
			bustest.Publish(t, b, c.before...)
			has(t, b, c.e, false)
			closeAttempt(t, b, c.e)
			has(t, b, c.e, true)
			bustest.Publish(t, b, series(job, c.e.Attempt, 90, 91)...) // its worker does not know yet
			has(t, b, c.e, true)
			other := c.e
			other.Attempt += 10
			has(t, b, other, c.e.Final) // a job has one final event
			if diff := cmp.Diff(c.want+fmt.Sprintf(", %d.90 xo, %[1]d.91 xo", c.e.Attempt), strings.Join(stored(t, nc, job), ", ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A job that ends while it waits for its next attempt has the final event behind the end of the one before, not behind what that one's worker has
// written since: who follows it passes over that, and would miss what it has passed over.
func TestCloseAttemptThatIsClosed(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	for late, want := range map[int64]string{
		1: "1.1 xo, 1.2 s, 1.3 r", 2: "1.1 xo, 1.2 s, 1.2 xo, 1.3 r", 4: "1.1 xo, 1.2 s, 1.2 xo, 1.3 xo, 1.4 xo, 1.3 r",
	} {
		job := jobs.NewID()
		bustest.Publish(t, b, series(job, 1, 1, 1)...)
		closeAttempt(t, b, queued(job, 1))
		bustest.Publish(t, b, series(job, 1, 2, late)...)
		closeAttempt(t, b, bustest.Final(job, 1, 0))
		if diff := cmp.Diff(want, strings.Join(stored(t, nc, job), ", ")); diff != "" {
			t.Error(diff)
		}
	}
}

// closeAttempt closes one as the outbox does: what is unavailable is tried again, where the event is not there yet.
func closeAttempt(t *testing.T, b *bus.Bus, e jobs.Event) {
	t.Helper()
	bustest.Eventually(t, "the attempt is closed", func() bool {
		there, err := b.Has(t.Context(), e)
		if err == nil && !there {
			err = b.CloseAttempt(t.Context(), e)
		}
		if err != nil && code(err) != jobs.CodeUnavailable {
			t.Error(err)
			return true
		}
		return err == nil
	})
}

func has(t *testing.T, b *bus.Bus, e jobs.Event, want bool) {
	t.Helper()
	var got bool
	again(t, "whether there is an event", func() (err error) {
		got, err = b.Has(t.Context(), e)
		return err
	})
	if got != want {
		t.Errorf("has %d.%d: %v, want %v", e.Attempt, e.Seq, got, want)
	}
}

// A message on the job's subject that is nobody's event, as any tenant can have JetStream put one there, keeps no attempt from its end and
// nobody from reading.
func TestCloseAttemptAfterNonsense(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	job := jobs.NewID()
	bustest.Publish(t, b, series(job, 1, 1, 2)...)
	nonsense := func(header nats.Header) {
		if _, err := nc.RequestMsg(&nats.Msg{Subject: jobs.EventSubject("default", job), Data: []byte("+ACK"), Header: header}, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	nonsense(nil)
	nonsense(nats.Header{nats.MsgIdHdr: {"a.b.c"}})
	closeAttempt(t, b, bustest.Final(job, 1, 0))
	nonsense(nil)
	has(t, b, bustest.Final(job, 1, 0), true)
	has(t, b, bustest.Event(job, 1, 2, "x"), true)
	has(t, b, bustest.Event(job, 1, 3, "x"), false)
}

// Attempts end while their workers write as fast as they can: no number is used twice until then, and none is left out.
func TestCloseAttemptWhileItsWorkerWrites(t *testing.T) {
	for _, clustered := range []bool{false, true} {
		t.Run(fmt.Sprint("cluster ", clustered), func(t *testing.T) {
			var b, w *bus.Bus
			var nc *nats.Conn
			if clustered {
				c := bustest.StartCluster(t, 3)
				b, w = dispatcher(c), dispatcher(c)
				var err error
				if nc, err = c.As(c.Keys.Dispatcher()); err != nil {
					t.Fatal(err)
				}
			} else {
				s := bustest.Start(t)
				b, w, nc = s.Connect(), s.Connect(), s.Plain()
			}
			var all sync.WaitGroup
			ids := make([]string, 8)
			for n := range ids {
				ids[n] = jobs.NewID()
				soon := make(chan struct{})
				all.Go(func() {
					for seq := int64(1); seq <= 60; seq++ {
						bustest.Publish(t, w, bustest.Event(ids[n], 1, seq, "x"))
						if seq == int64(5*n+1) {
							close(soon)
						}
					}
				})
				all.Go(func() {
					<-soon
					closeAttempt(t, b, queued(ids[n], 1))
				})
			}
			all.Wait()
			for _, id := range ids {
				events := storedEvents(t, nc, id)
				end := slices.IndexFunc(events, func(e jobs.Event) bool { return e.State == jobs.StateQueued })
				if end < 0 || len(events) != 61 {
					t.Fatalf("%d events, the end in place %d", len(events), end)
				}
				for i, e := range events[:end+1] {
					if e.Seq != int64(i+1) {
						t.Errorf("%d follows %d", e.Seq, i)
					}
				}
				t.Logf("ended as %d of %d", end+1, len(events))
			}
		})
	}
}
