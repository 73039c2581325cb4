package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// guarded is a Paddock whose NATS servers let in who has a credential: two tenants and a worker.
type guarded struct {
	url         string
	acme, other string   // seeds
	opts        []string // of processes that connect
	nats        []nats.Option
}

func (g *guarded) client(t *testing.T, tenant, seed string) *client.Client {
	t.Helper()
	c, err := client.Connect(g.url, client.Tenant(tenant), client.Credentials(seed), client.NATS(g.nats...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// natsAnswers bounds what a server is waited for that may have to ask a dispatcher, on a machine that is loaded.
const natsAnswers = time.Minute

// plain is a connection of nats.go with acme's credential.
func (g *guarded) plain(t *testing.T) *nats.Conn {
	t.Helper()
	key, err := nats.NkeyOptionFromSeed(g.acme)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(g.url, append([]nats.Option{key, nats.CustomInboxPrefix("_INBOX_acme"), nats.NoReconnect(), nats.Timeout(natsAnswers)}, g.nats...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// embeddedGuard has the dispatcher's own server decide who connects.
func embeddedGuard(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{}
	var list []access.Credential
	let := func(role access.Role, name string) string {
		public, seed := bustest.Key(t)
		list = append(list, access.Credential{NKey: public, Identity: access.Identity{Role: role, Name: name}})
		return seed
	}
	g.acme, g.other = let(access.Tenant, "acme"), let(access.Tenant, "other")
	g.opts = []string{"--nats-creds", let(access.Worker, "w1")}
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := access.Write(file, list); err != nil {
		t.Fatal(err)
	}
	g.url = start(t, harness.Options{Command: "dispatcher", Args: []string{"--nats-credentials", file}}).URL
	return g
}

// calloutGuard has a cluster of NATS servers ask the dispatcher.
func calloutGuard(t *testing.T) *guarded {
	t.Helper()
	c := bustest.StartCluster(t, 3)
	ca := c.CA.File("ca.pem")
	g := &guarded{
		url: c.URL(), acme: c.Let(access.Tenant, "acme"), other: c.Let(access.Tenant, "other"),
		opts: []string{"--nats", c.URL(), "--nats-creds", c.Let(access.Worker, "w1"), "--nats-tls-ca", ca}, nats: []nats.Option{nats.RootCAs(ca)},
	}
	start(t, harness.Options{Command: "dispatcher", Args: []string{
		"--listen", "", "--nats", c.URL(), "--nats-callout", string(c.Keys), "--nats-credentials", c.Credentials, "--nats-tls-ca", ca,
	}})
	return g
}

// A tenant does with its own permissions all that the Go client offers, and gets nowhere with another's.
func TestTenant(t *testing.T) {
	needMachines(t)
	for name, guard := range map[string]func(*testing.T) *guarded{"embedded": embeddedGuard, "callout": calloutGuard} {
		t.Run(name, func(t *testing.T) {
			g := guard(t)
			start(t, harness.Options{Command: "worker", NATS: strings.TrimPrefix(g.url, "nats://"), Driver: "hostproc", Args: append([]string{
				"--images", "base", "--name", "w1", "--vcpus", "4",
			}, g.opts...)})
			acme, other := g.client(t, "acme", g.acme), g.client(t, "other", g.other)
			t.Run("own", func(t *testing.T) { tenantsOwn(t, acme) })
			t.Run("another's", func(t *testing.T) { tenantsOthers(t, g, acme, other) })
		})
	}
}

func shell(line string) jobs.Spec {
	return jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: line}}}
}

// refused is what Paddock answers where somebody asks for what is not there; who may not ask gets no answer at all.
func refused(t *testing.T, what string, err error, codes ...jobs.Code) {
	t.Helper()
	if e, ok := errors.AsType[*jobs.Error](err); !ok || !slices.Contains(codes, e.Code) {
		t.Errorf("%s: %v, want one of %v", what, err, codes)
	}
}

// followed gives what a job has printed, from a position on, to the final event.
func followed(t *testing.T, c *client.Client, job string, after client.Position) (out string, last jobs.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for e, err := range c.Follow(ctx, job, after) {
		if err != nil {
			t.Fatalf("follow: %v", err)
		}
		out, last = out+e.Text, e
	}
	if !last.Final {
		t.Errorf("the last event is %+v, want the final one", last)
	}
	return out, last
}

// tenantsOwn calls every method of the client that a tenant has.
func tenantsOwn(t *testing.T, c *client.Client) {
	ctx := t.Context()
	no := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	object := func(t *testing.T, content []byte) jobs.ObjectRef {
		t.Helper()
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ref, err := c.PutObject(ctx, f)
		if err != nil {
			t.Fatal("put object:", err)
		}
		return ref
	}
	read := func(t *testing.T, ref jobs.ObjectRef) []byte {
		t.Helper()
		r, err := c.GetObject(ctx, ref)
		if err != nil {
			t.Fatal("get object:", err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		no("read object", err)
		return b
	}
	methods := map[string]func(t *testing.T){
		// A job that is followed from its beginning, joined late, and resumed after a position; with input while it runs.
		"Submit Stdin Follow Replay Wait Get List": func(t *testing.T) {
			s := shell("echo begin; cat; echo end")
			s.StdinStream = true
			job := submit(t, c, s)
			untilOutput(t, c, job)
			in := c.Stdin(ctx, job)
			_, err := in.Write([]byte("input\n"))
			no("write stdin", err)
			no("close stdin", in.Close())
			const all = "begin\ninput\nend\n"
			if out, _ := followed(t, c, job, client.Position{}); out != all {
				t.Errorf("live: %q", out)
			}
			wantSuccess(t, wait(t, c, job))
			out, last := followed(t, c, job, client.Position{})
			if out != all {
				t.Errorf("joined late: %q", out)
			}
			var first jobs.Event
			for e, err := range c.Follow(ctx, job, client.Position{}) {
				no("follow", err)
				if first = e; e.Text != "" {
					break
				}
			}
			if out, _ := followed(t, c, job, client.Position{Attempt: first.Attempt, Seq: first.Seq}); out != strings.TrimPrefix(all, first.Text) {
				t.Errorf("resumed after %q: %q", first.Text, out)
			}
			if out, again := followed(t, c, job, client.Position{Attempt: last.Attempt, Seq: last.Seq}); out != "" || again.Result == nil {
				t.Errorf("after the end: %q, %+v", out, again)
			}
			been, err := c.Replay(ctx, jobs.ReplayRequest{Job: job, Limit: 1})
			no("replay", err)
			if len(been.Events) != 1 || !been.More {
				t.Errorf("been: %+v", been)
			}
			j, err := c.Get(ctx, job)
			no("get", err)
			l, err := c.List(ctx, jobs.ListRequest{})
			no("list", err)
			if j.ID != job || j.Tenant != "acme" || len(l.Jobs) == 0 {
				t.Errorf("%+v, %d listed", j, len(l.Jobs))
			}
		},
		"Cancel": func(t *testing.T) {
			job := submit(t, c, shell("echo on; sleep 600"))
			untilOutput(t, c, job)
			_, err := c.Cancel(ctx, job)
			no("cancel", err)
			if r := wait(t, c, job); r.Ending != jobs.Canceled {
				t.Errorf("ended %s", r.Ending)
			}
		},
		// Nobody does these for a machine that is a process; that is an answer too.
		"Resize Snapshot": func(t *testing.T) {
			job := submit(t, c, shell("echo on; sleep 600"))
			untilOutput(t, c, job)
			_, err := c.Resize(ctx, job, jobs.ResizeRequest{VCPUs: 1})
			refused(t, "resize", err, jobs.CodeUnavailable, jobs.CodeUnsupported, jobs.CodeInvalid)
			_, err = c.Snapshot(ctx, job, jobs.SnapshotRequest{})
			refused(t, "snapshot", err, jobs.CodeUnavailable, jobs.CodeUnsupported)
			_, err = c.Cancel(ctx, job)
			no("cancel", err)
		},
		// An object goes in, into a job and out of it, and out.
		"PutObject GetObject": func(t *testing.T) {
			content := bytes.Repeat([]byte("object "), 300_000)
			ref := object(t, content)
			if got := read(t, ref); !bytes.Equal(got, content) {
				t.Errorf("%d bytes are back of %d", len(got), len(content))
			}
			s := shell("cat in in > out")
			s.Files = []jobs.File{{Path: "in", Object: &ref}}
			s.Artifacts = []jobs.Artifact{{Path: "out"}}
			r := runJob(t, c, s)
			wantSuccess(t, r)
			if len(r.Artifacts) != 1 || r.Artifacts[0].Object == nil {
				t.Fatalf("artifacts %+v", r.Artifacts)
			}
			if got := read(t, *r.Artifacts[0].Object); !bytes.Equal(got, append(content, content...)) {
				t.Errorf("the artifact has %d bytes", len(got))
			}
		},
		"SubmitBatch Batch Batches CancelBatch": func(t *testing.T) {
			r, err := c.SubmitBatch(ctx, &jobs.BatchRequest{Defaults: []byte(`{"image": "base"}`), Jobs: []json.RawMessage{
				[]byte(`{"steps": [{"shell": "true"}]}`), []byte(`{"steps": [{"shell": "sleep 600"}]}`),
			}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Batch(ctx, r.Batch.ID)
			no("batch", err)
			l, err := c.Batches(ctx, jobs.BatchQuery{})
			if err != nil || len(l.Batches) != 1 {
				t.Errorf("batches %+v, %v", l, err)
			}
			_, err = c.CancelBatch(ctx, r.Batch.ID)
			no("cancel batch", err)
			wait(t, c, r.Items[1].ID)
		},
		"PutSchedule Schedules DeleteSchedule": func(t *testing.T) {
			_, err := c.PutSchedule(ctx, jobs.Schedule{Name: "s", Cron: "@daily", Spec: new(shell("true"))})
			no("put schedule", err)
			l, err := c.Schedules(ctx)
			if err != nil || len(l) != 1 {
				t.Errorf("schedules %+v, %v", l, err)
			}
			no("delete schedule", c.DeleteSchedule(ctx, "s"))
		},
		"Redrive DropDead": func(t *testing.T) {
			job := submit(t, c, shell("true"))
			wait(t, c, job)
			_, err := c.Redrive(ctx, job)
			refused(t, "redrive what is not dead", err, jobs.CodeConflict)
			_, err = c.DropDead(ctx, job)
			refused(t, "drop what is not dead", err, jobs.CodeConflict)
		},
		// Where they are is told in the job's events, which are its own.
		"Ports": func(t *testing.T) {
			s := shell("echo on; sleep 600")
			s.Network.Ports = []int{80}
			job := submit(t, c, s)
			untilOutput(t, c, job)
			p, err := c.Ports(ctx, job)
			if err != nil || len(p) != 1 || p[0].Guest != 80 || p[0].URL == "" {
				t.Errorf("ports %+v, %v", p, err)
			}
			_, err = c.Cancel(ctx, job)
			no("cancel", err)
		},
		"Webhook": func(t *testing.T) {
			_, err := c.Webhook(ctx, jobs.WebhookList, nil)
			no("webhooks", err)
		},
	}
	fleet := strings.Fields("Workers Cordon Uncordon Drain RemoveWorker") // an operator's
	tried := append([]string{"Close"}, fleet...)
	for names, try := range methods {
		tried = append(tried, strings.Fields(names)...)
		t.Run(names, try)
	}
	for i := range reflect.TypeFor[*client.Client]().NumMethod() {
		if name := reflect.TypeFor[*client.Client]().Method(i).Name; !slices.Contains(tried, name) {
			t.Errorf("nobody has tried whether a tenant may %s", name)
		}
	}
	within, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := c.Workers(within); err == nil {
		t.Error("a tenant is told of workers")
	}
	if _, err := c.Cordon(within, "w1"); err == nil {
		t.Error("a tenant cordons a worker")
	}
	wantSuccess(t, runJob(t, c, shell("true")))
}

// tenantsOthers tries what is another's: by its own subjects, which the dispatcher answers, and by theirs, which the server refuses.
func tenantsOthers(t *testing.T, g *guarded, acme, other *client.Client) {
	ctx := t.Context()
	s := shell("echo secret; cat; cat in > out")
	s.StdinStream = true
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("secret"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ref, err := other.PutObject(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	s.Files, s.Artifacts = []jobs.File{{Path: "in", Object: &ref}}, []jobs.Artifact{{Path: "out"}}
	job := submit(t, other, s)
	untilOutput(t, other, job)
	batch, err := other.SubmitBatch(ctx, &jobs.BatchRequest{Defaults: []byte(`{"image": "base"}`), Jobs: []json.RawMessage{[]byte(`{"steps": [{"shell": "true"}]}`)}})
	if err != nil {
		t.Fatal(err)
	}

	_, err = acme.Get(ctx, job)
	refused(t, "get", err, jobs.CodeNotFound)
	_, err = acme.Wait(ctx, job)
	refused(t, "wait", err, jobs.CodeNotFound)
	_, err = acme.Cancel(ctx, job)
	refused(t, "cancel", err, jobs.CodeNotFound)
	for e, err := range acme.Follow(ctx, job, client.Position{}) {
		if refused(t, "follow", err, jobs.CodeNotFound); err == nil {
			t.Fatalf("an event: %+v", e)
		}
	}
	_, err = acme.Replay(ctx, jobs.ReplayRequest{Job: job})
	refused(t, "replay", err, jobs.CodeNotFound)
	_, err = acme.Stdin(ctx, job).Write([]byte("x"))
	refused(t, "stdin", err, jobs.CodeUnavailable)
	_, err = acme.Redrive(ctx, job)
	refused(t, "redrive", err, jobs.CodeNotFound)
	_, err = acme.DropDead(ctx, job)
	refused(t, "drop", err, jobs.CodeNotFound)
	_, err = acme.Batch(ctx, batch.Batch.ID)
	refused(t, "batch", err, jobs.CodeNotFound)
	_, err = acme.CancelBatch(ctx, batch.Batch.ID)
	refused(t, "cancel batch", err, jobs.CodeNotFound)
	_, err = acme.GetObject(ctx, ref)
	refused(t, "get object", err, jobs.CodeNotFound)
	l, err := acme.List(ctx, jobs.ListRequest{})
	if err != nil || slices.ContainsFunc(l.Jobs, func(j jobs.Job) bool { return j.Tenant != "acme" || j.ID == job }) {
		t.Errorf("list: %+v, %v", l, err)
	}
	mine := shell("cat in")
	mine.Files = []jobs.File{{Path: "in", Object: &ref}}
	if r := wait(t, acme, submit(t, acme, mine)); r.Success() {
		t.Error("a job has read another tenant's object")
	}

	directly(t, g, job, ref)

	in := other.Stdin(ctx, job)
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	wantSuccess(t, wait(t, other, job))
	if out, _ := followed(t, other, job, client.Position{}); out != "secret\n" {
		t.Errorf("the job has printed %q", out)
	}
}

// directly goes past the client, and past Paddock: to NATS.
func directly(t *testing.T, g *guarded, job string, ref jobs.ObjectRef) {
	t.Helper()
	bucket := "paddock-objects-other"
	events := jobs.EventSubject("other", job)
	for _, subject := range []string{
		events, jobs.EventSubject("other", "*"), jobs.EventSubject("*", "*"), "paddock.v1.job.other.>", "paddock.v1.batch.other.>", "paddock.v1.dlq.other", "paddock.>", ">",
		"_INBOX_other.>", "_INBOX.>", "_INBOX-worker.w1.>", "$JS.>", "$O.>",
	} {
		nc := g.plain(t)
		if allowed(t, nc, func() error { _, err := nc.SubscribeSync(subject); return err }) {
			t.Errorf("subscribed to %s", subject)
		}
		nc.Close()
	}
	ask := func(subject, body string) {
		t.Helper()
		nc := g.plain(t)
		defer nc.Close()
		sub, err := nc.SubscribeSync("_INBOX_acme.answer")
		if err != nil {
			t.Fatal(err)
		}
		if allowed(t, nc, func() error {
			return nc.PublishMsg(&nats.Msg{Subject: subject, Reply: "_INBOX_acme.answer", Data: []byte(body)})
		}) {
			t.Errorf("published on %s", subject)
		}
		if m, err := sub.NextMsg(10 * time.Millisecond); err == nil {
			t.Errorf("%s is answered: %.200q", subject, m.Data)
		}
	}
	ask(jobs.GetSubject("other"), `{"id": "`+job+`"}`)
	ask(jobs.ReplaySubject("other"), `{"job": "`+job+`"}`)
	ask(jobs.CancelSubject("other", job), ``)
	ask(jobs.StdinSubject("other", job), `{"eof": true}`)
	ask(jobs.ObjectSubject("other", "get"), `{"sha256": "`+ref.SHA256+`"}`)
	ask(jobs.SubmitSubject("other"), `{"language": "sh", "source": "true"}`)
	ask(jobs.EnqueueSubject("other"), `{"language": "sh", "source": "true"}`)
	ask(events, `{}`)
	consumer := `{"stream_name": "EVENTS", "config": {"deliver_subject": "_INBOX_acme.answer", "ack_policy": "none", "filter_subject": "` + events + `"}}`
	ask("$JS.API.STREAM.MSG.GET.EVENTS", `{"last_by_subj": "`+events+`"}`)
	ask("$JS.API.DIRECT.GET.EVENTS", `{"last_by_subj": "`+events+`"}`)
	ask("$JS.API.DIRECT.GET.EVENTS."+events, ``)
	ask("$JS.API.CONSUMER.CREATE.EVENTS", consumer)
	ask("$JS.API.CONSUMER.CREATE.EVENTS.mine."+events, consumer)
	ask("$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.mine", consumer)
	ask("$JS.API.CONSUMER.MSG.NEXT.EVENTS.mine", `{"batch": 10}`)
	ask("$JS.API.STREAM.CREATE.MINE", `{"name": "MINE", "sources": [{"name": "EVENTS"}]}`)
	ask("$JS.API.STREAM.SNAPSHOT.EVENTS", `{"deliver_subject": "_INBOX_acme.answer"}`)
	ask("$JS.API.STREAM.MSG.GET.OBJ_"+bucket, `{"seq": 1}`)
	ask("$JS.API.DIRECT.GET.OBJ_"+bucket, `{"seq": 1}`)

	// The same by the library, as its user would.
	js, err := jetstream.New(g.plain(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := js.OrderedConsumer(ctx, jobs.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{events}}); err == nil {
		t.Error("made a consumer")
	}
	if _, err := js.ObjectStore(ctx, bucket); err == nil {
		t.Error("opened the object store")
	}
}

// allowed tells whether the server lets a connection do something: it says what it denies before it answers a ping.
func allowed(t *testing.T, nc *nats.Conn, do func() error) bool {
	t.Helper()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(natsAnswers); err != nil {
		t.Fatal(err)
	}
	return !errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}
