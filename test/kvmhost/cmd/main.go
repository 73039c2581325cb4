// Command cmd runs Paddock's tests on a host with KVM: all of the table in test/kvmhost, or what its arguments name.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/test/kvmhost"
)

const usage = `Runs Paddock's tests on a host with KVM: this machine where its own KVM works, else one that is emulated.

usage: go run ./test/kvmhost/cmd [flags] [PACKAGE…]

Without arguments: all sets of the table (--list shows it). With packages, as go names them: the sets of those packages, and for a package
that has none all of its tests.

  go run ./test/kvmhost/cmd ./vmm/qemu --run 'TestConformance|TestProbe'
  go run ./test/kvmhost/cmd ./worker/... --timeout 8m
  go run ./test/kvmhost/cmd --sh 'ls -l /dev/kvm; nft list ruleset'

Inside: root, Debian 12 with its standard kernel, pure cgroup v2 (each set in /system.slice/NAME.service, which it may divide), kvm_amd,
vhost_vsock, tun, nf_tables; REQUIRE_KVM, REQUIRE_ROOT and REQUIRE_QEMU are 1; no Go (go build -o gives what was built outside). A test that skips is a failure.
Files that a test writes in the directory $PADDOCK_TEST_OUT come back, in files below --out.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	stop()
	switch {
	case errors.Is(err, pflag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "kvmhost:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	f := pflag.NewFlagSet("kvmhost", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() { fmt.Fprint(os.Stderr, usage+f.FlagUsages()) }
	match := f.String("run", "", "only tests that match, as go test -run")
	skip := f.String("skip", "", "no tests that match, as go test -skip")
	bench := f.String("bench", "", "benchmarks that match, as go test -bench, and no tests but those of --run")
	shell := f.StringArray("sh", nil, "run a line of shell, in the repository's root (repeatable)")
	timeout := f.Duration("timeout", 0, "the time for each set, in place of its own")
	env := f.StringArray("env", nil, "KEY=VALUE in the tests' environment (repeatable)")
	place := f.String("place", "auto", "auto, here (this machine's KVM) or nested (an emulated host)")
	out := f.String("out", "bin/kvmhost", "directory for logs, the host's console, and files that tests leave")
	kernel := f.String("kernel", "", "an emulated host's kernel: that of Debian 12 (6.1), or backports (6.12)")
	vcpus := f.Int("vcpus", 1, "an emulated host's processors; with more, one guest in some hundred breaks (docs/kvm-host.md)")
	memory := f.Int("memory-mib", 6144, "an emulated host's memory")
	hosts := f.Int("hosts", min(2, runtime.NumCPU()), "emulated hosts that share the sets, each on a processor of its own; with more than one, lines begin with their set's name")
	list := f.Bool("list", false, "show the table of sets, and end")
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	sets, err := choose(ctx, f.Args(), *shell)
	if err != nil {
		return err
	}
	for i := range sets {
		if *match != "" {
			sets[i].Run = *match
		}
		if *skip != "" {
			sets[i].Skip = *skip
		}
		if *bench != "" {
			sets[i].Bench = *bench
		}
		if *timeout != 0 {
			sets[i].Timeout = *timeout
		}
		sets[i].Env = append(sets[i].Env, *env...)
	}
	if *list {
		for _, s := range sets {
			fmt.Printf("%-24s ./%s %s (at most %v)\n", s.Name, s.Package, s.Run, s.Timeout)
		}
		return nil
	}
	o := kvmhost.Options{Place: kvmhost.Place(*place), Out: *out, Live: os.Stdout, Kernel: *kernel, VCPUs: *vcpus, MemoryMiB: *memory, Hosts: min(*hosts, len(sets))}
	results, err := kvmhost.Run(ctx, sets, o)
	if len(results) > 0 {
		fmt.Println()
		kvmhost.Report(os.Stdout, results)
	}
	for _, r := range results {
		if !r.OK() {
			err = errors.Join(err, fmt.Errorf("%s did not pass", r.Set.Name))
		}
	}
	return err
}

// choose gives the sets that the arguments name.
func choose(ctx context.Context, patterns, shell []string) ([]kvmhost.Set, error) {
	var sets []kvmhost.Set
	for i, line := range shell {
		sets = append(sets, kvmhost.Set{Name: fmt.Sprintf("sh-%d", i+1), Shell: line, Paddock: true, Timeout: 10 * time.Minute})
	}
	if len(patterns) == 0 {
		if len(shell) > 0 {
			return sets, nil
		}
		return kvmhost.Select(nil), nil
	}
	args := append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	listed, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []string
	for _, p := range strings.Fields(string(listed)) {
		packages = append(packages, strings.TrimPrefix(p, "github.com/paddockvm/paddock/"))
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("no tests in %s", strings.Join(patterns, " "))
	}
	return append(sets, kvmhost.Select(packages)...), nil
}
