package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// dispatcher gives the bus of a cluster's dispatcher.
func dispatcher(c *bustest.Cluster) *bus.Bus {
	return c.Connect(bus.Config{Name: "dispatcher", Creds: c.Keys.Dispatcher()})
}

func operator(t *testing.T, c *bustest.Cluster) jetstream.JetStream {
	t.Helper()
	nc, err := c.As(c.Keys.Dispatcher(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.IgnoreAuthErrorAbort())
	if err != nil {
		t.Fatal(err)
	}
	return bustest.JetStream(t, nc)
}

// leader waits until somebody leads; now and then nobody does.
func leader(t *testing.T, what string, leads func() int) (i int) {
	t.Helper()
	bustest.Eventually(t, what+" has a leader", func() bool { i = leads(); return i >= 0 })
	if i < 0 {
		t.FailNow()
	}
	return i
}

func replicas(t *testing.T, js jetstream.JetStream, stream string) (n int) {
	t.Helper()
	again(t, "what there is of "+stream, func() error {
		st, err := js.Stream(t.Context(), stream)
		if err == nil {
			n = st.CachedInfo().Config.Replicas
		}
		return err
	})
	return n
}

// What nobody answers who may have been asked, because nobody leads, is given up: whoever publishes tries again, and then it is stored.
func TestClusterRepublishWithoutLeader(t *testing.T) {
	c := bustest.StartCluster(t, 3)
	d := dispatcher(c)
	e := bustest.Event("j", 1, 1, "x")
	bustest.Publish(t, d, e)
	leads := leader(t, "the events", func() int { return c.StreamLeader(jobs.StreamEvents) })
	other := (leads + 1) % 3
	c.Stop(leads)
	c.Stop(other)
	var g errgroup.Group
	for range 50 { // some lose the connection, some are told that nobody leads, some ask before that is known, and some one who led until now
		g.Go(func() error {
			begun := time.Now()
			err := d.Republish(t.Context(), e)
			if took := time.Since(begun); took > time.Minute {
				return errors.Join(fmt.Errorf("with one server of three it took %v", took), err)
			}
			return nil
		})
		time.Sleep(100 * time.Millisecond)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	c.Restart(leads)
	c.Restart(other)
	bustest.Eventually(t, "it is stored", func() bool { return d.Republish(t.Context(), e) == nil })
}

// On a cluster every stream has three replicas, also what was there with one; and those who are let in are let in as on a server of ours.
func TestCluster(t *testing.T) {
	c := bustest.StartCluster(t, 3)
	js := operator(t, c)
	bucket := "OBJ_" + jobs.ObjectBucket("old")
	again(t, "a bucket that is there", func() error {
		_, err := js.CreateOrUpdateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket("old"), MaxBytes: 1 << 20})
		return err
	})
	one := c.Connect(bus.Config{Creds: c.Keys.Dispatcher(), Replicas: 1})
	bustest.Publish(t, one, bustest.Event("j", 1, 1, "x"))
	for _, s := range []string{jobs.StreamEvents, jobs.StreamSubmit, jobs.StreamDLQ, bucket} {
		if n := replicas(t, js, s); n != 1 {
			t.Errorf("%s has %d replicas, 1 was asked for", s, n)
		}
	}
	d := dispatcher(c)
	for _, s := range []string{jobs.StreamEvents, jobs.StreamSubmit, jobs.StreamDLQ, bucket} {
		if n := replicas(t, js, s); n != 3 {
			t.Errorf("%s has %d replicas", s, n)
		}
	}
	has(t, d, bustest.Event("j", 1, 1, "x"), true)
	again(t, "an object is stored", func() error {
		_, err := d.PutObject(t.Context(), "new", strings.NewReader("x"))
		return err
	})
	if n := replicas(t, js, "OBJ_"+jobs.ObjectBucket("new")); n != 3 {
		t.Errorf("a new bucket has %d replicas", n)
	}
	t.Run("Callout", func(t *testing.T) { testCallout(t, c, d) })
	t.Run("WorkerAtLeaf", func(t *testing.T) { testWorkerAtLeaf(t, c) })
}

// answerWait is how long a test waits for an answer before it asks again: what is asked while a cluster's servers tell each other who listens may
// be lost among them, and nobody says so.
const answerWait = 10 * time.Second

func beat(t *testing.T, w *bus.Bus, name string) (jobs.BeatReply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerWait)
	defer cancel()
	return w.Beat(ctx, jobs.Beat{Worker: name})
}

