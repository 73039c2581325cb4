package hostile_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/hostile"
)

// FuzzRequests has a whole dispatcher on a real ledger asked whatever tenants, workers and operators can ask, by way of NATS. Whatever that is: it
// lives, every answer is one of the contract, what it took it has, as it was sent, and so has its successor.
func FuzzRequests(f *testing.F) {
	s := newSite(f)
	for i, a := range all { // each as it should be, after what it may be about
		for n := range a.examples {
			f.Add([]byte{1, 0, 1, 0, 0, byte(i), byte(n), 0, 0, work, byte(i), byte(n)})
		}
	}
	addRandom(f, 24, 400)
	f.Fuzz(func(t *testing.T, decisions []byte) {
		r := s.run(t, decisions)
		r.begin()
		r.beat()
		for n := 0; r.More() && n < 16; n++ {
			r.one()
		}
		r.judged()
		r.works()
		r.restart()
		r.works()
		for id := range r.taken {
			r.there(id)
		}
	})
}

// more has each test try random decisions besides the few that it always tries: what breaks something is mostly near what is good, and a fuzzer
// that knows only bytes takes long to come back there.
var more = flag.Int("more", 0, "try so many random decisions besides")

// addRandom adds random decisions, the same each time.
func addRandom(f *testing.F, n, size int) {
	random := rand.New(rand.NewPCG(1, 2))
	for n := range n + *more {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if n%2 == 0 { // good specs first, that there is something to ask about
			copy(b, []byte{0, byte(n), 0, 0, 0, 0, 0, 0, byte(n >> 3), 0, 0, 0, 0, 0, 0, byte(n >> 5)})
		}
		f.Add(b)
	}
}

// again and work are from which decision on something is done in place of a request: the dispatcher is started anew, the good worker works.
const again, work = 196, 200

// one does one thing.
func (r *run) one() {
	r.Helper()
	op := r.N(256)
	switch {
	case op >= work:
		r.works()
		return
	case op >= again:
		r.restart()
		return
	}
	a := all[op%len(all)]
	example := a.examples[r.N(len(a.examples))]
	body := r.Document(example)
	subject := strings.NewReplacer(".T", "."+r.tenant, ".I", ".019a2b3c-4d5e-7f60-8123-456789abcde0").Replace("paddock.v1." + a.subject)
	if strings.HasSuffix(subject, ".O") {
		subject = strings.TrimSuffix(subject, "O") + []string{jobs.WebhookGet, jobs.WebhookTest, jobs.WebhookDelivery, jobs.WebhookDisable, jobs.WebhookEnable, jobs.WebhookRemove}[r.N(6)]
	}
	reply := a.reply
	if r.N(16) == 15 { // perhaps on a subject that is none, where errors stand alone
		reply = ""
		at := strings.LastIndexByte(subject, '.')
		if strings.HasSuffix(subject, ".cancel") {
			subject = "paddock.v1.job." + r.tenant + "." + tokens[r.N(len(tokens))] + ".cancel"
		} else {
			subject = subject[:at+1] + tokens[r.N(len(tokens))]
		}
	}
	var header nats.Header
	switch a.subject {
	case "object.T.put":
		header, body = nats.Header{jobs.ObjectHeader: {strings.NewReplacer("\n", " ", "\r", " ").Replace(r.fresh.Replace(body))}}, string(r.Rest(7))
	case "enqueue.T":
		r.enqueue(subject, body)
		return
	}
	if n := len(r.learned); n > 0 && r.N(3) == 2 {
		body = strings.ReplaceAll(body, hostile.IDs[0], r.learned[r.N(n)])
	}
	answer, ok := r.ask(subject, header, body)
	if !ok {
		return
	}
	for _, m := range ids.FindAllSubmatch(answer, 8) {
		r.learned = append(r.learned, string(m[1]))
	}
	if r.N(8) == 7 { // the same again, which may not be the same any more
		again, _ := r.ask(subject, header, body)
		r.typed(reply, again)
	}
	if r.typed(reply, answer) != "" || reply == "" {
		return
	}
	switch a.subject {
	case "submit.T":
		r.took(body, answer)
	case "batch.T.submit":
		r.tookBatch(body, answer)
	}
}

