package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/worker/host"
)

func TestCapacityOf(t *testing.T) {
	has, err := host.Reader{}.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	cpus := max(1, int(has.CPUs))
	for _, c := range []struct {
		name string
		c    config
		want jobs.Resources
		err  string
	}{
		{"all that there is", config{OvercommitVCPUs: 1, OvercommitMemory: 1}, jobs.Resources{VCPUs: cpus, MemoryMiB: has.MemoryMiB}, ""},
		{"less the reserve, twice over", config{OvercommitVCPUs: 1, OvercommitMemory: 2, ReserveMemoryMiB: 100}, jobs.Resources{VCPUs: cpus, MemoryMiB: 2 * (has.MemoryMiB - 100)}, ""},
		{"what is said is not multiplied", config{VCPUs: 3, MemoryMiB: 500, OvercommitVCPUs: 4, OvercommitMemory: 4}, jobs.Resources{VCPUs: 3, MemoryMiB: 500}, ""},
		{"less than a machine", config{VCPUs: 1, MemoryMiB: 95, OvercommitVCPUs: 1, OvercommitMemory: 1}, jobs.Resources{}, "at least 96"},
		{"nothing left", config{OvercommitVCPUs: 1, OvercommitMemory: 1, ReserveMemoryMiB: has.MemoryMiB}, jobs.Resources{}, "nothing is left"},
		{"under-committed", config{OvercommitVCPUs: 0.5, OvercommitMemory: 1}, jobs.Resources{}, "from 1"},
		{"beyond reason", config{OvercommitVCPUs: 1, OvercommitMemory: 1e9}, jobs.Resources{}, "to 100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := capacityOf(c.c)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}
