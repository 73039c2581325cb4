package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// rig is a server, a bus that serves, a client, and one job.
type rig struct {
	*testing.T
	server *bustest.Server
	bus    *bus.Bus
	brain  *bustest.Brain
	client *client.Client
	job    string
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, server: bustest.Start(t), brain: &bustest.Brain{}}
	r.bus = r.server.Connect()
	bustest.Serve(t, r.bus, r.brain)
	r.client = connect(t, r.server)
	r.job = r.brain.Add("default")
	return r
}

func (r *rig) publish(events ...jobs.Event) {
	r.Helper()
	bustest.Publish(r, r.bus, events...)
}

// follow gives what the job tells from a position to its end.
func (r *rig) follow(after client.Position) (l []string) {
	r.Helper()
	for e, err := range r.client.Follow(r.Context(), r.job, after) {
		if err != nil {
			r.Fatal(err)
		}
		l = append(l, told(e))
	}
	return l
}

func told(e jobs.Event) string {
	switch {
	case e.Final:
		return "final " + string(e.Result.Ending)
	case e.Type == jobs.EventLost:
		return fmt.Sprintf("%d lost from %d.%d to %d.%d", e.Lost.Events, e.Lost.Attempt, e.Lost.Seq, e.Attempt, e.Seq)
	}
	return e.Text
}

