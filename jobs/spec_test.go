package jobs_test

import (
	"strings"
	"testing"

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
