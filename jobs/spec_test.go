package jobs_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Who knows of a job only what it needs of networks knows whether its machine has a network card.
func TestNeedsNIC(t *testing.T) {
	for _, policy := range []string{"", jobs.NetworkNone, jobs.NetworkInternet, jobs.NetworkAllowlist} {
		for _, ipv6 := range []bool{false, true} {
			for _, ports := range [][]int{nil, {80}} {
				n := jobs.Network{Policy: policy, IPv6: ipv6, Ports: ports}
				if needs := strings.Join(n.Needs(), ","); jobs.NeedsNIC(needs) != n.NIC() {
					t.Errorf("%q: a network card is needed: %t, and %+v has one: %t", needs, jobs.NeedsNIC(needs), n, n.NIC())
				}
			}
		}
	}
}

func TestMachineSize(t *testing.T) {
	image := jobs.Resources{VCPUs: 2, MemoryMiB: 200}
	for asked, want := range map[jobs.Resources]jobs.Resources{
		{}:               image,
		image:            image,
		{MemoryMiB: 200}: image,
		{MemoryMiB: 201}: {VCPUs: 2, MemoryMiB: 256},
		{MemoryMiB: 256}: {VCPUs: 2, MemoryMiB: 256},
		{VCPUs: 1}:       {VCPUs: 1, MemoryMiB: 200},
	} {
		if got := jobs.MachineSize(asked, image); got != want {
			t.Errorf("who asks for %+v gets %+v, want %+v", asked, got, want)
		}
	}
	if got := jobs.MachineSize(jobs.Resources{}, jobs.Resources{}); got != (jobs.Resources{VCPUs: 1, MemoryMiB: 1}) {
		t.Errorf("of an image without a size: %+v", got)
	}
}

// A panic while a spec is read or checked is an error, and a client learns no more of it than that it is our fault.
func TestBug(t *testing.T) {
	s := jobs.Spec{Language: "sh", Source: "true", RunAt: time.Now().In(time.FixedZone("", 24*3600))} // which JSON cannot say, nor Decode give
	err := s.Validate()
	bug, ok := errors.AsType[*jobs.BugError](err)
	if !ok || !strings.Contains(string(bug.Stack), "Encode") || !strings.Contains(err.Error(), "panic: ") {
		t.Fatalf("got %v", err)
	}
	if e := jobs.ErrorOf(err); e.Code != jobs.CodeInternal || strings.Contains(e.Message, "panic") {
		t.Errorf("clients are told %v", e)
	}
}
