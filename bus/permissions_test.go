package bus_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// tried tells whether the server lets a connection do something. It says what it denies in the order of what it reads, so an answer to
// a ping after it tells that nothing was denied.
func tried(t *testing.T, nc *nats.Conn, do func() error) bool {
	t.Helper()
	denied := make(chan error, 16)
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			denied <- err
		}
	})
	if err := do(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-denied:
		return false
	case <-time.After(20 * time.Millisecond): // the handler has a goroutine of its own
		return nc.LastError() == nil || !errors.Is(nc.LastError(), nats.ErrPermissionViolation)
	}
}

// Each subject is tried by each role, on a real server.
func TestPermissions(t *testing.T) {
	s := bustest.StartGuarded(t)
	job := jobs.NewID()
	type try struct{ do, subject string }
	all := func(do string, subjects ...string) (l []try) {
		for _, s := range subjects {
			l = append(l, try{do, s})
		}
		return l
	}
	pub := func(s ...string) []try { return all("publish", s...) }
	sub := func(s ...string) []try { return all("subscribe", s...) }
	nobodys := pub(
		"$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.PURGE.SUBMIT", "$JS.API.STREAM.CREATE.MINE", "$JS.API.STREAM.UPDATE.EVENTS",
		"$JS.API.CONSUMER.CREATE.EVENTS", "$JS.API.CONSUMER.CREATE.SUBMIT.x", "$JS.API.CONSUMER.DURABLE.CREATE.SUBMIT.x", "$JS.API.CONSUMER.DELETE.SUBMIT.dispatcher",
		"$JS.API.CONSUMER.MSG.NEXT.SUBMIT.dispatcher", "$JS.ACK.SUBMIT.dispatcher.1.1.1.1.0", "$JS.API.STREAM.MSG.GET.SUBMIT", "$JS.API.STREAM.MSG.DELETE.EVENTS",
		"$JS.API.STREAM.LEADER.STEPDOWN.EVENTS", "$JS.API.STREAM.SNAPSHOT.EVENTS", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "$KV.x.y",
		"paddock.v1.fleet.lease", "paddock.v1.fleet.heartbeat", "paddock.v1.fleet.report", "paddock.v1.fleet.lease.other", "paddock.v1.fleet.heartbeat.other",
		"paddock.v1.fleet.report.other", "paddock.v1.fleet.bucket.other", "paddock.v1.fleet.object", "paddock.v1.fleet.object.other", "paddock.v1.fleet.admin.drain", "paddock.v1.worker.other.drain", "paddock.v1.dlq.acme",
		"paddock.v1.submit.other", "paddock.v1.enqueue.other", "_INBOX.x", "_INBOX_other.x", "_INBOX-worker.other.x", "anything",
	)
	nobodys = append(nobodys, sub(
		">", "*.>", "_INBOX.>", "_INBOX_other.>", "_INBOX-worker.other.>", "_INBOX-worker.>", "_INBOX-monitor.>", "paddock.>", "paddock.v1.submit.*", "paddock.v1.submit.acme", "paddock.v1.submit.other",
		"paddock.v1.fleet.>", "paddock.v1.fleet.lease.*", "paddock.v1.worker.other.>", "$JS.>", "$JS.API.>", "$JS.EVENT.ADVISORY.>", "$SYS.>", "$O.>", "paddock.v1.enqueue.>",
		"paddock.v1.job.>", "paddock.v1.job.*.*.>", "paddock.v1.job.*.*.cancel",
	)...)
	for _, role := range []struct {
		access.Identity
		may, mayNot []try
	}{
		{
			access.Identity{Role: access.Tenant, Name: "acme"},
			append(pub(
				"paddock.v1.submit.acme", "paddock.v1.enqueue.acme", "paddock.v1.get.acme", "paddock.v1.list.acme", "paddock.v1.replay.acme",
				jobs.CancelSubject("acme", job), jobs.StdinSubject("acme", job), jobs.SnapshotSubject("acme", job), jobs.ResizeSubject("acme", job),
				"paddock.v1.batch.acme.submit", "paddock.v1.schedule.acme.put", "paddock.v1.webhook.acme.put", "paddock.v1.dead.acme.list",
				"paddock.v1.object.acme.stat", "paddock.v1.object.acme.put", "paddock.v1.object.acme.get",
			), sub("_INBOX_acme.>", "paddock.v1.job.acme.>", jobs.EventSubject("acme", job), jobs.EventSubject("acme", "*"), "paddock.v1.batch.acme.>", "paddock.v1.dlq.acme")...),
			append(pub(
				"paddock.v1.get.other", "paddock.v1.list.other", "paddock.v1.replay.other", jobs.CancelSubject("other", job), jobs.StdinSubject("other", job), jobs.SnapshotSubject("other", job),
				jobs.ResizeSubject("other", job), jobs.EventSubject("acme", job), jobs.EventSubject("other", job), "paddock.v1.batch.other.submit", "paddock.v1.schedule.other.put",
				"paddock.v1.webhook.other.put", "paddock.v1.dead.other.drop", "paddock.v1.object.acme.put.x", "paddock.v1.object.other.get", "paddock.v1.object.other.put",
				"$JS.API.INFO", "$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.INFO.OBJ_paddock-objects-acme", "$JS.API.DIRECT.GET.EVENTS."+jobs.EventSubject("acme", job),
				"$JS.API.DIRECT.GET.OBJ_paddock-objects-acme.$O.paddock-objects-acme.M.x", "$JS.API.STREAM.MSG.GET.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.x."+jobs.EventSubject("acme", job),
				"$JS.API.CONSUMER.CREATE.OBJ_paddock-objects-acme.x.$O.paddock-objects-acme.C.y", "$O.paddock-objects-acme.C.x", "$O.paddock-objects-other.C.x", "_INBOX_acme.x",
				"paddock.v1.fleet.admin.list", "paddock.v1.fleet.lease.acme",
			), sub(jobs.EventSubject("other", job), jobs.EventSubject("*", job), "paddock.v1.job.other.>", "paddock.v1.batch.other.>", "paddock.v1.dlq.other", "paddock.v1.dlq.*", "_INBOX_acme2.>")...),
		},
		{
			access.Identity{Role: access.Worker, Name: "w1"},
			append(pub(
				"paddock.v1.fleet.lease.w1", "paddock.v1.fleet.heartbeat.w1", "paddock.v1.fleet.report.w1", "paddock.v1.fleet.bucket.w1", "paddock.v1.fleet.object.w1", jobs.EventSubject("acme", job),
				"$JS.API.STREAM.INFO.EVENTS", "$O.paddock-objects-acme.C.x",
			), sub("_INBOX-worker.w1.>", "paddock.v1.worker.w1.>", jobs.StdinSubject("acme", job), jobs.SnapshotSubject("acme", job), jobs.ResizeSubject("acme", job))...),
			append(pub(
				"paddock.v1.submit.acme", "paddock.v1.enqueue.acme", "paddock.v1.get.acme", jobs.CancelSubject("acme", job), jobs.StdinSubject("acme", job), "_INBOX_acme.x", "_INBOX-worker.w1.x",
				"$JS.API.CONSUMER.CREATE.SUBMIT.x.paddock.v1.enqueue.acme", "$JS.API.STREAM.PURGE.DLQ", "$JS.API.STREAM.DELETE.OBJ_paddock-objects-acme",
				"$JS.API.STREAM.CREATE.OBJ_paddock-objects-acme", "$JS.API.CONSUMER.CREATE.EVENTS.x.paddock.v1.batch.acme.x.event",
			), sub(jobs.EventSubject("acme", job), "_INBOX_acme.>", "paddock.v1.dlq.acme", jobs.CancelSubject("acme", job))...),
		},
		{
			access.Identity{Role: access.Monitor, Name: "grafana"},
			append(pub("paddock.v1.get.acme", "paddock.v1.list.other", "paddock.v1.replay.acme", "$JS.API.STREAM.INFO.EVENTS", "paddock.v1.fleet.admin.list"),
				sub("_INBOX-monitor.grafana.>", "paddock.v1.job.*.*.event", "paddock.v1.dlq.*")...),
			append(pub(
				"paddock.v1.submit.acme", "paddock.v1.enqueue.acme", jobs.CancelSubject("acme", job), jobs.StdinSubject("acme", job), "paddock.v1.batch.acme.submit", "paddock.v1.batch.acme.cancel",
				"paddock.v1.dead.acme.drop", "paddock.v1.object.acme.put", "paddock.v1.schedule.acme.put", "paddock.v1.webhook.acme.put", jobs.EventSubject("acme", job), "$O.paddock-objects-acme.C.x", "$JS.API.DIRECT.GET.EVENTS.x",
				"$JS.API.STREAM.MSG.GET.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.x.paddock.v1.job.>",
			), sub(jobs.StdinSubject("acme", job), "_INBOX_acme.>")...),
		},
		{
			access.Identity{Role: access.Operator, Name: "ada"},
			append(pub("paddock.v1.submit.acme", "paddock.v1.fleet.admin.drain", "paddock.v1.fleet.lease", "$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.UPDATE.EVENTS", "_INBOX_acme.x"),
				sub("_INBOX.>", "_INBOX_acme.>", "paddock.>", "paddock.v1.submit.*")...),
			append(pub("$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING"), sub("$SYS.>")...),
		},
	} {
		t.Run(role.String(), func(t *testing.T) {
			t.Parallel()
			seed := s.Let(role.Role, role.Name)
			check := func(l []try, want bool) {
				for _, c := range l {
					nc := s.As(seed)
					got := tried(t, nc, func() error {
						if c.do == "publish" {
							return nc.Publish(c.subject, nil)
						}
						_, err := nc.SubscribeSync(c.subject)
						return err
					})
					nc.Close()
					if got != want {
						t.Errorf("%s %s: got %v, want %v", c.do, c.subject, got, want)
					}
				}
			}
			check(role.may, true)
			check(role.mayNot, false)
			if role.Role != access.Operator {
				check(nobodys, false)
			}
		})
	}
}

