package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// queue is a client that only enqueues.
type queue struct {
	*testing.T
	nc *nats.Conn
	js jetstream.JetStream
}

func newQueue(t *testing.T, nc *nats.Conn) queue {
	js := bustest.JetStream(t, nc)
	return queue{t, nc, js}
}

func (q queue) put(tenant, id string, body []byte) {
	q.Helper()
	m := &nats.Msg{Subject: "paddock.v1.enqueue." + tenant, Data: body, Header: nats.Header{}}
	if id != "" {
		m.Header.Set(nats.MsgIdHdr, id)
	}
	// JetStream itself knows an id for a moment, and in all tenants: its ack says so.
	bustest.Eventually(q, "the stream takes the spec", func() bool {
		ack, err := q.js.PublishMsg(q.Context(), m)
		if err != nil {
			q.Fatal(err)
		}
		return !ack.Duplicate
	})
}

// waiting is how many specs are in the stream.
func (q queue) waiting() uint64 {
	q.Helper()
	s, err := q.js.Stream(q.Context(), jobs.StreamSubmit)
	if err != nil {
		q.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func (q queue) judged() {
	q.Helper()
	bustest.Eventually(q, "all is judged", func() bool { return q.waiting() == 0 })
}

// letters are a tenant's entries in the dead-letter queue.
func (q queue) letters(tenant string) (l []map[string]any) {
	q.Helper()
	sub, err := q.nc.SubscribeSync(q.nc.NewInbox())
	if err != nil {
		q.Fatal(err)
	}
	defer sub.Unsubscribe()
	c, err := q.js.CreateConsumer(q.Context(), jobs.StreamDLQ, jetstream.ConsumerConfig{FilterSubject: "paddock.v1.dlq." + tenant, AckPolicy: jetstream.AckNonePolicy})
	if err != nil {
		q.Fatal(err)
	}
	for range c.CachedInfo().NumPending {
		m, err := c.Next()
		if err != nil {
			q.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(m.Data(), &v); err != nil {
			q.Fatal(err)
		}
		l = append(l, v)
	}
	return l
}

func TestEnqueue(t *testing.T) {
	s := bustest.Start(t)
	brain := &bustest.Brain{}
	bustest.Serve(t, s.Connect(), brain)
	q := newQueue(t, s.Plain())
	q.put("default", "", []byte(hello))
	q.put("default", "", []byte(hello)) // without an id it is another job
	q.put("default", "a", []byte(hello))
	q.put("other", "a", []byte(hello)) // another's id
	q.judged()
	q.put("default", "a", []byte(hello)) // again
	q.judged()
	tenants := map[string]int{}
	for _, j := range brain.Jobs() {
		tenants[j.Tenant]++
	}
	if tenants["default"] != 3 || tenants["other"] != 1 {
		t.Errorf("got %v jobs, want 3 of default and 1 of other", tenants)
	}
	q.put("default", "a", []byte(`{"language": "python", "source": "another"}`))
	q.judged()
	l := q.letters("default")
	if len(l) != 1 || l[0]["error"].(map[string]any)["code"] != "conflict" {
		t.Errorf("the same id with another body: got %v", l)
	}
}

// What can never run lies in the dead-letter queue and leaves the stream; what is behind it runs.
func TestEnqueuePoison(t *testing.T) {
	s := bustest.Start(t)
	brain := &bustest.Brain{}
	bustest.Serve(t, s.Connect(), brain)
	q := newQueue(t, s.Plain())
	id := jobs.NewID()
	for _, body := range [][]byte{
		[]byte(fmt.Sprintf(`{"id": %q, "language": "cobol", "source": "1"}`, id)),
		nil, []byte("{"), []byte("\xff\xfe"), bytes.Repeat([]byte{1}, 2<<20-200), bytes.Repeat([]byte{0xff}, 1<<20),
	} {
		q.put("default", "", body)
	}
	q.put("default", strings.Repeat("k", 300), []byte(hello)) // no key may be as long
	for _, nobody := range []string{"*", ">", "a=b", "ü"} {   // as far as the server takes them
		_, _ = q.js.Publish(t.Context(), "paddock.v1.enqueue."+nobody, []byte(hello))
	}
	q.put("default", "", []byte(hello))
	q.judged()
	if n := len(brain.Jobs()); n != 1 {
		t.Errorf("%d jobs were admitted, want 1", n)
	}
	l := q.letters("default")
	if len(l) != 7 {
		t.Fatalf("%d letters, want 7", len(l))
	}
	for _, v := range l {
		if v["reason"] != "rejected" || v["error"] == nil || v["tenant"] != "default" || v["time"] == nil {
			t.Errorf("a letter without its reason: %.200q", fmt.Sprint(v))
		}
	}
	events := storedEvents(t, q.nc, id)
	if len(events) != 1 || !events[0].Final || events[0].Result.Ending != jobs.Rejected || !strings.Contains(events[0].Result.Reason, "language") {
		t.Errorf("the events of the job that was named: %+v", events)
	}
}

// What can never run may name another tenant's job: the end of that one is heard of all the same.
func TestEnqueuePoisonNamesAnothers(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	bustest.Serve(t, b, &bustest.Brain{})
	q := newQueue(t, s.Plain())
	id := jobs.NewID()
	q.put("other", "", fmt.Appendf(nil, `{"id": %q, "language": "cobol", "source": "1"}`, id))
	q.judged()
	e := jobs.Event{Type: jobs.EventResult, Job: id, Tenant: "default", Seq: 1, Time: time.Now(), Final: true, Result: &jobs.Result{Ending: jobs.Canceled}}
	if err := b.Republish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if l := storedEvents(t, q.nc, id); len(l) != 1 || !l[0].Final {
		t.Errorf("stored: %+v, want the end of the job that was named", l)
	}
}

// While the dispatcher cannot take it a spec stays, and is taken later; nothing is buried that could still run.
func TestEnqueueUnavailable(t *testing.T) {
	s := bustest.Start(t)
	var tries atomic.Int64
	brain := &bustest.Brain{Before: func(_ context.Context, op string) error {
		switch tries.Add(1) {
		case 1:
			return &jobs.Error{Code: jobs.CodeUnavailable, Message: "not now", RetryAfterMS: 10}
		case 2:
			return errors.New("a fault of ours")
		}
		return nil
	}}
	b := s.Connect()
	q := newQueue(t, s.Plain())
	q.put("default", "", []byte(hello)) // nobody serves yet
	bustest.Serve(t, b, brain)
	q.judged()
	if n := len(brain.Jobs()); n != 1 || tries.Load() != 3 {
		t.Errorf("%d jobs after %d tries", n, tries.Load())
	}
	if l := q.letters("default"); len(l) > 0 {
		t.Errorf("buried: %v", l)
	}
}

// However many specs of a tenant's its quota holds up, another's behind them is judged: also where JetStream gives out no more of them.
func TestEnqueueBehindMany(t *testing.T) {
	for name, most := range map[string]int{"that are given out": 0, "more than are given out": 500} {
		t.Run(name, func(t *testing.T) {
			s := bustest.Start(t)
			brain := &overQuota{Brain: &bustest.Brain{}, tenant: "full"}
			bustest.Serve(t, s.Connect(), brain)
			q := newQueue(t, s.Plain())
			if most > 0 {
				atMost(q, most)
			}
			const many = 1500
			q.flood("full", many)
			q.put("other", "", []byte(hello))
			bustest.Eventually(t, "the other's is judged", func() bool { return len(brain.Jobs()) == 1 })
			bustest.Eventually(t, "all of the first one's are left", func() bool { return q.waiting() == many })
			q.put("other", "a", []byte(hello))
			bustest.Eventually(t, "the other's next is judged", func() bool { return len(brain.Jobs()) == 2 })
			q.put("other", "", []byte(`{"language": "cobol", "source": "1"}`))
			bustest.Eventually(t, "what can never run is gone", func() bool { return q.waiting() == many && len(q.letters("other")) == 1 })
		})
	}
}

func (q queue) flood(tenant string, n int) {
	q.Helper()
	for range n {
		if _, err := q.js.PublishAsync("paddock.v1.enqueue."+tenant, []byte(hello)); err != nil {
			q.Fatal(err)
		}
	}
	<-q.js.PublishAsyncComplete()
}

// atMost has JetStream give out no more specs that have not been judged.
func atMost(q queue, n int) {
	q.Helper()
	c, err := q.js.Consumer(q.Context(), jobs.StreamSubmit, "dispatcher")
	if err != nil {
		q.Fatal(err)
	}
	cfg := c.CachedInfo().Config
	cfg.MaxAckPending = n
	if _, err := q.js.UpdateConsumer(q.Context(), jobs.StreamSubmit, cfg); err != nil {
		q.Fatal(err)
	}
}

// While one tenant's specs are judged that are many, those of others that came after them are judged, each once.
func TestEnqueueOvertakes(t *testing.T) {
	s := bustest.Start(t)
	stand := make(chan struct{})
	brain := &stands{Brain: &bustest.Brain{}, tenant: "many", until: stand}
	stop := bustest.Serve(t, s.Connect(), brain)
	q := newQueue(t, s.Plain())
	const many, others, each = 500, 5, 20
	q.flood("many", many)
	for range each {
		for i := range others {
			q.flood(fmt.Sprintf("other-%d", i), 1)
		}
	}
	jobsOf := func() map[string]int {
		n := map[string]int{}
		for _, j := range brain.Jobs() {
			n[j.Tenant]++
		}
		return n
	}
	bustest.Eventually(t, "the others' are judged while those of many stand", func() bool { n := jobsOf(); return len(n) == others && len(brain.Jobs()) == others*each })
	close(stand)
	q.judged()
	stop()
	n := jobsOf()
	if n["many"] != many {
		t.Errorf("%d of %d jobs of many", n["many"], many)
	}
	for i := range others {
		if tenant := fmt.Sprintf("other-%d", i); n[tenant] != each {
			t.Errorf("%d of %d jobs of %s", n[tenant], each, tenant)
		}
	}
}

// stands lets one tenant's specs wait.
type stands struct {
	*bustest.Brain
	tenant string
	until  chan struct{}
}

func (b *stands) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	if tenant == b.tenant {
		select {
		case <-b.until:
		case <-ctx.Done():
			return jobs.Job{}, false, ctx.Err()
		}
	}
	return b.Brain.Admit(ctx, tenant, spec)
}

// overQuota takes nothing of one tenant's, for an hour.
type overQuota struct {
	*bustest.Brain
	tenant string
}

func (o *overQuota) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	if tenant == o.tenant {
		return jobs.Job{}, false, &jobs.Error{Code: jobs.CodeQuota, Message: "too much", RetryAfterMS: time.Hour.Milliseconds()}
	}
	return o.Brain.Admit(ctx, tenant, spec)
}

// A dispatcher that dies between the commit and the ack leaves a spec that comes again, and is the same job.
func TestEnqueueDispatcherDies(t *testing.T) {
	s := bustest.Start(t)
	admitted := make(chan struct{})
	var once sync.Once
	brain := &bustest.Brain{}
	dying := &dies{Brain: brain, after: func() {
		once.Do(func() { // another, of the same spec because it was overtaking, waits as well
			s.Close() // with the ack on its way
			close(admitted)
		})
	}}
	stop := bustest.Serve(t, s.Connect(), dying)
	q := newQueue(t, s.Plain())
	q.put("default", "", []byte(hello))
	<-admitted
	stop()
	if n := len(brain.Jobs()); n != 1 {
		t.Fatalf("%d jobs", n)
	}
	s.Restart()
	q = newQueue(t, s.Plain())
	if q.waiting() != 1 {
		t.Fatal("the spec is gone without its ack")
	}
	shorten(q) // or the test would wait for half a minute
	bustest.Serve(t, s.Connect(), brain)
	q.judged()
	if n := len(brain.Jobs()); n != 1 {
		t.Errorf("%d jobs, want the one", n)
	}
}

// dies does something after it has admitted a job.
type dies struct {
	*bustest.Brain
	after func()
}

var _ bus.Brain = (*dies)(nil)

func (d *dies) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	j, dup, err := d.Brain.Admit(ctx, tenant, spec)
	d.after()
	return j, dup, err
}

// shorten makes the server give up on a dispatcher's ack: the consumer is made anew, and everything in the stream is delivered again.
func shorten(q queue) {
	q.Helper()
	if err := q.js.DeleteConsumer(q.Context(), jobs.StreamSubmit, "dispatcher"); err != nil {
		q.Fatal(err)
	}
}

// TestReadyToTakeEnqueued: a dispatcher that says that it is ready takes enqueued specs, whatever becomes of the server from then on.
func TestReadyToTakeEnqueued(t *testing.T) {
	for range 10 {
		s := bustest.Start(t)
		stop := bustest.Serve(t, s.Connect(), &bustest.Brain{})
		nc, err := nats.Connect(s.URL())
		if err != nil {
			t.Fatal(err)
		}
		js := bustest.JetStream(t, nc)
		if _, err := js.Consumer(t.Context(), jobs.StreamSubmit, "dispatcher"); err != nil {
			t.Error("ready, and: ", err)
		}
		nc.Close()
		stop()
	}
}
