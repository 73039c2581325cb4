package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// What stands in a stream, to the byte but for the hint of when to come back.
func TestStream(t *testing.T) {
	r := serve(t, api.Config{})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	events := []jobs.Event{
		{Type: jobs.EventState, State: jobs.StateRunning, Worker: "w1", Attempt: 1, Seq: 1},
		output(1, 2, "a line\nand \"<another>\"\r\n\u2028"),
		{Type: jobs.EventOutput, Attempt: 1, Seq: 3, Stream: jobs.Stderr, Truncated: true},
		{Type: jobs.EventLost, Attempt: 2, Seq: 7, Lost: &jobs.Lost{Attempt: 1, Seq: 4}},
		{Type: "odd\ndata: no", Attempt: 2, Seq: 8},
		final(2, 9),
	}
	for i := range events {
		events[i].Job, events[i].Tenant, events[i].Time = job, "default", at
	}
	r.source.add("default", events...)
	a := r.get(path)
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	hint, rest, _ := strings.Cut(string(b), "\n\n")
	if ms, err := strconv.Atoi(strings.TrimPrefix(hint, "retry: ")); err != nil || ms < 1000 || ms > 3000 {
		t.Errorf("it begins with %q", hint)
	}
	const ours = `"job":"` + job + `","tenant":"default",`
	const then = `"time":"2026-01-02T03:04:05Z"`
	want := "id: 1.1\nevent: state\ndata: {\"type\":\"state\"," + ours + `"attempt":1,"seq":1,` + then + `,"state":"running","worker":"w1"}` + "\n\n" +
		"id: 1.2\nevent: output\ndata: {\"type\":\"output\"," + ours + `"attempt":1,"seq":2,` + then + `,"stream":"stdout","text":"a line\nand \"<another>\"\r\n\u2028"}` + "\n\n" +
		"id: 1.3\nevent: output\ndata: {\"type\":\"output\"," + ours + `"attempt":1,"seq":3,` + then + `,"stream":"stderr","truncated":true}` + "\n\n" +
		"id: 2.7\nevent: lost\ndata: {\"type\":\"lost\"," + ours + `"attempt":2,"seq":7,` + then + `,"lost":{"attempt":1,"seq":4}}` + "\n\n" +
		"id: 2.8\ndata: {\"type\":\"odd\\ndata: no\"," + ours + `"attempt":2,"seq":8,` + then + "}\n\n" +
		"id: 2.9\nevent: result\ndata: "
	if len(rest) < len(want) {
		t.Fatalf("got\n%s", rest)
	}
	if d := cmp.Diff(rest[:len(want)], want); d != "" {
		t.Errorf("(-got +want):\n%s", d)
	}
	var last jobs.Event
	if err := json.Unmarshal([]byte(rest[len(want):]), &last); err != nil || !last.Final || last.Result.Ending != jobs.Exited {
		t.Errorf("the last is %s: %v", rest[len(want):], err)
	}
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff",
		"Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "",
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// From whatever event somebody comes back, and however the stream was cut: what follows, once and in order, and after the end nothing.
func TestResume(t *testing.T) {
	r := serve(t, api.Config{})
	var want []string
	for i, n := range []int64{30, 1, 25} {
		for seq := int64(1); seq <= n; seq++ {
			r.source.add("default", output(i+1, seq, strings.Repeat("x", int(seq*7%300))))
			want = append(want, api.EventID(i+1, seq))
		}
	}
	r.source.add("default", final(3, 26))
	want = append(want, "3.26")
	for i, id := range want[:len(want)-1] {
		got := ids(r.get(path, "Last-Event-ID", id).Body)
		if d := cmp.Diff(got, want[i+1:]); d != "" {
			t.Fatalf("after %s (-got +want):\n%s", id, d)
		}
	}
	if a := r.get(path, "Last-Event-ID", "3.26"); a.StatusCode != http.StatusNoContent {
		t.Errorf("after the end: %s", a.Status)
	}
	if a := r.get(path + "?after=3.26"); a.StatusCode != http.StatusNoContent {
		t.Errorf("after the end, by the query: %s", a.Status)
	}
	if got := ids(r.get(path+"?after=1.30", "Last-Event-ID", want[len(want)-3]).Body); len(got) != 2 {
		t.Errorf("the header does not win over the query: %q", got)
	}

	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	var got []string
	for cuts, after := 0, ""; cuts < 1000; cuts++ {
		a := r.get(path, "Last-Event-ID", after)
		if a.StatusCode == http.StatusNoContent {
			if cuts < 10 {
				t.Errorf("%d cuts", cuts)
			}
			break
		}
		for f := range frames(io.LimitReader(a.Body, 600+random.Int64N(1200))) {
			got, after = append(got, f.id), f.id
		}
		a.Body.Close()
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("seed %d (-got +want):\n%s", seed, d)
	}
}

// Who comes before anything has happened is told at once that there is such a job, and the rest when it happens.
func TestEarly(t *testing.T) {
	r := serve(t, api.Config{})
	r.source.add("default")
	a := r.get(path)
	if a.StatusCode != http.StatusOK {
		t.Fatal(a.Status)
	}
	r.source.add("default", output(1, 1, "a"))
	n := 0
	for f := range frames(a.Body) {
		if n++; f.id != fmt.Sprintf("1.%d", n) {
			t.Fatalf("%d: %+v", n, f)
		}
		switch n {
		case 1:
			r.source.add("default", output(1, 2, "b"))
		case 2:
			r.source.add("default", final(1, 3))
		}
	}
	if n != 3 {
		t.Errorf("%d events", n)
	}
}

// While nothing happens, something is written all the same.
func TestKeepAlive(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{})
		r.source.add("default")
		begun := time.Now()
		a := r.get(path)
		go func() {
			time.Sleep(2*api.KeepAlive + api.KeepAlive/2)
			r.source.add("default", output(1, 1, "a"))
			time.Sleep(api.KeepAlive + time.Second) // from the event on
			r.source.add("default", final(1, 2))
		}()
		b, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for block := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n\n"), "\n\n") {
			name, _, _ := strings.Cut(block, ":")
			got = append(got, name)
		}
		if d := cmp.Diff(got, []string{"retry", "", "", "id", "", "id"}); d != "" || time.Since(begun) != 3*api.KeepAlive+api.KeepAlive/2+time.Second {
			t.Errorf("after %v (-got +want):\n%s", time.Since(begun), d)
		}
	})
}

