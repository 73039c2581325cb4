package bus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// replays is a server with a dispatcher's bus, and a connection that asks for replays.
type replays struct {
	*testing.T
	server *bustest.Server
	bus    *bus.Bus
	brain  *bustest.Brain
	nc     *nats.Conn
	js     jetstream.JetStream
}

func newReplays(t *testing.T) *replays {
	r := &replays{T: t, server: bustest.Start(t), brain: &bustest.Brain{}}
	r.bus = r.server.Connect()
	bustest.Serve(t, r.bus, r.brain)
	r.nc = r.server.Plain()
	r.js = bustest.JetStream(t, r.nc)
	return r
}

// raw asks again while that is all that is said: the server has five seconds for each question of the dispatcher's.
func (r *replays) raw(tenant, body string) (reply jobs.ReplayReply) {
	r.Helper()
	bustest.Eventually(r, "a replay is answered", func() bool {
		m, err := r.nc.Request(jobs.ReplaySubject(tenant), []byte(body), time.Minute)
		if err != nil {
			r.Fatal(err)
		}
		reply = jobs.ReplayReply{}
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			r.Fatalf("%v: %.300s", err, m.Data)
		}
		return reply.Error == nil || reply.Error.Code != jobs.CodeUnavailable
	})
	return reply
}

func (r *replays) ask(q jobs.ReplayRequest) jobs.ReplayReply {
	r.Helper()
	body, err := json.Marshal(q)
	if err != nil {
		r.Fatal(err)
	}
	reply := r.raw("default", string(body))
	if reply.Error != nil {
		r.Fatalf("%s: %v", body, reply.Error)
	}
	return reply
}

// all asks until there is no more, and gives what came.
func (r *replays) all(q jobs.ReplayRequest) (l []string) {
	r.Helper()
	for {
		reply := r.ask(q)
		if q.Limit > 0 && len(reply.Events) > q.Limit {
			r.Errorf("%d events, the limit is %d", len(reply.Events), q.Limit)
		}
		for i := range reply.Events {
			e := &reply.Events[i]
			if l = append(l, tell(e)); reply.Ended != e.Final && i == len(reply.Events)-1 {
				r.Errorf("%s is the last and ended is %t", tell(e), reply.Ended)
			}
		}
		if !reply.More {
			return l
		}
		if len(reply.Events) == 0 {
			r.Fatal("there is more, and nothing of it comes")
		}
		q.After = reply.Next
	}
}

// tell is an event in a word: its position, "!" for the final one, and what is lost.
func tell(e *jobs.Event) string {
	s := fmt.Sprintf("%d.%d", e.Attempt, e.Seq)
	switch {
	case e.Type == jobs.EventLost:
		s += fmt.Sprintf(" lost %d from %d.%d", e.Lost.Events, e.Lost.Attempt, e.Lost.Seq)
	case e.Final:
		s += "!"
	}
	return s
}

// expire takes the job's n oldest events away, as age does.
func (r *replays) expire(job string, n int) {
	r.Helper()
	s, err := r.js.Stream(r.Context(), jobs.StreamEvents)
	if err != nil {
		r.Fatal(err)
	}
	for seq := s.CachedInfo().State.FirstSeq; n > 0; seq++ {
		m, err := s.GetMsg(r.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			r.Fatal(err)
		}
		if m.Subject != jobs.EventSubject("default", job) {
			continue
		}
		if err := s.DeleteMsg(r.Context(), seq); err != nil {
			r.Fatal(err)
		}
		n--
	}
}

// Late, lower attempts' events stand between; so do another job's.
func TestReplayEveryPosition(t *testing.T) {
	r := newReplays(t)
	job, other := r.brain.Add("default"), r.brain.Add("default")
	var want []string
	for seq := int64(1); seq <= 80; seq++ {
		bustest.Publish(t, r.bus, bustest.Event(job, 1, seq, strings.Repeat("x", int(seq))))
		bustest.Publish(t, r.bus, series(other, 1, 3*seq-2, 3*seq)...)
		want = append(want, fmt.Sprintf("1.%d", seq))
	}
	check := func(want []string) {
		t.Helper()
		for i := range want {
			after := jobs.Position{}
			if i > 0 {
				if _, err := fmt.Sscanf(want[i-1], "%d.%d", &after.Attempt, &after.Seq); err != nil {
					t.Fatal(err)
				}
			}
			for limit, every := range map[int]int{0: 1, 7: 5, 1: 20} {
				if i%every != 0 {
					continue
				}
				if d := cmp.Diff(want[i:], r.all(jobs.ReplayRequest{Job: job, After: after, Limit: limit})); d != "" {
					t.Fatalf("after %+v, limit %d: %s", after, limit, d)
				}
			}
		}
	}
	check(want) // of one attempt
	r.brain.End(job, jobs.Result{Ending: jobs.Exited, Attempt: 2}, time.Now())
	bustest.Publish(t, r.bus, bustest.Event(job, 1, 81, ""), bustest.Event(job, 2, 1, ""), bustest.Event(job, 1, 82, ""), bustest.Event(job, 2, 2, ""),
		bustest.Event(job, 1, 83, ""), bustest.Event(job, 2, 3, ""), bustest.Final(job, 2, 4), bustest.Event(job, 1, 84, ""), bustest.Event(job, 2, 5, ""))
	want = append(want, "1.81", "2.1", "2.2", "2.3", "2.4!")
	check(want)
	for _, after := range []jobs.Position{{Attempt: 2, Seq: 4}, {Attempt: 2, Seq: 5}, {Attempt: 3}, {Attempt: 2, Seq: 4, At: 7}, {Attempt: 2, Seq: 4, At: 1 << 60}} {
		r.brain.End(job, jobs.Result{Ending: jobs.Exited, Attempt: 2}, time.Now().Add(-time.Hour))
		if d := cmp.Diff([]string{"2.4!"}, r.all(jobs.ReplayRequest{Job: job, After: after})); d != "" {
			t.Errorf("after %+v, which is past the end: %s", after, d)
		}
	}
}