// A worker does with its permissions alone all that it has to: it registers, leases in parts, publishes, finds out what was published,
// takes stdin and answers it, makes a tenant's bucket, and writes and reads objects.
func TestWorkerIsGivenEnough(t *testing.T) {
	s := bustest.StartGuarded(t)
	spec := jobs.Spec{Language: "python", Source: strings.Repeat("x", 900<<10)}
	bustest.Serve(t, s.Dispatcher(), &bustest.Brain{
		OnLease: func(context.Context, jobs.LeaseRequest) (jobs.LeaseReply, error) {
			return jobs.LeaseReply{Leases: []jobs.Lease{{Held: jobs.Held{Job: "1"}, Spec: spec}, {Held: jobs.Held{Job: "2"}, Spec: spec}, {Held: jobs.Held{Job: "3"}, Spec: spec}}}, nil
		},
	})
	w := s.Worker("w1", s.Let(access.Worker, "w1"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := w.Beat(ctx, jobs.Beat{Worker: "w1"}); err != nil {
		t.Error("heartbeat:", err)
	}
	if _, err := w.Report(ctx, jobs.Report{Worker: "w1"}); err != nil {
		t.Error("report:", err)
	}
	if r, err := w.Lease(ctx, jobs.LeaseRequest{Worker: "w1"}); err != nil || len(r.Leases) != 3 {
		t.Errorf("lease: %d, %v", len(r.Leases), err)
	}
	job := jobs.NewID()
	for _, e := range []jobs.Event{bustest.Event(job, 1, 1, "x"), bustest.Event(job, 2, 1, "x"), bustest.Event(job, 1, 2, "x")} {
		e.Time = e.Time.Add(-time.Hour) // so that it looks whether it is stored
		bustest.Publish(t, w, e, e)
	}
	for e, want := range map[[2]int]bool{{1, 2}: true, {2, 1}: true, {2, 2}: false, {3, 1}: false} {
		if has, err := w.Has(ctx, bustest.Event(job, e[0], int64(e[1]), "x")); err != nil || has != want {
			t.Errorf("event %d.%d is stored: %v, %v", e[0], e[1], has, err)
		}
	}
	for range 2 {
		ref, err := w.PutObject(ctx, "acme", strings.NewReader(strings.Repeat("artifact", 100_000)))
		if err != nil {
			t.Fatal("put:", err)
		}
		r, err := w.GetObject(ctx, "acme", ref)
		if err != nil {
			t.Fatal("get:", err)
		}
		if b, err := io.ReadAll(r); err != nil || len(b) != 800_000 {
			t.Errorf("read %d bytes, %v", len(b), err)
		}
		r.Close()
	}
	pr, pw := io.Pipe()
	serve, err := w.OpenStdin(ctx, "acme", job, pw)
	if err != nil {
		t.Fatal(err)
	}
	go serve()
	go io.Copy(io.Discard, pr) // ends with the pipe
	acme := s.As(s.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme"))
	if m, err := acme.RequestWithContext(ctx, jobs.StdinSubject("acme", job), []byte(`{"text":"x","eof":true}`)); err != nil || string(m.Data) != "{}" {
		t.Errorf("stdin: %v", err)
	}
	stop, err := w.ServeResizes(ctx, "acme", job, func(context.Context, jobs.ResizeRequest) (jobs.Resources, error) {
		return jobs.Resources{VCPUs: 1}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	bustest.Eventually(t, "the worker answers", func() bool {
		m, err := acme.RequestWithContext(ctx, jobs.ResizeSubject("acme", job), []byte(`{"vcpus":1}`))
		return err == nil && strings.Contains(string(m.Data), "resources")
	})
}

// A worker's subjects bear its name, and what it says it is has to be that.
func TestWorkerIsItself(t *testing.T) {
	s := bustest.StartGuarded(t)
	bustest.Serve(t, s.Dispatcher(), &bustest.Brain{})
	w := s.Worker("w1", s.Let(access.Worker, "w1"))
	_, err := w.Beat(t.Context(), jobs.Beat{Worker: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	for what, ask := range map[string]func() (*jobs.Error, error){
		"heartbeat": func() (*jobs.Error, error) {
			r, err := w.Beat(t.Context(), jobs.Beat{Worker: "w2"})
			return r.Error, err
		},
		"lease": func() (*jobs.Error, error) {
			r, err := w.Lease(t.Context(), jobs.LeaseRequest{Worker: "w2"})
			return r.Error, err
		},
		"report": func() (*jobs.Error, error) {
			r, err := w.Report(t.Context(), jobs.Report{Worker: "w2"})
			return r.Error, err
		},
	} {
		if e, err := ask(); err != nil || e == nil || e.Code != jobs.CodeForbidden {
			t.Errorf("%s as another: got %v, %v, want forbidden", what, e, err)
		}
	}
}

// Everybody may name any reply subject, and a dispatcher may publish anywhere: so it answers nowhere but where those listen who may ask.
// JetStream does answer there; what it says then is no request.
func TestAnswersGoToWhoMayAsk(t *testing.T) {
	s := bustest.StartGuarded(t)
	brain := &bustest.Brain{}
	bustest.Serve(t, s.Dispatcher(), brain)
	victims, mine := brain.Add("victim"), brain.Add("acme")
	acme := s.As(s.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme"))
	ops := s.As(s.Let(access.Operator, "ada"))
	js := bustest.JetStream(t, ops)
	seen, err := ops.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{
		jobs.CancelSubject("victim", victims), jobs.SubmitSubject("victim"), jobs.EnqueueSubject("victim"), "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.DELETE.EVENTS",
		jobs.ReportSubject, "paddock.v1.fleet.report.w1", "_INBOX_victim.x", "_INBOX-worker.w1.x", "",
	}
	bustest.Publish(t, s.Dispatcher(), bustest.Event(victims, 1, 1, "x"))
	for _, to := range targets {
		for _, ask := range []string{jobs.GetSubject("acme"), jobs.SubmitSubject("acme"), jobs.ListSubject("acme"), jobs.CancelSubject("acme", mine), jobs.ReplaySubject("acme"), jobs.ObjectSubject("acme", "stat"), jobs.ObjectSubject("acme", "get")} {
			if err := acme.PublishMsg(&nats.Msg{Subject: ask, Reply: to, Data: []byte(`{"id":"` + mine + `"}`)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := acme.PublishMsg(&nats.Msg{Subject: jobs.EnqueueSubject("acme"), Reply: to, Data: []byte(`{"language":"python","source":"1"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	// What is asked last is answered last, or nearly; the rest has been taken by then.
	if _, err := acme.Request(jobs.GetSubject("acme"), []byte(`{"id":"`+mine+`"}`), time.Minute); err != nil {
		t.Fatal(err)
	}
	bustest.Eventually(t, "what was enqueued is admitted", func() bool {
		st, err := js.Stream(t.Context(), jobs.StreamSubmit)
		return err == nil && st.CachedInfo().State.Msgs == 0
	})
	for _, j := range brain.Jobs() {
		if j.Tenant == "victim" && (j.ID != victims || j.State.Terminal()) {
			t.Errorf("another tenant's job %s is %s", j.ID, j.State)
		}
	}
	st, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil || st.CachedInfo().State.Msgs == 0 {
		t.Errorf("the events are gone: %v", err)
	}
	for {
		m, err := seen.NextMsg(100 * time.Millisecond)
		if err != nil {
			break
		}
		for _, to := range targets {
			if m.Subject == to && !strings.Contains(string(m.Data), `"stream":"SUBMIT"`) {
				t.Errorf("on %s: %.200s", m.Subject, m.Data)
			}
		}
	}
}