func TestFollow(t *testing.T) {
	r := newRig(t)
	out := func(attempt int, seq int64, text string) jobs.Event { return bustest.Event(r.job, attempt, seq, text) }
	r.publish(out(1, 1, "a"), out(1, 2, "b"))
	r.publish(out(2, 1, "c"))
	r.publish(out(1, 3, "late"))
	r.publish(out(2, 2, "d"), bustest.Final(r.job, 2, 3))
	r.publish(out(2, 4, "after the end"))
	for _, c := range []struct {
		name  string
		after client.Position
		want  []string
	}{
		{"from the first byte", client.Position{}, []string{"a", "b", "c", "d", "final exited"}},
		{"from a position", client.Position{Attempt: 1, Seq: 1}, []string{"b", "c", "d", "final exited"}},
		{"from the end of an attempt", client.Position{Attempt: 1, Seq: 9}, []string{"c", "d", "final exited"}},
		{"from the end", client.Position{Attempt: 2, Seq: 3}, []string{"final exited"}},
		{"from where a late worker had the end's number", client.Position{Attempt: 2, Seq: 4}, []string{"final exited"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, r.follow(c.after)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A follower that was there from the beginning and one that joins in the middle see the same.
// What somebody has published as events that are none, a worker that is not Paddock's above all, keeps nobody from the others, whether they have
// been or come.
func TestFollowWhatIsNoEvent(t *testing.T) {
	r := newRig(t)
	subject := jobs.EventSubject("default", r.job)
	js := bustest.JetStream(t, r.server.Plain())
	spoil := func(attempt, seq int, data string) {
		t.Helper()
		m := &nats.Msg{Subject: subject, Data: []byte(data), Header: nats.Header{nats.MsgIdHdr: {fmt.Sprintf("%s.%d.%d", r.job, attempt, seq)}}}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	r.publish(bustest.Event(r.job, 1, 1, "a"))
	live := make(chan []string)
	first := make(chan struct{})
	go func() {
		var l []string
		for e, err := range r.client.Follow(r.Context(), r.job, client.Position{}) {
			if err != nil {
				l = append(l, err.Error())
				break
			}
			if l = append(l, told(e)); len(l) == 1 {
				close(first)
			}
		}
		live <- l
	}()
	<-first
	spoil(1, 2, `{"attempt":1,"seq":2`)
	spoil(1, 3, `],"ended":true,"events":[`)
	spoil(1, 4, `{"attempt":"one"}`)
	spoil(1, 5, `[]`)
	spoil(1, 6, `{"type":"output","time":"long ago"}`)
	r.publish(bustest.Event(r.job, 1, 7, "b"), bustest.Final(r.job, 1, 8))
	if got := <-live; len(got) < 3 || got[0] != "a" || got[len(got)-2] != "b" || got[len(got)-1] != "final exited" {
		t.Errorf("who listens hears %q", got)
	}
	if got := r.follow(client.Position{}); len(got) < 3 || got[0] != "a" || got[len(got)-2] != "b" || got[len(got)-1] != "final exited" {
		t.Errorf("who comes later hears %q", got)
	}
	other := r.brain.Add("default")
	subject = jobs.EventSubject("default", other)
	r.brain.End(other, jobs.Result{Ending: jobs.Exited}, time.Now().Add(-time.Hour))
	m := &nats.Msg{Subject: subject, Data: []byte(`{"final":`), Header: nats.Header{nats.MsgIdHdr: {other + ".1.1.final"}}}
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	r.job = other
	if got := r.follow(client.Position{}); len(got) == 0 || got[len(got)-1] != "final exited" {
		t.Errorf("of a job whose end is spoiled: %q", got)
	}
}

func TestFollowLive(t *testing.T) {
	r := newRig(t)
	early, late := make(chan []string, 1), make(chan []string, 1)
	seen := make(chan struct{}, 1000)
	go func() {
		var l []string
		for e, err := range r.client.Follow(r.Context(), r.job, client.Position{}) {
			if err != nil {
				t.Error(err)
			}
			l = append(l, told(e))
			seen <- struct{}{}
		}
		early <- l
	}()
	var want []string
	for seq := int64(1); seq <= 600; seq++ {
		text := strings.Repeat("x", int(seq))
		want = append(want, text)
		r.publish(bustest.Event(r.job, 1, seq, text))
		if seq == 1 {
			<-seen
		}
		if seq == 300 {
			go func() { late <- r.follow(client.Position{}) }()
		}
	}
	r.publish(bustest.Final(r.job, 1, 601))
	want = append(want, "final exited")
	for name, got := range map[string]chan []string{"early": early, "late": late} {
		if diff := cmp.Diff(want, <-got); diff != "" {
			t.Errorf("%s: %.500s", name, diff)
		}
	}
}

// The server goes and comes back in the middle: every event is given once.
func TestFollowOverRestart(t *testing.T) {
	r := newRig(t)
	r.publish(bustest.Event(r.job, 1, 1, "a"), bustest.Event(r.job, 1, 2, "b"))
	var got []string
	for e, err := range r.client.Follow(t.Context(), r.job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, told(e)); len(got) == 2 {
			r.server.Close()
			r.server.Restart()
			bustest.Eventually(t, "events are stored again", func() bool {
				return r.bus.Publish(t.Context(), bustest.Event(r.job, 1, 3, "c"), bustest.Final(r.job, 1, 4)) == nil
			})
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "final exited"}, got); diff != "" {
		t.Error(diff)
	}
}

// A job whose events are not kept any more, or that never had any, still ends for whoever follows it.
func TestFollowWithoutEvents(t *testing.T) {
	r := newRig(t)
	r.brain.End(r.job, jobs.Result{Ending: jobs.TimeLimit, Attempt: 2}, time.Now().Add(-time.Hour))
	if diff := cmp.Diff([]string{"0 lost from 1.1 to 2.0", "final time_limit"}, r.follow(client.Position{})); diff != "" {
		t.Error(diff)
	}
	r.publish(bustest.Event(r.job, 2, 7, "the last that is kept"))
	if diff := cmp.Diff([]string{"0 lost from 1.1 to 2.6", "the last that is kept", "final time_limit"}, r.follow(client.Position{})); diff != "" {
		t.Error(diff)
	}
}

// However a follower leaves, nothing of it is left, here or at the server, which never has a consumer for it.
func TestFollowLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.publish(bustest.Event(r.job, 1, 1, "a"), bustest.Event(r.job, 1, 2, "b"))
	js := bustest.JetStream(t, r.server.Plain())
	consumers := func() int {
		s, err := js.Stream(t.Context(), jobs.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.Consumers
	}
	if _, err := r.client.Get(t.Context(), r.job); err != nil { // what requests take is there
		t.Fatal(err)
	}
	following := func() int {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return bytes.Count(stacks, []byte("waitForMsgs(")) + bytes.Count(stacks, []byte("client.(*follower)"))
	}
	consumers() // likewise
	before := following()
	for range r.client.Follow(t.Context(), r.job, client.Position{}) {
		if consumers() != 0 {
			t.Errorf("%d consumers while one follows", consumers())
		}
		break
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	n := 0
	for _, err := range r.client.Follow(ctx, r.job, client.Position{}) {
		if n++; n == 2 {
			cancel(enough) // while nothing comes
		}
		if n > 2 && !errors.Is(err, enough) || n > 3 {
			t.Errorf("event %d: got %v, want %v", n, err, enough)
		}
	}
	r.publish(bustest.Final(r.job, 1, 3))
	r.follow(client.Position{})
	bustest.Eventually(t, "their goroutines have ended", func() bool { return following() <= before })
}

// A client that is closed, or whose caller has had enough while the server is away, does not follow on.
func TestFollowEnds(t *testing.T) {
	r := newRig(t)
	r.publish(bustest.Event(r.job, 1, 1, "a"))
	other := connect(t, r.server)
	var last error
	for _, err := range other.Follow(t.Context(), r.job, client.Position{}) {
		other.Close()
		last = err
	}
	if !errors.Is(last, nats.ErrConnectionClosed) {
		t.Errorf("closed: got %v", last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range r.client.Follow(ctx, r.job, client.Position{}) {
		if err == nil {
			r.server.Close()
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("canceled: got %v", last)
	}
	r.server.Restart()
}

func TestWait(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(r *rig)
	}{
		{"by its event", func(r *rig) {
			r.publish(bustest.Event(r.job, 1, 1, `"final": true`), bustest.Final(r.job, 1, 2))
		}},
		{"by its record", func(r *rig) { r.brain.End(r.job, jobs.Result{Ending: jobs.Exited}, time.Now()) }},
		{"over a restart", func(r *rig) {
			r.server.Close()
			r.brain.End(r.job, jobs.Result{Ending: jobs.Exited}, time.Now())
			r.server.Restart()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			looked := make(chan struct{}, 100)
			r.brain.Before = func(context.Context, string) error { looked <- struct{}{}; return nil }
			done := make(chan error, 1)
			var got jobs.Result
			go func() {
				var err error
				got, err = r.client.Wait(t.Context(), r.job)
				done <- err
			}()
			<-looked // it waits
			c.end(r)
			if err := <-done; err != nil || got.Ending != jobs.Exited {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	r := newRig(t)
	r.brain.End(r.job, jobs.Result{Ending: jobs.Exited}, time.Now())
	if got, err := r.client.Wait(t.Context(), r.job); err != nil || got.Ending != jobs.Exited {
		t.Errorf("it had ended: got %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.client.Wait(ctx, r.brain.Add("default")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	r.client.Close()
	if _, err := r.client.Wait(t.Context(), r.job); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("closed: got %v", err)
	}
}

// A follower hears of a final event that the stream has refused, because the worker, who does not know of the end, had its number, and of what
// that worker writes after the end of an attempt. It takes neither.
func TestFollowLostAttempts(t *testing.T) {
	r := newRig(t)
	nc := r.server.Plain()
	got, events := make(chan string, 100), make(chan error, 1)
	go func() {
		for e, err := range r.client.Follow(r.Context(), r.job, client.Position{}) {
			if err != nil {
				events <- err
				return
			}
			got <- fmt.Sprintf("%d.%d %s", e.Attempt, e.Seq, e.Type)
		}
		close(got)
	}()
	wait := func(want ...string) {
		t.Helper()
		for _, w := range want {
			select {
			case g := <-got:
				if g != w {
					t.Errorf("got %q, want %q", g, w)
				}
			case err := <-events:
				t.Fatal(err)
			case <-time.After(10 * time.Second):
				t.Fatalf("%q does not come", w)
			}
		}
	}
	closing := bustest.Event(r.job, 1, 0, "")
	closing.Type, closing.State = jobs.EventState, jobs.StateQueued
	r.publish(bustest.Event(r.job, 1, 1, "x"))
	wait("1.1 output")
	r.publish(bustest.Event(r.job, 1, 2, "x"))
	wait("1.2 output")
	if err := r.bus.CloseAttempt(r.Context(), closing); err != nil {
		t.Fatal(err)
	}
	wait("1.3 state")
	for seq := int64(3); seq <= 5; seq++ {
		r.publish(bustest.Event(r.job, 1, seq, "late"))
	}
	r.publish(bustest.Event(r.job, 2, 1, "x"))
	wait("2.1 output")

	final := bustest.Final(r.job, 2, 2)
	final.Result.Ending, final.Result.Class = jobs.Canceled, jobs.ClassPolicy
	data, err := json.Marshal(final)
	if err != nil {
		t.Fatal(err)
	}
	refused := &nats.Msg{Subject: jobs.EventSubject("default", r.job), Data: data, Header: nats.Header{nats.ExpectedLastSubjSeqHdr: {"1"}}}
	if m, err := nc.RequestMsg(refused, 10*time.Second); err != nil || !bytes.Contains(m.Data, []byte("wrong last sequence")) {
		t.Fatalf("it is not refused: %v", err)
	}
	r.publish(bustest.Event(r.job, 2, 2, "x"), bustest.Event(r.job, 2, 3, "x"))
	wait("2.2 output", "2.3 output")
	if err := r.bus.CloseAttempt(r.Context(), final); err != nil {
		t.Fatal(err)
	}
	wait("2.4 result")
	if more, open := <-got; open {
		t.Errorf("after the end: %s", more)
	}
}