func testCallout(t *testing.T, c *bustest.Cluster, d *bus.Bus) {
	stays, goes, worker := c.Let(access.Tenant, "acme"), c.Let(access.Tenant, "gone"), c.Let(access.Worker, "w1")
	if _, err := c.As(stays); err == nil {
		t.Errorf("nobody decides: got %v", err)
	}
	stop := c.Callout()
	brain := &bustest.Brain{}
	bustest.Serve(t, d, brain)
	loaded := nats.Timeout(time.Minute)
	acme, err := c.As(stays, nats.CustomInboxPrefix("_INBOX_acme"), nats.NoReconnect(), loaded)
	if err != nil {
		t.Fatal(err)
	}
	var m *nats.Msg
	bustest.Eventually(t, "the tenant's server knows of the dispatcher", func() bool {
		m, err = acme.Request(jobs.SubmitSubject("acme"), []byte(`{"language":"python","source":"1"}`), answerWait)
		return err == nil
	})
	if err != nil || !strings.Contains(string(m.Data), `"job"`) {
		t.Errorf("submit: %v", err)
	}
	for _, subject := range []string{jobs.SubmitSubject("other"), "$JS.API.STREAM.DELETE.EVENTS", "$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", jobs.LeaseSubject} {
		if tried(t, acme, func() error { return acme.Publish(subject, nil) }) {
			t.Errorf("a tenant may publish on %s", subject)
		}
	}
	if _, unknown := bustest.Key(t); true {
		if _, err := c.As(unknown, loaded); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("an unknown key: got %v", err)
		}
	}
	if nc, err := nats.Connect(c.URL(), nats.RootCAs(c.CA.File("ca.pem")), loaded); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("no key: got %v", err)
		nc.Close()
	}
	w := c.Connect(bus.Config{Name: "w1", Worker: "w1", Creds: worker})
	bustest.Eventually(t, "the dispatcher answers", func() bool { // the servers tell each other who listens
		_, err := beat(t, w, "w1")
		return err == nil
	})
	bustest.Publish(t, w, bustest.Event(jobs.NewID(), 1, 1, "x"))
	going, err := c.As(goes, nats.NoReconnect(), loaded)
	if err != nil {
		t.Fatal(err)
	}
	revoke(t, c, "gone")
	closed(t, going)
	if acme.IsClosed() {
		t.Error("another's connection ended too")
	}
	if _, err := c.As(goes, loaded); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the key that is gone: got %v", err)
	}

	// Many that go at once are asked for at once: each question to the servers takes seconds.
	var seeds []string
	for range 40 {
		seeds = append(seeds, c.Let(access.Tenant, "crowd"))
	}
	var many []*nats.Conn
	for _, seed := range seeds {
		var nc *nats.Conn
		bustest.Eventually(t, "one of the crowd is let in", func() bool {
			nc, err = c.As(seed, nats.NoReconnect(), loaded)
			return err == nil
		})
		many = append(many, nc)
	}
	revoke(t, c, "crowd")
	bustest.Eventually(t, "the crowd's connections are closed", func() bool {
		return !slices.ContainsFunc(many, func(nc *nats.Conn) bool { return !nc.IsClosed() })
	})

	// One that goes while nobody decides ends when somebody does again.
	seed := c.Let(access.Tenant, "late")
	var late *nats.Conn
	bustest.Eventually(t, "it is let in", func() bool {
		late, err = c.As(seed, nats.NoReconnect(), loaded)
		return err == nil
	})
	stop()
	revoke(t, c, "late")
	c.Callout()
	closed(t, late)
	if acme.IsClosed() || !d.Connected() {
		t.Error("others' connections ended too")
	}
}