var ids = regexp.MustCompile(`"id":"([0-9a-f-]{36})"`)

// enqueue publishes a spec that nobody waits for.
func (r *run) enqueue(subject, body string) {
	m := &nats.Msg{Subject: subject, Data: []byte(r.fresh.Replace(body))}
	if r.N(4) == 3 {
		m.Header = nats.Header{nats.MsgIdHdr: {[]string{"k", strings.Repeat("k", 300), "\xff", "schedule/nightly/1", "\x01", "k\x00"}[r.N(6)]}}
	}
	r.said = append(r.said, fmt.Sprintf("%s %v %.3000s", subject, m.Header, m.Data))
	_ = r.nc.PublishMsg(m) // it may not be one
	_ = r.nc.Flush()
}

// judged waits until every enqueued spec has become a job or lies among the dead letters.
func (r *run) judged() {
	r.Helper()
	stream, err := bustest.JetStream(r, r.nc).Stream(r.Context(), jobs.StreamSubmit)
	if err != nil {
		r.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		info, err := stream.Info(r.Context(), jetstream.WithSubjectFilter(jobs.EnqueueSubjects))
		if err == nil && info.State.Msgs == 0 {
			return
		}
		if time.Now().After(end) {
			r.fail("enqueued specs are neither taken nor refused: %v, %v", info, err)
		}
	}
}

// took looks whether what was accepted is there, and is what was sent.
func (r *run) took(body string, answer []byte) {
	r.Helper()
	var reply jobs.SubmitReply
	if err := json.Unmarshal(answer, &reply); err != nil || reply.Job == nil {
		r.fail("neither a job nor an error: %v", err)
	}
	r.same(reply.Job, r.fresh.Replace(body), reply.Duplicate, len(reply.Warnings) > 0)
}

// same holds a job's record against what was accepted and what was sent. What had been accepted before may have been so by another name.
func (r *run) same(accepted *jobs.Job, body string, before, warned bool) {
	r.Helper()
	got, err := r.life.Get(r.Context(), r.tenant, accepted.ID)
	if err != nil {
		r.fail("get what was accepted: %v", err)
	}
	r.taken[got.ID] = true
	spec := *got.Spec
	if accepted.Tenant != "" { // whole, but for what is told only where one job is asked for
		now := got
		now.Attempts = nil
		if now.Spec, now.State, now.EndedAt, now.Result = nil, accepted.State, accepted.EndedAt, accepted.Result; !equal(now, *accepted) {
			r.fail("accepted as\n%+v, and then\n%+v", *accepted, now)
		}
	}
	if err := spec.Validate(); err != nil {
		r.fail("accepted, and not valid: %v", err)
	}
	var sent, kept any
	data, err := json.Marshal(spec)
	if err = errors.Join(err, json.Unmarshal([]byte(body), &sent), json.Unmarshal(data, &kept)); err != nil {
		r.fail("accepted, and not JSON: %v", err)
	}
	if s, ok := sent.(map[string]any); ok && before {
		k := kept.(map[string]any)
		for _, name := range []string{"id", "idempotency_key", "version"} {
			delete(s, name)
			delete(k, name)
		}
	}
	if what := changed("", sent, kept, warned); what != "" {
		r.fail("accepted, and changed: %s\n%s", what, data)
	}
}

