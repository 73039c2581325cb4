package kvmhost

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/kvmhost/steps"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
)

// Place is where sets are run.
type Place string

const (
	// Auto is Here where this machine's KVM runs guests, and else Nested.
	Auto   Place = "auto"
	Here   Place = "here"
	Nested Place = "nested"
)

// Options say how to run sets.
type Options struct {
	Place Place
	// Out is the directory for results: each set's log, the host's console, and the files that tests have left in PADDOCK_TEST_OUT.
	Out string
	// Live takes the sets' output as it comes, and what is being done.
	Live io.Writer
	// Kernel is a nested host's: empty for Debian 12's own, 6.1; "backports" for that of its backports, 6.12, which has Landlock as Cloud
	// Hypervisor wants it.
	Kernel string
	// VCPUs and MemoryMiB are a nested host's.
	VCPUs, MemoryMiB int
	// Hosts is how many nested hosts share the sets, each with a processor of this machine as far as there are enough; 0 means one.
	Hosts int
	// Boot and Grace bound what the nested host does besides the sets; 0 means 3 minutes and 1 minute.
	Boot, Grace time.Duration
}

// Run runs the sets, one after the other in each host, and says how each went. The error is ours; a set that failed is no error. One Run goes
// on at a time on a machine: others wait, and say so. All ends with ctx, and nothing stays but Out.
func Run(ctx context.Context, sets []Set, o Options) ([]Result, error) {
	if err := check(sets); err != nil {
		return nil, err
	}
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	o.Live = &shared{to: o.Live}
	say := func(what string) { fmt.Fprintln(o.Live, "kvmhost:", what) }
	if o.Place == Auto {
		o.Place = where(ctx, say)
	}
	if o.Place == Here {
		if o.Kernel != "" {
			return nil, errors.New("this machine has the kernel that it has: --place nested takes another")
		}
		o.Hosts = 1
	}
	sets = equipped(sets, o)
	if os.Geteuid() != 0 {
		return nil, errors.New("it needs root: sudo -E make test-kvm")
	}
	release, err := lock(ctx, filepath.Join(cache, "lock"), func(who string) { say("waiting for the host of process " + who + ": one runs at a time") })
	if err != nil {
		return nil, err
	}
	defer release()
	if err := sweep(cache); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(cache, "run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)

	p := payload{dir: filepath.Join(work, "payload"), root: root}
	say("building the tests")
	if err := p.compile(ctx, sets); err != nil {
		return nil, err
	}
	j := newRecord(sets, o)
	defer j.close()
	if o.Place == Here {
		return j.results, p.runHere(ctx, sets, j.event)
	}
	return j.results, p.runNested(ctx, sets, work, o, j, say)
}

// sweep removes what a run that was killed has left. The lock is held: no run is going on.
func sweep(cache string) error {
	left, err := filepath.Glob(filepath.Join(cache, "run-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// where asks the machine's own KVM to run a guest.
func where(ctx context.Context, say func(string)) Place {
	err := func() error {
		dir, err := os.MkdirTemp("", "kvm-probe-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d, err := qemu.New(qemu.Config{RunDir: dir, Launcher: vmm.Direct{}, Accel: "kvm"})
		if err != nil {
			return err
		}
		_, err = d.Probe(ctx)
		return errors.Join(err, d.Close())
	}()
	if err != nil {
		say("this machine's KVM runs no guests (" + err.Error() + "): a host is emulated")
		return Nested
	}
	say("this machine's KVM runs guests: the tests run directly on it")
	return Here
}

func (p payload) runHere(ctx context.Context, sets []Set, emit func(steps.Event)) error {
	plan := p.planHere(sets)
	if err := os.MkdirAll(plan.Out, 0o755); err != nil {
		return err
	}
	return steps.Run(ctx, plan, steps.Where{}, emit)
}

func (p payload) runNested(ctx context.Context, sets []Set, work string, o Options, j *record, say func(string)) error {
	img, err := HostImage(ctx, o.Kernel, say)
	if err != nil {
		return err
	}
	say("filling the payload's disk")
	if err := p.fill(ctx, sets); err != nil {
		return err
	}
	initrd := filepath.Join(work, "initrd")
	if err := p.initrd(ctx, img, initrd); err != nil {
		return err
	}
	var hosts []host
	for n, part := range shares(sets, o.Hosts) {
		h := host{plan: p.plan(part), log: filepath.Join(o.Out, "console.log"), machine: machine{
			img: img, initrd: initrd, vcpus: o.VCPUs, memoryMiB: o.MemoryMiB, processor: n,
			booted: cmp.Or(o.Boot, 3*time.Minute), grace: cmp.Or(o.Grace, time.Minute),
		}}
		if n > 0 {
			h.log = filepath.Join(o.Out, fmt.Sprintf("console-%d.log", n+1))
		}
		disk, err := p.disk(ctx, h.plan, filepath.Join(work, fmt.Sprint("disk-", n)))
		if err != nil {
			return err
		}
		defer disk.Close()
		h.payload = disk
		hosts = append(hosts, h)
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}
	failed := make([]error, len(hosts))
	var all sync.WaitGroup
	for n, h := range hosts {
		all.Go(func() { failed[n] = h.run(ctx, j, say) }) // what one ends with, another does not
	}
	all.Wait()
	return errors.Join(failed...)
}

// consoleLines are enough to have all that a kernel prints when it panics, the reason first: some 45.
const consoleLines = 100

// host is a machine with its part of the sets.
type host struct {
	machine

	plan steps.Plan
	log  string // its console's file
}

func (h host) run(ctx context.Context, j *record, say func(string)) error {
	console, err := os.Create(h.log)
	if err != nil {
		return err
	}
	defer console.Close()
	var last bytes.Buffer
	h.console = io.MultiWriter(console, &last)
	say("booting a host")
	start := time.Now()
	err = h.machine.run(ctx, h.plan, func(e steps.Event) {
		if e.Kind == steps.Ready {
			say(fmt.Sprintf("%s is up after %.1f s", e.Detail, time.Since(start).Seconds()))
		}
		j.event(e)
	})
	if err != nil {
		return fmt.Errorf("%w\nthe host's console (%s) ends with:\n%s", err, console.Name(), lastLines(last.Bytes(), consoleLines))
	}
	say(fmt.Sprintf("a host ran for %.1f s", time.Since(start).Seconds()))
	return nil
}
