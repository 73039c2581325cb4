package kvmhost

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Set is one program of tests that is run in the host: a package's, or a part of them.
type Set struct {
	// Name is for people, and the log's file; unique.
	Name string
	// Package is where the tests are, from the repository's root: "vmm/qemu".
	Package string
	// Shell is a line that is run instead of tests, where Package is empty.
	Shell string
	// Paddock is for sets that use bin/paddock: it is built, and the images with its agent.
	Paddock bool
	// Run and Skip are what `go test` calls so; empty for all tests, and none.
	Run, Skip string
	// Bench names benchmarks, as go test -bench; then tests are run only where Run names some. Their lines are in the set's log.
	Bench string
	// Timeout is when the set is ended. A nested host is 10 to 20 times slower than this machine.
	Timeout time.Duration
	// Env is added to the environment: KEY=VALUE.
	Env []string
	// MaySkip names tests that may skip where an environment variable is not set, and the variables. They are reported as not run.
	MaySkip map[string][]string
	// Wants is an environment variable without which nothing in the set takes time; empty: there is none.
	Wants string
}

// sets is what `make test-kvm` runs, in this order.
var sets = []Set{
	{
		Name: "doctor and a job", Package: "test/kvmhost/inhost", Paddock: true, Timeout: 15 * time.Minute,
		MaySkip: map[string][]string{"TestJobOnCloudHypervisor": {CloudHypervisor}},
	},
	{Name: "qemu", Package: "vmm/qemu", Run: "^(TestConformance|TestMachine|TestProbe|TestCheckpoint)$", Timeout: 20 * time.Minute},
	{Name: "qemu, vsock", Package: "vmm/qemu", Run: "^(TestConformanceVsock|TestNoVsock|TestCIDs|TestVsock.*)$", Timeout: 20 * time.Minute},
	{
		// The agent over vsock, with network cards and without, is the first set's: its jobs have it.
		Name: "qemu, agent", Package: "vmm/qemu", Timeout: 12 * time.Minute,
		Run: "^TestResize$|^TestDiskLimits$|^TestAgentNetwork$/^serial$",
	},
	{
		Name: "cloud hypervisor", Package: "vmm/cloudhypervisor", Run: "^TestReal|^TestProbeHonest$", Timeout: 25 * time.Minute, Wants: CloudHypervisor,
		MaySkip: map[string][]string{
			"TestRealConformance": {CloudHypervisor}, "TestRealMachine": {CloudHypervisor}, "TestRealMultiprocessor": {CloudHypervisor},
			"TestRealJailed": {CloudHypervisor}, "TestRealFigures": {CloudHypervisor}, "TestRealProbe": {CloudHypervisor},
			"TestRealShapes": {CloudHypervisor}, "TestRealRequests": {CloudHypervisor}, "TestRealCheckpoint": {CloudHypervisor}, "TestRealResize": {CloudHypervisor},
			"TestProbeHonest": {CloudHypervisor}, "TestRealLandlock": {CloudHypervisor, Landlock},
		},
	},
	{Name: "jail", Package: "worker/jail", Timeout: 8 * time.Minute},
	{Name: "soak", Package: "test/soak", Timeout: 8 * time.Minute, MaySkip: map[string][]string{"TestCloudHypervisor": {CloudHypervisor}}},
	{Name: "network", Package: "worker/hostnet", Timeout: 12 * time.Minute, MaySkip: map[string][]string{"TestBesideRealFirewalls": {Throwaway}}},
}

// programs are what tests build with `go build`: inside there is no Go, and these are given instead.
var programs = []string{"vmm/vmmtest/testguest", "cmd/paddock-agent"}

// Environment variables without which tests may skip.
const (
	// CloudHypervisor names the real binary.
	CloudHypervisor = "CLOUD_HYPERVISOR"
	// Landlock says that the kernel has it as Cloud Hypervisor wants it. Hosts with such a kernel have it set.
	Landlock = "REQUIRE_LANDLOCK"
	// Throwaway says that nobody's host is changed. Emulated ones have it set.
	Throwaway = "THROWAWAY_HOST"
)

// equipped gives the sets as they are run where and with what o says.
func equipped(sets []Set, o Options) []Set {
	sets = slices.Clone(sets)
	for i := range sets {
		env := slices.Clone(sets[i].Env)
		if o.Place == Nested {
			env = append(env, Throwaway+"=1")
		}
		if o.Kernel == backports {
			env = append(env, Landlock+"=1")
		}
		sets[i].Env = env
	}
	return sets
}