func equal(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

// changed tells what of a document is otherwise than it was sent. What says nothing may be left out, and what is unknown where that was said.
func changed(at string, sent, kept any, warned bool) string {
	if nothing(sent) && nothing(kept) {
		return ""
	}
	switch s := sent.(type) {
	case map[string]any:
		k, ok := kept.(map[string]any)
		if !ok && kept != nil {
			return fmt.Sprintf("%s is %v", at, kept)
		}
		for name := range k {
			if what := changed(at+"."+name, s[name], k[name], warned); what != "" {
				return what
			}
		}
		for name, v := range s {
			if _, there := k[name]; !there && !nothing(v) && !warned {
				return at + "." + name + " is gone"
			}
		}
		return ""
	case []any:
		k, ok := kept.([]any)
		if !ok || len(k) != len(s) {
			return fmt.Sprintf("%s has become %v", at, kept)
		}
		for i := range s {
			if what := changed(fmt.Sprintf("%s[%d]", at, i), s[i], k[i], warned); what != "" {
				return what
			}
		}
		return ""
	case string:
		k, _ := kept.(string)
		a, errA := time.Parse(time.RFC3339, s)
		b, errB := time.Parse(time.RFC3339, k)
		if s == k || errA == nil && errB == nil && a.Truncate(time.Microsecond).Equal(b) {
			return ""
		}
	}
	if reflect.DeepEqual(sent, kept) {
		return ""
	}
	return fmt.Sprintf("%s was %v and is %v", at, sent, kept)
}

// nothing is what a field that is not there means too.
func nothing(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == "" || v == "0001-01-01T00:00:00Z"
	case bool:
		return !v
	case float64:
		return v == 0
	case []any:
		return !slices.ContainsFunc(v, func(x any) bool { return !nothing(x) })
	case map[string]any:
		for _, x := range v {
			if !nothing(x) {
				return false
			}
		}
		return true
	}
	return false
}

// tookBatch looks at the jobs of a batch that were accepted.
func (r *run) tookBatch(body string, answer []byte) {
	r.Helper()
	var reply jobs.BatchReply
	var sent struct {
		Jobs     []map[string]any `json:"jobs"`
		Defaults map[string]any   `json:"defaults"`
	}
	if err := json.Unmarshal(answer, &reply); err != nil || reply.Batch == nil {
		r.fail("neither a batch nor an error: %v", err)
	}
	// What is not an object is nobody's job.
	var loose struct {
		Jobs     []json.RawMessage `json:"jobs"`
		Defaults map[string]any    `json:"defaults"`
	}
	if err := json.Unmarshal([]byte(r.fresh.Replace(body)), &loose); err != nil {
		r.fail("accepted, and not JSON: %v", err)
	}
	if len(loose.Jobs) != len(reply.Items) {
		r.fail("%d jobs, and %d outcomes", len(loose.Jobs), len(reply.Items))
	}
	sent.Defaults = loose.Defaults
	for i, item := range reply.Items {
		if item.Error != nil {
			continue
		}
		own := map[string]any{}
		if err := json.Unmarshal(loose.Jobs[i], &own); err != nil {
			r.fail("accepted, and no object: %v", err)
		}
		for k, v := range sent.Defaults {
			if _, has := own[k]; !has {
				own[k] = v
			}
		}
		whole, err := json.Marshal(own)
		if err != nil {
			r.fail("%v", err)
		}
		r.same(&jobs.Job{ID: item.ID}, string(whole), item.Duplicate, len(reply.Warnings) > 0)
	}
	b, err := r.life.Batch(r.Context(), r.tenant, reply.Batch.ID)
	if err != nil || b.Total != reply.Batch.Total {
		r.fail("the batch is %+v, %v", b, err)
	}
}

// beat has a good worker say that it is there, and what it runs.
func (r *run) beat(running ...jobs.Lease) {
	big := jobs.Resources{VCPUs: 1024, MemoryMiB: 4 << 20}
	b := jobs.Beat{
		Worker: "w1", Session: r.session, Instance: "good", Capacity: big, Networks: []string{jobs.NetworkInternet, jobs.NetworkAllowlist, jobs.NetworkIPv6, jobs.NetworkPorts},
		Labels: map[string]string{"arch": "amd64"}, Contract: jobs.Contract,
	}
	for _, name := range []string{"base", "python"} {
		b.Images = append(b.Images, jobs.OfferedImage{Name: name, Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}})
	}
	for _, l := range running {
		l.Running = true
		b.Running = append(b.Running, l.Held)
	}
	reply, err := r.worker.Beat(r.Context(), b)
	if err == nil && reply.Error == nil {
		r.session = reply.Session
	}
}