// A wrong hint is of no weight, and neither hint nor search passes over anything.
func TestReplayHint(t *testing.T) {
	r := newReplays(t)
	job, other := r.brain.Add("default"), r.brain.Add("default")
	const all = 2000
	var ats []int64 // of the positions, as replies tell them
	for seq := int64(1); seq <= all; seq += 100 {
		bustest.Publish(t, r.bus, series(job, 1, seq, seq+99)...)
		bustest.Publish(t, r.bus, series(other, 1, seq, seq+99)...)
	}
	for after := (jobs.Position{}); ; {
		reply := r.ask(jobs.ReplayRequest{Job: job, After: after, Limit: 100})
		if after = reply.Next; !reply.More {
			break
		}
		ats = append(ats, after.At)
	}
	for seq := int64(1); seq < all; seq += 333 {
		for _, at := range []int64{0, 1, 2, seq, 199, 1 << 40, ats[len(ats)-1], ats[max(0, seq/100-1)], ats[seq/200]} {
			reply := r.ask(jobs.ReplayRequest{Job: job, After: jobs.Position{Attempt: 1, Seq: seq, At: at}, Limit: 3})
			var got []string
			for i := range reply.Events {
				got = append(got, tell(&reply.Events[i]))
			}
			want := []string{fmt.Sprint("1.", seq+1), fmt.Sprint("1.", seq+2), fmt.Sprint("1.", seq+3)}
			if d := cmp.Diff(want[:min(3, all-seq)], got); d != "" {
				t.Errorf("after %d, at %d: %s", seq, at, d)
			}
		}
	}
}

func TestReplayBytes(t *testing.T) {
	r := newReplays(t)
	job := r.brain.Add("default")
	var want []string
	for seq := int64(1); seq <= 30; seq++ {
		bustest.Publish(t, r.bus, bustest.Event(job, 1, seq, strings.Repeat("y", 100<<10)))
		want = append(want, fmt.Sprintf("1.%d", seq))
	}
	for bytes, most := range map[int64]int{1: 1, 250 << 10: 2, 0: 5, 1 << 40: 20} {
		reply := r.ask(jobs.ReplayRequest{Job: job, MaxBytes: bytes})
		if len(reply.Events) == 0 || len(reply.Events) > most || !reply.More {
			t.Errorf("max_bytes %d: %d events, more is %t; want %d", bytes, len(reply.Events), reply.More, most)
		}
		if d := cmp.Diff(want, r.all(jobs.ReplayRequest{Job: job, MaxBytes: bytes})); d != "" {
			t.Errorf("max_bytes %d: %s", bytes, d)
		}
	}
}

