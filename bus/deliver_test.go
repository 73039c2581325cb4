package bus_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// redirection is a spec that lies in the streams of events and of objects, as one who may write there has stored it.
type redirection struct {
	s     *bustest.Server
	brain *bustest.Brain
	ops   *nats.Conn
	spec  string
	from  map[string]string // the subject, by stream
}

func newRedirection(t *testing.T) *redirection {
	t.Helper()
	r := &redirection{s: bustest.StartGuarded(t), brain: &bustest.Brain{}, spec: `{"language": "sh", "source": "echo taken over"}`}
	bustest.Serve(t, r.s.Dispatcher(), r.brain)
	seed := r.s.Let(access.Worker, "w1")
	if _, err := r.s.Worker("w1", seed).PutObject(t.Context(), "acme", strings.NewReader("an object")); err != nil { // for the bucket
		t.Fatal(err)
	}
	r.from = map[string]string{jobs.StreamEvents: jobs.EventSubject("acme", jobs.NewID()), "OBJ_paddock-objects-acme": "$O.paddock-objects-acme.C.mine"}
	w := r.s.As(seed, nats.CustomInboxPrefix("_INBOX-worker.w1"))
	for _, subject := range r.from {
		m := &nats.Msg{Subject: subject, Data: []byte(r.spec), Header: nats.Header{jetstream.StreamHeader: {"MINE"}, jetstream.SubjectHeader: {"mine"}}}
		if _, err := w.RequestMsg(m, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	r.ops = r.s.As(r.s.Let(access.Operator, "ada"))
	return r
}

// requests are all ways to have a stream's messages published on a subject.
func (r *redirection) requests(t *testing.T, to string) (l []*nats.Msg) {
	t.Helper()
	for stream, subject := range r.from {
		consumer := func(more map[string]any) string {
			c := map[string]any{"ack_policy": "none", "filter_subject": subject, "mem_storage": true, "inactive_threshold": time.Minute}
			maps.Copy(c, more)
			b, err := json.Marshal(map[string]any{"stream_name": stream, "config": c})
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		push := map[string]any{"deliver_subject": to}
		for _, ask := range []struct{ api, reply, body string }{
			{"CONSUMER.CREATE." + stream, "", consumer(push)},
			{"CONSUMER.CREATE." + stream + ".push." + subject, "", consumer(map[string]any{"deliver_subject": to, "name": "push"})},
			{"CONSUMER.DURABLE.CREATE." + stream + ".durable", "", consumer(map[string]any{"deliver_subject": to, "durable_name": "durable"})},
			{"CONSUMER.CREATE." + stream + ".pull." + subject, "", consumer(map[string]any{"name": "pull"})},
			{"CONSUMER.MSG.NEXT." + stream + ".pull", to, `{"batch": 10}`},
			{"CONSUMER.DELETE." + stream + ".push", "", ""},
			{"CONSUMER.DELETE." + stream + ".durable", "", ""},
			{"CONSUMER.DELETE." + stream + ".pull", "", ""},
			{"DIRECT.GET." + stream, to, `{"last_by_subj": "` + subject + `"}`},
			{"DIRECT.GET." + stream + "." + subject, to, ``},
			{"STREAM.MSG.GET." + stream, to, `{"last_by_subj": "` + subject + `"}`},
		} {
			l = append(l, &nats.Msg{Subject: "$JS.API." + ask.api, Reply: ask.reply, Data: []byte(ask.body)})
		}
	}
	return l
}

// try has the one with the key try all of them on a subject, and tells whether the spec was published there.
func (r *redirection) try(t *testing.T, seed, to string) (reached bool) {
	t.Helper()
	seen, err := r.ops.SubscribeSync(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ops.Flush(); err != nil {
		t.Fatal(err)
	}
	defer seen.Unsubscribe()
	nc := r.s.As(seed)
	defer nc.Close()
	nc.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}) // of what is denied
	for _, m := range r.requests(t, to) {
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(m.Subject, "$JS.API.CONSUMER.DELETE.") {
			continue
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // the consumer is deleted soon
	}
	for {
		m, err := seen.NextMsg(200 * time.Millisecond)
		if err != nil {
			return reached
		}
		reached = reached || string(m.Data) == r.spec
	}
}

// Who may have it published does not bring in jobs with it: what is enqueued has been published as that.
func TestNothingDeliveredIsEnqueued(t *testing.T) {
	r := newRedirection(t)
	if !r.try(t, r.s.Let(access.Operator, "eve"), jobs.EnqueueSubject("victim")) {
		t.Fatal("nothing was published there")
	}
	js := bustest.JetStream(t, r.ops)
	bustest.Eventually(t, "what was enqueued is judged", func() bool {
		st, err := js.Stream(t.Context(), jobs.StreamSubmit)
		return err == nil && st.CachedInfo().State.LastSeq >= 6 && st.CachedInfo().State.Msgs == 0
	})
	for _, j := range r.brain.Jobs() {
		t.Errorf("a job of %s's has come in", j.Tenant)
	}
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: jobs.EnqueueSubject("acme"), Data: []byte(r.spec)}); err != nil {
		t.Fatal(err)
	}
	bustest.Eventually(t, "a client's job comes in", func() bool { return len(r.brain.Jobs()) == 1 })
}