// works has the good worker, of whom hostile ones may have taken the name, do what it is given: it reports something like a result.
func (r *run) works() {
	r.Helper()
	for range 3 {
		r.beat()
		reply, err := r.worker.Lease(r.Context(), jobs.LeaseRequest{Worker: "w1", Session: r.session, Slots: 64, Free: jobs.Resources{VCPUs: 1024, MemoryMiB: 4 << 20}})
		if err != nil || reply.Error != nil || len(reply.Leases) == 0 {
			return
		}
		r.beat(reply.Leases...)
		for _, l := range reply.Leases {
			r.finish(l)
		}
	}
}

// finish reports an attempt.
func (r *run) finish(l jobs.Lease) {
	r.Helper()
	got, err := r.life.Get(r.Context(), l.Tenant, l.Job)
	if err != nil || !equal(got.Spec, &l.Spec) {
		r.fail("leased %+v, and its record is %+v, %v", l, got.Spec, err)
	}
	ending := []string{"exited", "vm_failed", "time_limit", "canceled", "nonsense"}[r.N(5)]
	result := r.Document(strings.Replace(aResult, `"exited"`, `"`+ending+`"`, 1))
	events := []string{"0", "0", "0", "5", "-1", "9223372036854775807", "-9223372036854775808"}[r.N(7)]
	answer, ok := r.ask("paddock.v1.fleet.report", nil, fmt.Sprintf(`{"worker":"w1","session":%d,"job":%q,"attempt":%d,"epoch":%d,"events":%s,"result":%s}`, r.session, l.Job, l.Attempt, l.Epoch, events, result))
	if ok && r.typed("", answer) == "" {
		r.there(l.Job)
	}
}

// there asks for a job as its tenant does.
func (r *run) there(id string) {
	r.Helper()
	answer, _ := r.ask("paddock.v1.get."+r.tenant, nil, `{"id":"`+id+`"}`)
	r.typed("requests#/$defs/GetReply", answer)
	answer, _ = r.ask("paddock.v1.replay."+r.tenant, nil, `{"job":"`+id+`"}`)
	r.typed("requests#/$defs/ReplayReply", answer)
}

// restart ends the dispatcher and holds what its successor has against what it had.
func (r *run) restart() {
	r.Helper()
	r.life.end()
	before := r.everything(r.life.Dispatcher)
	if err := r.life.close(); err != nil {
		r.fail("close: %v", err)
	}
	store, err := sqlite.Open(r.Context(), r.file)
	if err != nil {
		r.fail("open again: %v", err)
	}
	d, err := dispatcher.New(dispatcher.Config{Store: store, Events: r.bus})
	if err != nil {
		r.Fatal(err)
	}
	after := r.everything(d)
	if err := store.Close(); err != nil {
		r.fail("close: %v", err)
	}
	if !slices.Equal(before, after) {
		r.fail("before the restart\n%s\nafter it\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	r.begin()
	r.session = 0
	r.beat()
}

// everything is what a dispatcher tells of the tenant's.
func (r *run) everything(d *dispatcher.Dispatcher) (l []string) {
	r.Helper()
	add := func(v any, err error) {
		b, jsonErr := json.Marshal(v)
		if err != nil || jsonErr != nil {
			r.fail("%T: %v, %v", v, err, jsonErr)
		}
		l = append(l, string(b))
	}
	ctx := context.Background()
	listed := map[string]bool{}
	for q := (jobs.ListRequest{Limit: 1000}); ; {
		reply, err := d.List(ctx, r.tenant, q)
		add(reply, err)
		for _, j := range reply.Jobs {
			listed[j.ID] = true
			one, err := d.Get(ctx, r.tenant, j.ID)
			add(one, err)
		}
		if q.Before = reply.Next; q.Before == "" {
			break
		}
	}
	for id := range r.taken {
		if !listed[id] {
			r.fail("the job %s was accepted, and is not there", id)
		}
	}
	b, err := d.Batches(ctx, r.tenant, jobs.BatchQuery{Limit: 1000})
	add(b, err)
	return l
}
