package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// request asks as any client does and gives the answer as it came.
func request(t *testing.T, nc *nats.Conn, subject, body string) map[string]any {
	t.Helper()
	m, err := nc.Request(subject, []byte(body), time.Minute)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	var v map[string]any
	if err := json.Unmarshal(m.Data, &v); err != nil {
		t.Fatalf("%s: %v in %.200q", subject, err, m.Data)
	}
	return v
}

func codeIn(v map[string]any) string {
	e, _ := v["error"].(map[string]any)
	code, _ := e["code"].(string)
	return code
}

const hello = `{"language": "python", "source": "print(1)"}`

func TestRequests(t *testing.T) {
	s := bustest.Start(t)
	brain := &bustest.Brain{}
	bustest.Serve(t, s.Connect(), brain)
	nc := s.Plain()
	other := brain.Add("other")
	for _, c := range []struct {
		name, subject, body string
		code                string // "" is success
		warning             string
	}{
		{"submit", "submit.default", hello, "", ""},
		{"unknown field", "submit.default", `{"language": "python", "source": "1", "sorce": 2}`, "", "source"},
		{"empty", "submit.default", "", "invalid", ""},
		{"no JSON", "submit.default", "\x00\x01", "invalid", ""},
		{"no object", "submit.default", `[]`, "invalid", ""},
		{"invalid UTF-8", "submit.default", "{\"language\": \"python\", \"source\": \"\xff\"}", "invalid", ""},
		{"1 MB", "submit.default", `{"language": "python", "source": "` + strings.Repeat("x", 1<<20) + `"}`, "too_large", ""},
		{"all that NATS takes", "submit.default", strings.Repeat("x", 2<<20), "too_large", ""},
		{"no tenant", "submit.a=b", hello, "invalid", ""},
		{"get nothing", "get.default", "", "not_found", ""},
		{"get garbage", "get.default", "{", "invalid", ""},
		{"get a number", "get.default", `{"id": 7}`, "invalid", ""},
		{"get another's", "get.default", fmt.Sprintf(`{"id": %q}`, other), "not_found", ""},
		{"get one's own", "get.other", fmt.Sprintf(`{"id": %q}`, other), "", ""},
		{"list", "list.default", "", "", ""},
		{"get a list", "get.default", `["x"]`, "invalid", ""},
		{"get with a misspelt field", "get.default", `{"Id": "x"}`, "not_found", "Id"},
		{"list states there are not", "list.default", `{"states": ["done"]}`, "invalid", ""},
		{"list before nothing", "list.default", `{"before": "x"}`, "invalid", ""},
		{"list wrong types", "list.default", `{"states": {}, "limit": "x"}`, "invalid", ""},
		{"list with a misspelt field", "list.default", `{"state": ["queued"]}`, "", "did you mean states?"},
		{"list garbage", "list.default", "\xff", "invalid", ""},
		{"cancel another's", "job.default." + other + ".cancel", "", "not_found", ""},
		{"cancel nothing", "job.default.x.cancel", "", "not_found", ""},
		{"cancel", "job.other." + other + ".cancel", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := request(t, nc, "paddock.v1."+c.subject, c.body)
			if codeIn(v) != c.code {
				t.Errorf("got %v, want the code %q", v, c.code)
			}
			if got := fmt.Sprint(v["warnings"]); c.warning != "" && !strings.Contains(got, c.warning) {
				t.Errorf("got the warnings %s, want one that names %q", got, c.warning)
			}
			if c.code != "" && (v["jobs"] != nil || strings.Contains(fmt.Sprint(v), "json:")) {
				t.Errorf("a failure has jobs, or words of Go's: %v", v)
			}
		})
	}
	for _, subject := range []string{"paddock.v1.submit", "paddock.v1.submit.a.b", "paddock.v2.submit.default", "paddock.v1.job.default." + other + ".pause"} {
		if _, err := nc.Request(subject, []byte(hello), time.Minute); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("%s: got %v, want no responders", subject, err)
		}
	}
}

// A client reads what it sent, and the same key gives the same job.
func TestSubmitGetListCancel(t *testing.T) {
	s := bustest.Start(t)
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	nc := s.Plain()
	spec := `{"language": "python", "source": "print('<&>')", "idempotency_key": "k"}`
	job := request(t, nc, "paddock.v1.submit.default", spec)["job"].(map[string]any)
	if job["spec"] != nil {
		t.Error("the client has the spec, and gets it back")
	}
	again := request(t, nc, "paddock.v1.submit.default", spec)
	if again["duplicate"] != true || again["job"].(map[string]any)["id"] != job["id"] {
		t.Errorf("again: got %v", again)
	}
	if v := request(t, nc, "paddock.v1.submit.default", strings.Replace(spec, "print", "exit", 1)); codeIn(v) != "conflict" {
		t.Errorf("another body: got %v", v)
	}
	got := request(t, nc, "paddock.v1.get.default", fmt.Sprintf(`{"id": %q}`, job["id"]))["job"].(map[string]any)
	if source := got["spec"].(map[string]any)["source"]; source != "print('<&>')" {
		t.Errorf("the source came back as %q", source)
	}
	if v := request(t, nc, fmt.Sprintf("paddock.v1.job.default.%s.cancel", job["id"]), ""); v["state"] != "queued" {
		t.Errorf("cancel: got %v", v)
	}
	if v := request(t, nc, "paddock.v1.list.default", `{"states": ["ended"]}`); len(v["jobs"].([]any)) != 1 {
		t.Errorf("list: got %v", v)
	}
}