// Who reads nothing loses the connection, and that is all: nobody waits for him, and he goes on from where he was.
func TestSlowViewer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{})
		r.source.add("default", output(1, 1, "first"))
		slow := r.get(path)
		next, stop := pull(slow.Body)
		defer stop()
		if f := next(); f.id != "1.1" {
			t.Fatalf("got %+v", f)
		}
		for seq := int64(2); seq <= 50; seq++ {
			r.source.add("default", output(1, seq, strings.Repeat("y", 64<<10)))
		}
		r.source.add("default", final(1, 51))
		begun := time.Now()
		if got := ids(r.get(path).Body); len(got) != 51 || time.Since(begun) != 0 {
			t.Errorf("another sees %d events, after %v", len(got), time.Since(begun))
		}
		time.Sleep(api.WriteWithin + time.Second)
		synctest.Wait()
		if n := r.source.followers(); n != 0 {
			t.Errorf("%d are still served", n)
		}
		last := "1.1"
		for f := next(); f.id != ""; f = next() { // what is on its way
			last = f.id
		}
		p, ok := api.ParseID(last)
		if got := ids(r.get(path, "Last-Event-ID", last).Body); !ok || int64(len(got)) != 51-p.Seq {
			t.Errorf("after %s there are %d", last, len(got))
		}
	})
}

// A slow line is not cut: an event of a MiB takes many times what one write may.
func TestSlowLine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{})
		r.source.add("default", output(1, 1, strings.Repeat("z", 1<<20)), final(1, 2))
		begun := time.Now()
		n := 0
		for range frames(slowly{r.get(path).Body}) {
			n++
		}
		if n != 2 || time.Since(begun) < 5*api.WriteWithin {
			t.Errorf("%d events in %v", n, time.Since(begun))
		}
	})
}

// slowly reads 2 KiB a second.
type slowly struct{ from io.Reader }

func (s slowly) Read(b []byte) (int, error) {
	time.Sleep(time.Second)
	return s.from.Read(b[:min(len(b), 2<<10)])
}

// pull gives a stream's events one by one; the zero frame is its end.
func pull(in io.Reader) (next func() frame, stop func()) {
	c, done := make(chan frame), make(chan struct{})
	go func() {
		defer close(c)
		for f := range frames(in) {
			select {
			case c <- f:
			case <-done:
				return
			}
		}
	}()
	return func() frame { return <-c }, func() { close(done) }
}