// What is gone is told of, wherever one comes from.
func TestReplayLost(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []jobs.Event // without job
		gone   int
		hole   []int // further ones, by their place from 0
		ended  *jobs.Result
		after  jobs.Position
		want   []string
	}{
		{name: "the first", events: series("", 1, 1, 5), gone: 3, want: []string{"1.3 lost 3 from 1.1", "1.4", "1.5"}},
		{name: "what was seen", events: series("", 1, 1, 5), gone: 3, after: jobs.Position{Attempt: 1, Seq: 3}, want: []string{"1.4", "1.5"}},
		{name: "more than was seen", events: series("", 1, 1, 5), gone: 3, after: jobs.Position{Attempt: 1, Seq: 1}, want: []string{"1.3 lost 2 from 1.2", "1.4", "1.5"}},
		{name: "in the middle", events: series("", 1, 1, 9), hole: []int{4, 5, 6}, want: []string{"1.1", "1.2", "1.3", "1.4", "1.7 lost 3 from 1.5", "1.8", "1.9"}},
		{name: "into the second attempt", events: append(series("", 1, 1, 3), series("", 2, 1, 3)...), gone: 4, want: []string{"2.1 lost 0 from 1.1", "2.2", "2.3"}},
		{name: "the first attempt", events: append(series("", 1, 1, 3), series("", 2, 1, 2)...), gone: 3, want: []string{"2.0 lost 0 from 1.1", "2.1", "2.2"}},
		{
			name: "the end of the first attempt, perhaps", events: append(series("", 1, 1, 3), series("", 2, 1, 2)...), gone: 3, after: jobs.Position{Attempt: 1, Seq: 2},
			want: []string{"2.0 lost 0 from 1.3", "2.1", "2.2"},
		},
		{
			name: "nothing, seen to the end of the first attempt", events: append(series("", 1, 1, 3), series("", 2, 1, 2)...), gone: 2, after: jobs.Position{Attempt: 1, Seq: 3},
			want: []string{"2.1", "2.2"},
		},
		{name: "an attempt in the middle", events: append(series("", 1, 1, 1), series("", 3, 1, 1)...), want: []string{"1.1", "3.0 lost 0 from 2.1", "3.1"}},
		{name: "all", ended: &jobs.Result{Attempt: 1}, want: []string{"1.0 lost 0 from 1.1", "1.1!"}},
		{name: "all that was not seen", ended: &jobs.Result{Attempt: 1}, after: jobs.Position{Attempt: 1, Seq: 7}, want: []string{"1.8 lost 0 from 1.8", "1.9!"}},
		{name: "the end, which was never told", events: series("", 1, 1, 2), ended: &jobs.Result{Attempt: 1}, want: []string{"1.1", "1.2"}},
		{name: "the end, seen what there is", events: series("", 1, 1, 2), ended: &jobs.Result{Attempt: 1}, after: jobs.Position{Attempt: 1, Seq: 2}, want: []string{"1.3!"}},
		{name: "nothing of a job that never ran", ended: &jobs.Result{}, want: []string{"0.1!"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReplays(t)
			job := r.brain.Add("default")
			for i := range c.events {
				c.events[i].Job = job
			}
			if len(c.events) > 0 {
				bustest.Publish(t, r.bus, c.events...)
			}
			r.expire(job, c.gone)
			s, err := r.js.Stream(t.Context(), jobs.StreamEvents)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range c.hole {
				if err := s.DeleteMsg(t.Context(), uint64(i+1)); err != nil {
					t.Fatal(err)
				}
			}
			if c.ended != nil {
				r.brain.End(job, *c.ended, time.Now().Add(-time.Hour))
			}
			for _, limit := range []int{0, 1, 2} {
				if limit != 0 && c.ended != nil {
					continue // a made end and its mark go together
				}
				if d := cmp.Diff(c.want, r.all(jobs.ReplayRequest{Job: job, After: c.after, Limit: limit})); d != "" {
					t.Errorf("limit %d: %s", limit, d)
				}
			}
		})
	}
}

func TestReplayRefuses(t *testing.T) {
	r := newReplays(t)
	mine, theirs := r.brain.Add("default"), r.brain.Add("other")
	bustest.Publish(t, r.bus, bustest.Event(mine, 1, 1, "secret"))
	e := bustest.Event(theirs, 1, 1, "secret")
	e.Tenant = "other"
	bustest.Publish(t, r.bus, e)
	for _, c := range []struct {
		tenant, body string
		want         jobs.Code
		paths        []string
	}{
		{"default", ``, jobs.CodeInvalid, []string{""}},
		{"default", `no`, jobs.CodeInvalid, []string{""}},
		{"default", `{"job": "` + mine + `", "batch": "` + mine + `"}`, jobs.CodeInvalid, []string{""}},
		{"default", `{"job": 5, "limit": "x"}`, jobs.CodeInvalid, []string{"job", "limit"}},
		{"default", `{"job": "` + mine + `", "limit": -1, "max_bytes": -1, "after": {"attempt": -1, "seq": -1, "at": -1}}`, jobs.CodeInvalid, []string{"after.at", "after.attempt", "after.seq", "limit", "max_bytes"}},
		{"default", `{"job": "` + mine + `", "limit": 1001}`, jobs.CodeInvalid, []string{"limit"}},
		{"default", `{"job": "*"}`, jobs.CodeNotFound, nil},
		{"default", `{"job": ">"}`, jobs.CodeNotFound, nil},
		{"default", `{"job": "` + mine + `.event"}`, jobs.CodeNotFound, nil},
		{"default", `{"batch": "*"}`, jobs.CodeNotFound, nil},
		{"default", `{"job": "` + jobs.NewID() + `"}`, jobs.CodeNotFound, nil},
		{"default", `{"job": "` + theirs + `"}`, jobs.CodeNotFound, nil},
		{"default", `{"job": "` + theirs + `", "after": {"attempt": 0, "seq": 0, "at": 2}}`, jobs.CodeNotFound, nil},
		{"other", `{"job": "` + mine + `"}`, jobs.CodeNotFound, nil},
		{"other", `{"job": "` + mine + `", "after": {"attempt": 1, "seq": 1, "at": 1}}`, jobs.CodeNotFound, nil},
		{"default", `{"batch": "` + mine + `"}`, "", nil}, // a job is no batch
		{"default", `{"job": "` + mine + `"}`, "", nil},
	} {
		reply := r.raw(c.tenant, c.body)
		var code jobs.Code
		var paths []string
		if reply.Error != nil {
			code = reply.Error.Code
			for _, f := range reply.Error.Faults {
				paths = append(paths, f.Path)
			}
		}
		if code != c.want || cmp.Diff(c.paths, paths) != "" {
			t.Errorf("%s asks %s: got %+v, want %s %v", c.tenant, c.body, reply.Error, c.want, c.paths)
		}
	}
	if reply := r.raw("default", `{"job": "`+mine+`", "lmit": 3}`); len(reply.Events) != 1 || len(reply.Warnings) != 1 {
		t.Errorf("an unknown field: got %+v", reply)
	}
}

