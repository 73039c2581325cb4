package bus_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// A request that finds a bug in how requests are read is told so, and costs nobody else anything: the stack is in the log, a counter counts it, and one that
// nobody waits for lies in the dead-letter queue and does not come again.
func TestBugs(t *testing.T) {
	s := bustest.Start(t)
	var said log
	b, err := bus.Connect(t.Context(), bus.Config{URL: s.URL(), Log: zerolog.New(&said).Level(zerolog.ErrorLevel)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	bug := true
	brain := &bustest.Brain{Before: func(_ context.Context, op string) error {
		if bug && op == "admit" {
			return &jobs.BugError{Panic: "index out of range", Stack: []byte("in the middle of it")}
		}
		return nil
	}}
	bustest.Serve(t, b, brain)
	nc := s.Plain()
	if v := request(t, nc, "paddock.v1.submit.default", hello); codeIn(v) != "internal" || strings.Contains(errorText(v), "index") {
		t.Errorf("got %v, want internal and no more", v)
	}
	q := newQueue(t, nc)
	q.put("default", "", []byte(hello))
	q.judged()
	l := q.letters("default")
	if len(l) != 1 || codeIn(l[0]) != "internal" || !strings.Contains(l[0]["body"].(string), "print") {
		t.Errorf("letters %v", l)
	}
	if n := strings.Count(said.String(), "in the middle of it"); n != 2 {
		t.Errorf("the log has the stack %d times, want once for each:\n%s", n, &said)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(b.Collector())
	all, err := reg.Gather()
	if err != nil || len(all) != 1 || all[0].GetMetric()[0].GetCounter().GetValue() != 2 {
		t.Errorf("counted %v, %v", all, err)
	}
	bug = false
	if v := request(t, nc, "paddock.v1.submit.default", hello); codeIn(v) != "" {
		t.Errorf("another request: %v", v)
	}
}

func errorText(v map[string]any) string {
	e, _ := v["error"].(map[string]any)
	text, _ := e["message"].(string)
	return text
}

// log is written by several goroutines.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
