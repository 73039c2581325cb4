package client_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// retain has the stream keep what a dispatcher says that is started so, and gives what it has.
func (r *rig) retain(age time.Duration, size int64) (state func() jetstream.StreamState) {
	r.Helper()
	b, err := bus.Connect(r.Context(), bus.Config{URL: r.server.URL(), Name: "retains", EventsAge: age, EventsBytes: size, Log: zerolog.Nop()})
	if err != nil {
		r.Fatal(err)
	}
	defer b.Close()
	stream, err := bustest.JetStream(r, r.server.Plain()).Stream(r.Context(), jobs.StreamEvents)
	if err != nil {
		r.Fatal(err)
	}
	return func() jetstream.StreamState {
		r.Helper()
		info, err := stream.Info(context.WithoutCancel(r.Context()))
		if err != nil {
			r.Fatal(err)
		}
		return info.State
	}
}

// output publishes so many events of the job, each of a KiB, and tells what a follower is to get of them.
func (r *rig) output(from, to int64) (want []string) {
	r.Helper()
	var events []jobs.Event
	for seq := from; seq <= to; seq++ {
		text := strings.Repeat(string(rune('a'+seq%26)), 1<<10)
		events, want = append(events, bustest.Event(r.job, 1, seq, text)), append(want, text)
	}
	r.publish(events...)
	return want
}

// TestRetentionByBytes: the oldest events go where there are more than may be kept; who comes late is told how many, and gets all that are kept.
func TestRetentionByBytes(t *testing.T) {
	const most, n = 256 << 10, 600
	r := newRig(t)
	state := r.retain(0, most)
	text := r.output(1, n)
	r.publish(bustest.Final(r.job, 1, n+1))
	s := state()
	if s.Bytes > most || s.FirstSeq < n/2 || s.LastSeq != n+1 {
		t.Fatalf("the stream keeps %d bytes, from %d to %d; it may have %d", s.Bytes, s.FirstSeq, s.LastSeq, int64(most))
	}
	gone := int64(s.FirstSeq) - 1 // all that is in the stream is the job's
	for _, c := range []struct {
		name  string
		after int64
		want  []string
	}{
		{"who has seen nothing", 0, append([]string{lost(gone, 1, gone)}, text[gone:]...)},
		{"who has seen some of it", 100, append([]string{lost(gone-100, 101, gone)}, text[gone:]...)},
		{"who has seen all that is gone", gone, text[gone:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			after := client.Position{}
			if c.after > 0 {
				after = client.Position{Attempt: 1, Seq: c.after}
			}
			if diff := cmp.Diff(append(c.want, "final exited"), r.follow(after)); diff != "" {
				t.Errorf("%.1000s", diff)
			}
		})
	}
}

// lost is what told makes of a mark within the first attempt.
func lost(events, from, to int64) string {
	return told(jobs.Event{Type: jobs.EventLost, Attempt: 1, Seq: to, Lost: &jobs.Lost{Attempt: 1, Seq: from, Events: events}})
}

// TestRetentionByAge: events go when they are old, whoever still wants them, and their place is marked: before what has come since, and before
// the end of a job of which nothing else is left.
func TestRetentionByAge(t *testing.T) {
	r := newRig(t)
	r.output(1, 10)
	ended := r.brain.Add("default")
	r.publish(bustest.Event(ended, 1, 1, "gone"), bustest.Final(ended, 1, 2))
	r.brain.End(ended, jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, Attempt: 1}, time.Now().Add(-time.Hour))

	// A dispatcher keeps events for longer than the two minutes for which the stream knows their ids; the test cannot wait for that.
	js := bustest.JetStream(t, r.server.Plain())
	stream, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	short := stream.CachedInfo().Config
	short.MaxAge, short.Duplicates = time.Second, time.Second
	if _, err := js.UpdateStream(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	bustest.Eventually(t, "the stream has let go of what is old", func() bool {
		info, err := stream.Info(t.Context())
		return err == nil && info.State.Msgs == 0
	})
	r.retain(0, 0)

	text := r.output(11, 12)
	r.publish(bustest.Final(r.job, 1, 13))
	for _, c := range []struct {
		name  string
		after client.Position
		want  []string
	}{
		{"who has seen nothing", client.Position{}, append([]string{lost(10, 1, 10)}, text...)},
		{"who has seen some of it", client.Position{Attempt: 1, Seq: 4}, append([]string{lost(6, 5, 10)}, text...)},
		{"who has seen all that is gone", client.Position{Attempt: 1, Seq: 10}, text},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(append(c.want, "final exited"), r.follow(c.after)); diff != "" {
				t.Errorf("%.1000s", diff)
			}
		})
	}
	r.job = ended
	if diff := cmp.Diff([]string{lost(0, 1, 0), "final exited"}, r.follow(client.Position{})); diff != "" {
		t.Error(diff)
	}
}