// A batch's progress is in the same stream, and is replayed alike.
func TestReplayBatch(t *testing.T) {
	r := newReplays(t)
	batch := jobs.NewID()
	var want []string
	for seq := int64(1); seq <= 100; seq++ {
		e := jobs.Event{Tenant: "default", Seq: seq, Final: seq == 100}
		data, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("%s.0.%d", batch, seq)
		if e.Final {
			id += ".final"
		}
		if _, err := r.js.Publish(t.Context(), jobs.BatchEventSubject("default", batch), data, jetstream.WithMsgID(id)); err != nil {
			t.Fatal(err)
		}
		want = append(want, tell(&e))
	}
	for i := range want {
		got := r.all(jobs.ReplayRequest{Batch: batch, After: jobs.Position{Seq: int64(i)}, Limit: 30})
		if d := cmp.Diff(want[i:], got); d != "" {
			t.Fatalf("after %d: %s", i, d)
		}
	}
	if reply := r.raw("other", `{"batch": "`+batch+`"}`); len(reply.Events) != 0 {
		t.Errorf("another tenant got %+v", reply)
	}
}

// Nobody's events, should somebody write them, are passed over.
func TestReplayPassesOver(t *testing.T) {
	r := newReplays(t)
	job := r.brain.Add("default")
	for i, id := range []string{"", "x", "a.b", "a.b.c", "a.1.x"} {
		if _, err := r.js.Publish(t.Context(), jobs.EventSubject("default", job), []byte("no event"), jetstream.WithMsgID(id)); err != nil {
			t.Fatal(err)
		}
		bustest.Publish(t, r.bus, bustest.Event(job, 1, int64(i+1), ""))
	}
	for _, limit := range []int{0, 1, 2} {
		if d := cmp.Diff([]string{"1.1", "1.2", "1.3", "1.4", "1.5"}, r.all(jobs.ReplayRequest{Job: job, Limit: limit})); d != "" {
			t.Errorf("limit %d: %s", limit, d)
		}
	}
}

// What a worker writes after its attempt's end, which it does not know, is left out, from wherever somebody reads.
func TestReplayAfterTheAttemptsEnd(t *testing.T) {
	r := newReplays(t)
	job := jobs.NewID()
	bustest.Publish(t, r.bus, series(job, 1, 1, 3)...)
	closeAttempt(t, r.bus, queued(job, 1))
	bustest.Publish(t, r.bus, series(job, 1, 4, 6)...)
	bustest.Publish(t, r.bus, series(job, 2, 1, 2)...)
	bustest.Publish(t, r.bus, series(job, 1, 7, 7)...)
	want := []string{"1.1", "1.2", "1.3", "1.4", "2.1", "2.2"}
	for from := range want {
		q := jobs.ReplayRequest{Job: job}
		if from > 0 {
			if _, err := fmt.Sscanf(want[from-1], "%d.%d", &q.After.Attempt, &q.After.Seq); err != nil {
				t.Fatal(err)
			}
		}
		for _, limit := range []int{0, 1} {
			q.Limit = limit
			var got []string
			for _, e := range r.all(q) {
				got = append(got, strings.Fields(e)[0])
			}
			if diff := cmp.Diff(want[from:], got); diff != "" {
				t.Errorf("after %+v, %d at once (-want +got):\n%s", q.After, limit, diff)
			}
		}
	}
}
