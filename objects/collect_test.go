package objects_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
)

// needed is what is named, by tenant; during is called before it is told.
type needed struct {
	list   map[string][]string
	during func()
	err    error
}

func (n *needed) named(_ context.Context, do func(string, jobs.ObjectRef)) error {
	if n.during != nil {
		n.during()
	}
	for tenant, list := range n.list {
		for _, name := range list {
			do(tenant, jobs.ObjectRef{Name: name, SHA256: name})
		}
	}
	return n.err
}

// With nothing kept for its age, what is named stays, and all else goes; of another tenant the same name is another.
func TestCollect(t *testing.T) {
	s := objects.NewJetStream(jetStream(t))
	in, out := objectstest.Put(t, s, "a", []byte("in")), objectstest.Put(t, s, "a", bytes.Repeat([]byte("x"), 300_000))
	objectstest.Put(t, s, "b", []byte("in"))
	n := &needed{list: map[string][]string{"a": {in}}}
	r := prometheus.NewRegistry()
	c := objects.NewCollector(s, n.named, time.Hour, r)
	collect := func(tenant string, want ...string) {
		t.Helper()
		if err := c.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		l, err := s.List(t.Context(), tenant)
		if err != nil || len(l) != len(want) {
			t.Fatalf("%s has %v, %v, want %v", tenant, l, err, want)
		}
		for i := range l {
			if l[i].Name != want[i] {
				t.Errorf("%s has %v, want %v", tenant, l, want)
			}
		}
	}
	collect("a", in, out) // in the order in which they were put
	collect("b", in)
	gauges(t, r, map[string]float64{"paddock_objects": 3, "paddock_objects_bytes": 300_004})
	c.Keep = 0
	collect("a", in)
	collect("b")
	gauges(t, r, map[string]float64{"paddock_objects": 1, "paddock_objects_bytes": 2, "paddock_objects_deleted_total": 2, "paddock_objects_deleted_bytes_total": 300_002})
	n.list = nil
	collect("a")
}

func gauges(t *testing.T, r *prometheus.Registry, want map[string]float64) {
	t.Helper()
	l, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range l {
		m := f.GetMetric()[0]
		if w, ok := want[f.GetName()]; ok && m.GetGauge().GetValue()+m.GetCounter().GetValue() != w {
			t.Errorf("%s: %v, want %v", f.GetName(), m, w)
		}
		delete(want, f.GetName())
	}
	if len(want) > 0 {
		t.Errorf("there are no figures of %v", want)
	}
}

// What is put again, because it is there already, after it was seen to be old, is not deleted; nor is anything where nobody can say what is
// needed.
func TestCollectRenewed(t *testing.T) {
	s := objects.NewJetStream(jetStream(t))
	name := objectstest.Put(t, s, "a", []byte("x"))
	gone := objectstest.Put(t, s, "a", []byte("y"))
	u, _ := gathering(t, s)
	n := &needed{err: errors.New("the ledger is away")}
	c := objects.NewCollector(s, n.named, 0, nil)
	if err := c.Collect(t.Context()); !errors.Is(err, n.err) {
		t.Errorf("got %v, want %v", err, n.err)
	}
	n.err = nil
	n.during = func() { // a client finds it there, and is about to submit a job that names it
		if _, stored, err := u.Put(t.Context(), "a", name, 1, 0, nil); err != nil || !stored {
			t.Errorf("got %v, %v", stored, err)
		}
	}
	if err := c.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := objectstest.Read(t.Context(), s, "a", name); err != nil || string(b) != "x" {
		t.Errorf("it is gone: %q, %v", b, err)
	}
	if _, err := s.Stat(t.Context(), "a", gone); objectstest.Code(err) != jobs.CodeNotFound {
		t.Errorf("the other is there: %v", err)
	}
}