// A page that no message can carry becomes a shorter one, and the pages together are all.
func TestListLarge(t *testing.T) {
	s := bustest.Start(t)
	brain := &bustest.Brain{}
	bustest.Serve(t, s.Connect(), brain)
	nc := s.Plain()
	for range 9 {
		brain.End(brain.Add("default"), jobs.Result{Ending: jobs.Exited, Reason: strings.Repeat("<", 600<<10)}, time.Now())
	}
	seen, pages := map[string]bool{}, 0
	for before := ""; pages == 0 || before != ""; pages++ {
		v := request(t, nc, "paddock.v1.list.default", fmt.Sprintf(`{"limit": 100, "before": %q}`, before))
		for _, j := range v["jobs"].([]any) {
			seen[j.(map[string]any)["id"].(string)] = true
		}
		before, _ = v["next"].(string)
	}
	if len(seen) != 9 || pages < 3 {
		t.Errorf("%d jobs on %d pages", len(seen), pages)
	}
	brain.End(brain.Jobs()[0].ID, jobs.Result{Reason: strings.Repeat("x", 3<<20)}, time.Now())
	if v := request(t, nc, "paddock.v1.get.default", fmt.Sprintf(`{"id": %q}`, brain.Jobs()[0].ID)); codeIn(v) != "too_large" {
		t.Errorf("a record of 3 MB: got %.100q, want too_large", fmt.Sprint(v))
	}
}

// Our own fault is told as such, without its text; one that passes says when to try again.
func TestBrainFails(t *testing.T) {
	s := bustest.Start(t)
	brain := &bustest.Brain{}
	var fail error
	brain.Before = func(context.Context, string) error { return fail }
	bustest.Serve(t, s.Connect(), brain)
	nc := s.Plain()
	fail = fmt.Errorf("open /secret: no")
	for _, subject := range []string{"submit.default", "get.default", "list.default", "job.default." + jobs.NewID() + ".cancel"} {
		v := request(t, nc, "paddock.v1."+subject, hello)
		if codeIn(v) != "internal" || strings.Contains(fmt.Sprint(v), "secret") {
			t.Errorf("%s: got %v, want internal and no more", subject, v)
		}
	}
	fail = &jobs.Error{Code: jobs.CodeQueueFull, Message: "full", RetryAfterMS: 1000}
	v := request(t, nc, "paddock.v1.submit.default", hello)
	want := map[string]any{"error": map[string]any{"code": "queue_full", "message": "full", "retry_after_ms": 1000.0}}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
}

// Who begins to serve while the server is away serves when it is back.
func TestServeBeforeTheServer(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- b.ServeDispatcher(ctx, &bustest.Brain{}, func() { close(ready) }) }()
	select {
	case err := <-ended:
		t.Fatalf("it ended without the server: %v", err)
	case <-ready:
		t.Fatal("it serves without the server")
	case <-time.After(time.Second):
	}
	s.Restart()
	<-ready
	if v := request(t, s.Plain(), "paddock.v1.submit.default", hello); codeIn(v) != "" {
		t.Errorf("got %v", v)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What was taken before the end is answered, by a brain that still works.
func TestServeEnds(t *testing.T) {
	s := bustest.Start(t)
	taken, go_ := make(chan struct{}, 10), make(chan struct{})
	brain := &bustest.Brain{Before: func(ctx context.Context, op string) error {
		taken <- struct{}{}
		<-go_
		return ctx.Err()
	}}
	leasing := make(chan struct{})
	brain.OnLease = func(ctx context.Context, _ jobs.LeaseRequest) (jobs.LeaseReply, error) {
		close(leasing)
		<-ctx.Done() // a long poll
		return jobs.LeaseReply{}, nil
	}
	b, worker := s.Connect(), s.Connect()
	stop := bustest.Serve(t, b, brain)
	nc := s.Plain()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if v := request(t, nc, "paddock.v1.submit.default", hello); codeIn(v) != "" {
				t.Errorf("got %v", v)
			}
		})
	}
	wg.Go(func() {
		if r, err := worker.Lease(t.Context(), jobs.LeaseRequest{Worker: "w", WaitMS: 60_000}); err != nil || len(r.Leases) > 0 {
			t.Errorf("a poll that stood: got %v, %v", r, err)
		}
	})
	for range 3 {
		<-taken
	}
	<-leasing
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	bustest.Eventually(t, "no more are taken", func() bool {
		_, err := nc.Request("paddock.v1.fleet.heartbeat", nil, time.Minute)
		return errors.Is(err, nats.ErrNoResponders)
	})
	close(go_)
	wg.Wait()
	<-stopped
	if len(brain.Jobs()) != 3 {
		t.Errorf("%d jobs were admitted", len(brain.Jobs()))
	}
}
