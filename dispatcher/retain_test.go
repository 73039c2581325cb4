package dispatcher_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// Of jobs that wait memory has what the matcher needs, and not their specs.
func TestSpecsAreNotRetained(t *testing.T) {
	const n, size = 40, 200_000
	rigged(t, dispatcher.Config{}, func(r *rig) {
		large := func() *jobs.Spec {
			return &jobs.Spec{Language: "python", Source: "#" + strings.Repeat("x", size)}
		}
		inUse := func() int64 {
			synctest.Wait() // whoever has answered may hold what it has answered about
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := inUse()
		for range n {
			r.admit(large())
		}
		var b jobs.BatchRequest
		for range n {
			body, err := large().Encode()
			if err != nil {
				r.Fatal(err)
			}
			b.Jobs = append(b.Jobs, json.RawMessage(body))
		}
		if reply, err := r.AdmitBatch(r.Context(), "t", &b); err != nil || len(reply.Items) != n {
			r.Fatalf("%+v, %v", reply, err)
		}
		b = jobs.BatchRequest{}
		if grown := inUse() - before; grown > n*size/2 {
			r.Errorf("%d bytes more are in use with %d jobs queued, whose specs have %d", grown, 2*n, 2*n*size)
		}
	})
}
