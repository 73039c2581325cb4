package main

import (
	"math"
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
		{"no number", config{OvercommitVCPUs: math.NaN(), OvercommitMemory: 1}, jobs.Resources{}, "from 1"},
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

// What is given to machines beyond what there is for them is taken from all alike.
func TestMachineMemory(t *testing.T) {
	has, err := host.Reader{}.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	left := has.MemoryMiB - 200
	for name, c := range map[string]struct {
		c          config
		mib        int
		overcommit float64
	}{
		"once":            {config{OvercommitVCPUs: 1, OvercommitMemory: 1, ReserveMemoryMiB: 200}, left, 1},
		"twice":           {config{OvercommitVCPUs: 1, OvercommitMemory: 2, ReserveMemoryMiB: 200}, left, 2},
		"what is said":    {config{VCPUs: 1, MemoryMiB: 4 * left, OvercommitVCPUs: 1, OvercommitMemory: 1, ReserveMemoryMiB: 200}, left, 4},
		"less than it is": {config{VCPUs: 1, MemoryMiB: left / 2, OvercommitVCPUs: 1, OvercommitMemory: 1, ReserveMemoryMiB: 200}, left, 1},
		"all is reserved": {config{VCPUs: 1, MemoryMiB: 500, OvercommitVCPUs: 1, OvercommitMemory: 1, ReserveMemoryMiB: has.MemoryMiB}, 0, 0},
		"no such":         {config{}, 0, 0},
	} {
		bytes, overcommit := machineMemory(c.c)
		if bytes != int64(c.mib)<<20 || overcommit != c.overcommit {
			t.Errorf("%s: %d bytes, given %v times, want %d MiB, %v times", name, bytes, overcommit, c.mib, c.overcommit)
		}
	}
}

func TestUIDRange(t *testing.T) {
	for text, want := range map[string]struct {
		first, count int
		err          string
	}{
		"200000-209999":               {200_000, 10_000, ""},
		"65536-65536":                 {65_536, 1, ""},
		"2147483647-2147483647":       {1<<31 - 1, 1, ""},
		"2147483647-2147483648":       {err: "uids below 2147483648"},
		"65535-70000":                 {err: "uids from 65536 on"},
		"0-100":                       {err: "uids from 65536 on"},
		"300000-299999":               {err: "the first no larger than the last"},
		"200000":                      {err: "FIRST-LAST, two numbers"},
		"200000-":                     {err: "FIRST-LAST, two numbers"},
		"-209999":                     {err: "FIRST-LAST, two numbers"},
		"200000-209999-":              {err: "FIRST-LAST, two numbers"},
		"200000-2e9":                  {err: "FIRST-LAST, two numbers"},
		"200000-99999999999999999999": {err: "FIRST-LAST, two numbers"},
		"":                            {err: "FIRST-LAST, two numbers"},
	} {
		first, count, err := uidRange(text)
		if want.err == "" && err != nil || want.err != "" && (err == nil || !strings.Contains(err.Error(), want.err)) || first != want.first || count != want.count {
			t.Errorf("%q: %d of them from %d on, %v", text, count, first, err)
		}
	}
}

// There is a uid for every machine that there may be at once.
func TestCheckUIDs(t *testing.T) {
	for _, c := range []struct {
		name string
		c    config
		err  string
	}{
		{"enough", config{Driver: "auto", JailUIDs: "200000-200012"}, ""},
		{"one too few", config{Driver: "auto", JailUIDs: "200000-200011"}, "want at least 13 uids"},
		{"of QEMU's", config{Driver: "qemu", JailUIDs: "200000-200011"}, "want at least 13 uids"},
		{"no jail", config{Driver: "auto", JailUIDs: "200000-200011", Jail: "off"}, ""},
		{"no machines", config{Driver: "hostproc", JailUIDs: "200000-200011"}, ""},
	} {
		c.c.Images, c.c.Ready, c.c.Prepared = []string{"base", "python"}, 3, 1
		err := checkUIDs(c.c, jobs.Resources{VCPUs: 5})
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}