// lacks gives that of some environment variables which neither the set has nor this process; empty: none.
func (s Set) lacks(variables []string) string {
	for _, v := range variables {
		given := func(e string) bool { return strings.HasPrefix(e, v+"=") }
		if os.Getenv(v) == "" && !slices.ContainsFunc(s.Env, given) {
			return v
		}
	}
	return ""
}

// Sets is a copy of the table.
func Sets() []Set { return append([]Set(nil), sets...) }

// adHoc is the time for a set that is not in the table.
const adHoc = 10 * time.Minute

// Select gives the sets of the table that are in the named packages, and a set for each of those packages that has none. No packages are
// all sets.
func Select(packages []string) []Set {
	if len(packages) == 0 {
		return Sets()
	}
	var some []Set
	for _, p := range packages {
		known := false
		for _, s := range sets {
			if s.Package == p {
				some = append(some, s)
				known = true
			}
		}
		if !known {
			some = append(some, Set{Name: p, Package: p, Timeout: adHoc, Paddock: strings.HasPrefix(p, "test/") || strings.HasPrefix(p, "cmd/")})
		}
	}
	return some
}

// weight is what of a host's time a set may take.
func (s Set) weight() time.Duration {
	if s.Wants != "" && s.lacks([]string{s.Wants}) != "" {
		return 0
	}
	return s.Timeout
}

// shares divides sets among hosts, so that each has about as much time to give, and no host is without a set. Within a share sets keep their order.
func shares(all []Set, hosts int) [][]Set {
	longest := slices.SortedStableFunc(slices.Values(all), func(a, b Set) int { return cmp.Compare(b.weight(), a.weight()) })
	of, load := map[string]int{}, make([]time.Duration, min(max(hosts, 1), len(all)))
	for _, s := range longest {
		least := slices.Index(load, slices.Min(load))
		of[s.Name] = least
		load[least] += s.weight()
	}
	list := make([][]Set, len(load))
	for _, s := range all {
		list[of[s.Name]] = append(list[of[s.Name]], s)
	}
	return list
}

// check finds what is wrong with a table.
func check(table []Set) error {
	var wrong []error
	seen := map[string]bool{}
	for i, s := range table {
		bad := func(format string, args ...any) {
			wrong = append(wrong, fmt.Errorf("set %d (%s): %s", i, s.Name, fmt.Sprintf(format, args...)))
		}
		if file := s.file(); s.Name == "" || seen[file] {
			bad("the name is missing, or another's")
		} else {
			seen[file] = true
		}
		if (s.Package == "") == (s.Shell == "") {
			bad("it wants a package or a line of shell")
		} else if s.Package != "" && s.Package != path.Clean(s.Package) || path.IsAbs(s.Package) || strings.HasPrefix(s.Package, ".") {
			bad("%q is no package of this repository", s.Package)
		}
		if s.Timeout <= own {
			bad("a timeout of %v is too short to start anything in", s.Timeout)
		}
		for _, re := range []string{s.Run, s.Skip, s.Bench} {
			for _, part := range strings.Split(re, "/") { // as go test takes it
				if _, err := regexp.Compile(part); err != nil {
					bad("%v", err)
				}
			}
		}
		for _, e := range s.Env {
			if key, _, ok := strings.Cut(e, "="); !ok || key == "" {
				bad("%q is not KEY=VALUE", e)
			}
		}
	}
	return errors.Join(wrong...)
}

// file is the set's name as a file's.
func (s Set) file() string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, s.Name)
}

// args are the test program's.
func (s Set) args() []string {
	// A little before the step is ended, the program itself says which test has hung.
	args := []string{"-test.v", "-test.paniconexit0", fmt.Sprintf("-test.timeout=%v", s.Timeout-own)}
	if s.Bench != "" {
		args = append(args, "-test.benchmem", "-test.bench="+s.Bench)
		s.Run = cmp.Or(s.Run, "^$")
	}
	if s.Run != "" {
		args = append(args, "-test.run="+s.Run)
	}
	if s.Skip != "" {
		args = append(args, "-test.skip="+s.Skip)
	}
	return args
}

// own is how long before the end of a set its program ends itself.
const own = 15 * time.Second