// A viewer who leaves takes everything along; so does a server that ends, whether its viewers read or not.
func TestNothingIsLeft(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{})
		r.source.add("default", output(1, 1, "a"))
		ctx, leave := context.WithCancel(t.Context())
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		a := r.do(q)
		next, stop := pull(a.Body)
		defer stop()
		if f := next(); f.id != "1.1" || r.source.followers() != 1 {
			t.Fatalf("got %+v, %d followers", f, r.source.followers())
		}
		leave()
		synctest.Wait()
		if n := r.source.followers(); n != 0 {
			t.Errorf("%d followers after the viewer has left", n)
		}
		reads := r.get(path)
		r.get(path) // and does not
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, reads.Body)
			ended <- err
		}()
		synctest.Wait()
		begun := time.Now()
		r.stop()
		if time.Since(begun) > 2*time.Second {
			t.Errorf("it took %v", time.Since(begun))
		}
		if err := <-ended; err != nil {
			t.Errorf("the stream of who reads ends with %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	r := serve(t, api.Config{})
	r.source.add("default", final(1, 1))
	const other = "/v1/jobs/019a2b3c-4d5e-7f60-8123-000000000000/events"
	for name, c := range map[string]struct {
		target, header string
		down           error
		status         int
		code           jobs.Code
	}{
		"another path":         {"/v1/jobs", "", nil, 404, jobs.CodeNotFound},
		"no such job":          {other, "", nil, 404, jobs.CodeNotFound},
		"no id":                {"/v1/jobs/x/events", "", nil, 404, jobs.CodeNotFound},
		"a wildcard":           {"/v1/jobs/%3E/events", "", nil, 404, jobs.CodeNotFound},
		"another tenant's":     {path + "?tenant=other", "", nil, 404, jobs.CodeNotFound},
		"no tenant":            {path + "?tenant=a.b", "", nil, 400, jobs.CodeInvalid},
		"a word":               {path, "last", nil, 400, jobs.CodeInvalid},
		"half an id":           {path, "1", nil, 400, jobs.CodeInvalid},
		"three halves":         {path, "1.2.3", nil, 400, jobs.CodeInvalid},
		"below nothing":        {path, "1.-1", nil, 400, jobs.CodeInvalid},
		"another form":         {path, "01.1", nil, 400, jobs.CodeInvalid},
		"too large":            {path, "1.99999999999999999999", nil, 400, jobs.CodeInvalid},
		"in the query":         {path + "?after=x", "", nil, 400, jobs.CodeInvalid},
		"an unknown parameter": {path + "?afer=1.1", "", nil, 400, jobs.CodeInvalid},
		"nobody answers":       {path, "", &jobs.Error{Code: jobs.CodeUnavailable, Message: "no dispatcher", RetryAfterMS: 1000}, 503, jobs.CodeUnavailable},
		"a fault":              {path, "", errors.New("secret"), 500, jobs.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.T = t
			r.source.set(c.down)
			defer r.source.set(nil)
			var headers []string
			if c.header != "" {
				headers = []string{"Last-Event-ID", c.header}
			}
			a := r.get(c.target, headers...)
			e := r.refused(name, a, c.status, c.code)
			if strings.Contains(e.Message, "secret") || a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%q, %s", e.Message, a.Header.Get("Content-Type"))
			}
		})
	}
	for name, q := range map[string]*http.Request{
		"another method": request(t, http.MethodPost, r.url+path, nil),
		"HEAD":           request(t, http.MethodHead, r.url+path, nil),
		"a body":         request(t, http.MethodGet, r.url+path, strings.NewReader("x")),
	} {
		if a := r.do(q); a.StatusCode != http.StatusMethodNotAllowed && (name != "a body" || a.StatusCode != http.StatusBadRequest) {
			t.Errorf("%s: %s", name, a.Status)
		}
	}
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// Who comes back while nobody answers waits a while for somebody: an EventSource that gets an error does not come again.
func TestBackTooEarly(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{})
		away := &jobs.Error{Code: jobs.CodeUnavailable, Message: "no dispatcher", RetryAfterMS: 1000}
		r.source.add("default", output(1, 1, "a"), final(1, 2))
		r.source.set(away)
		go func() {
			time.Sleep(api.BackWithin / 2)
			r.source.set(nil)
		}()
		if got := ids(r.get(path, "Last-Event-ID", "1.1").Body); len(got) != 1 {
			t.Errorf("got %q", got)
		}
		r.source.set(away)
		begun := time.Now()
		r.refused("nobody comes", r.get(path, "Last-Event-ID", "1.1"), http.StatusServiceUnavailable, jobs.CodeUnavailable)
		if took := time.Since(begun); took < api.BackWithin || took > 2*api.BackWithin {
			t.Errorf("it took %v", took)
		}
	})
}

func FuzzID(f *testing.F) {
	for _, id := range []string{"1.1", "0.0", "2147483647.9223372036854775806", "1.", ".1", "+1.1", "1.1 ", "1,1"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if p, ok := api.ParseID(id); ok && api.EventID(p.Attempt, p.Seq) != id {
			t.Errorf("%q is %+v", id, p)
		}
	})
}