// revoke takes a name's credentials out of the file.
func revoke(t *testing.T, c *bustest.Cluster, name string) {
	t.Helper()
	if err := access.Change(c.Credentials, func(l []access.Credential) ([]access.Credential, error) {
		return slices.DeleteFunc(l, func(one access.Credential) bool { return one.Name == name }), nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A site's workers connect to a server of the site's, which connects to the cluster.
func testWorkerAtLeaf(t *testing.T, c *bustest.Cluster) {
	public, worker := bustest.Key(t)
	url := c.Leaf(access.Credential{NKey: public, Identity: access.Identity{Role: access.Worker, Name: "w2"}})
	w := c.Connect(bus.Config{Name: "w2", Worker: "w2", Creds: worker, URL: url})
	bustest.Serve(t, dispatcher(c), &bustest.Brain{})
	bustest.Eventually(t, "the dispatcher answers through the leaf", func() bool {
		_, err := beat(t, w, "w2")
		return err == nil
	})
	bustest.Eventually(t, "an answer as another", func() bool {
		r, err := beat(t, w, "w1")
		if err == nil && r.Error == nil {
			t.Errorf("as another: %+v", r)
		}
		return err == nil
	})
	job := jobs.NewID()
	bustest.Publish(t, w, bustest.Event(job, 1, 1, "x"), bustest.Event(job, 1, 2, "x"))
	has(t, w, bustest.Event(job, 1, 2, "x"), true)
	again(t, "an object is stored and read", func() error {
		ref, err := w.PutObject(t.Context(), "acme", strings.NewReader("artifact"))
		if err != nil {
			return err
		}
		r, err := w.GetObject(t.Context(), "acme", ref)
		if err != nil {
			return err
		}
		return r.Close()
	})
}

// Events and enqueued specs are published while one server after the other is lost, the streams' leaders too. What fails is published
// again, as callers do; then each event is there once and in order, and each spec is admitted once.
func TestClusterLosesServers(t *testing.T) {
	c := bustest.StartCluster(t, 3)
	c.Callout()
	js := operator(t, c)
	d := dispatcher(c)
	brain := &bustest.Brain{}
	bustest.Serve(t, d, brain)
	tenant, err := c.As(c.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.IgnoreAuthErrorAbort())
	for err != nil { // the callout notices the file within a second
		tenant, err = c.As(c.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.IgnoreAuthErrorAbort())
	}
	ctx, cancel := context.WithDeadline(t.Context(), bustest.Patience(t))
	defer cancel()
	var stop atomic.Bool
	var failed atomic.Int64
	const publishers = 4
	ids, last := make([]string, publishers), make([]int64, publishers)
	var g errgroup.Group
	for i := range publishers {
		ids[i] = jobs.NewID()
		g.Go(func() error {
			for seq := int64(1); !stop.Load(); seq += 3 {
				events := []jobs.Event{bustest.Event(ids[i], 1, seq, "x"), bustest.Event(ids[i], 1, seq+1, "x"), bustest.Event(ids[i], 1, seq+2, "x")}
				for d.Publish(ctx, events...) != nil {
					if failed.Add(1); ctx.Err() != nil {
						return ctx.Err()
					}
				}
				last[i] = seq + 2
			}
			return nil
		})
	}
	enqueued := 0
	g.Go(func() error {
		for ; !stop.Load(); enqueued++ {
			m := &nats.Msg{
				Subject: jobs.EnqueueSubject("acme"), Data: []byte(`{"language":"python","source":"1"}`), Header: nats.Header{nats.MsgIdHdr: {fmt.Sprintf("acme-%d", enqueued)}},
			}
			for {
				try, cancel := context.WithTimeout(ctx, 2*time.Second)
				ack, err := tenant.RequestMsgWithContext(try, m)
				cancel()
				if err == nil && strings.Contains(string(ack.Data), `"seq"`) && !strings.Contains(string(ack.Data), `"error"`) {
					break
				}
				if failed.Add(1); ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
		return nil
	})
	lose := func(i int) {
		c.Stop(i)
		time.Sleep(3 * time.Second) // the others work without it
		c.Restart(i)
	}
	for i := range 3 {
		lose(i)
	}
	for _, stream := range []string{jobs.StreamEvents, jobs.StreamSubmit} {
		lose(leader(t, stream, func() int { return c.StreamLeader(stream) }))
	}
	lose(leader(t, "the cluster", c.Leader))
	stop.Store(true)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d specs, up to %d events of a job; %d tries failed", enqueued, last[0], failed.Load())
	for i, id := range ids {
		keptInOrder(t, js, id, last[i])
	}
	bustest.Eventually(t, "all specs are admitted", func() bool { return len(brain.Jobs()) >= enqueued })
	if n := len(brain.Jobs()); n != enqueued {
		t.Errorf("%d specs were enqueued, %d jobs admitted", enqueued, n)
	}
}

// keptInOrder checks that the stream has a job's events, each once and in order.
func keptInOrder(t *testing.T, js jetstream.JetStream, job string, last int64) {
	t.Helper()
	var got []string
	bustest.Eventually(t, "the events of "+job+" are read", func() bool { // the consumer's leader may be another in the middle
		cons, err := js.OrderedConsumer(t.Context(), jobs.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{jobs.EventSubject("default", job)}})
		if err != nil {
			return false
		}
		messages, err := cons.Messages()
		if err != nil {
			return false
		}
		defer messages.Stop()
		got = got[:0]
		for int64(len(got)) < last {
			m, err := messages.Next(jetstream.NextMaxWait(10 * time.Second))
			if err != nil {
				t.Logf("read %d of %d: %v", len(got), last, err)
				return false
			}
			got = append(got, m.Headers().Get(nats.MsgIdHdr))
		}
		return true
	})
	for i, id := range got {
		if id != fmt.Sprintf("%s.1.%d", job, i+1) {
			t.Fatalf("%s: got the event %s, want %d", job, id, i+1)
		}
	}
	var info *jetstream.StreamInfo
	again(t, "how many events there are", func() error {
		st, err := js.Stream(t.Context(), jobs.StreamEvents)
		if err == nil {
			info, err = st.Info(t.Context(), jetstream.WithSubjectFilter(jobs.EventSubject("default", job)))
		}
		return err
	})
	if n := info.State.Subjects[jobs.EventSubject("default", job)]; int64(n) != last {
		t.Errorf("%s: %d events are stored, %d were published", job, n, last)
	}
}
