package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// lab is a driver with a template, for measurements below the worker.
type lab struct {
	driver   vmm.Driver
	caps     vmm.Caps
	template vmm.Template
	dir      string
	close    func() error
}

func openLab(ctx context.Context, driver, imageDir string) (_ *lab, err error) {
	l := &lab{}
	if l.dir, err = os.MkdirTemp(benchDir(), "pd-bench-"); err != nil {
		return nil, err
	}
	var closeDriver func() error
	if l.driver, l.caps, closeDriver, err = openDriver(ctx, labConfig(driver, l.dir, "on")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(l.dir))
	}
	l.close = func() error { return errors.Join(closeDriver(), os.RemoveAll(l.dir)) }
	store, err := images.Open(imageDir)
	if err == nil {
		h := &images.Host{Store: store, Driver: l.driver, Caps: l.caps}
		l.template, _, err = h.Template(ctx, "base", jobs.Shape{})
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// labConfig is that of a driver in a lab.
func labConfig(driver, dir, jail string) config {
	return config{StateDir: dir, Driver: driver, CloudHypervisor: os.Getenv("PADDOCK_CLOUD_HYPERVISOR"), QEMUChannel: "serial", Jail: jail}
}

// inLab gives a command flags for the driver and the image store, and has it measure in a lab of its own and print what came of it.
func inLab(c *cobra.Command, measure func(ctx context.Context, l *lab, r *benchReport, imageDir string) error) {
	out := benchOutput(c)
	driver := c.Flags().String("driver", "qemu", "qemu, or cloud-hypervisor: that in PATH, or in PADDOCK_CLOUD_HYPERVISOR")
	imageDir := c.Flags().String("image-dir", filepath.Join(defaultStateDir(), "images"), "image store")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx := zerolog.Nop().WithContext(c.Context())
		l, err := openLab(ctx, *driver, *imageDir)
		if err != nil {
			return err
		}
		r := newReport(c.Name())
		r.Settings["driver"], r.Settings["accel"] = l.driver.Name(), l.caps.Accel
		if err = errors.Join(measure(ctx, l, r, *imageDir), l.close()); err != nil {
			return err
		}
		return r.print(c.OutOrStdout(), out())
	}
}

// introduceMachine says what a worker says to a new machine.
func introduceMachine(ctx context.Context, conn net.Conn, name string) (*client.Client, error) {
	a, err := client.Connect(ctx, conn)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 80)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	_, err = a.Restore(ctx, wire.Restore{
		Epoch: b[:16], Entropy: b[16:], TimeUnixNS: time.Now().UnixNano(), MachineID: strings.Repeat("0", 32), Hostname: name, Scratch: true,
	})
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func benchRestore() *cobra.Command {
	c := &cobra.Command{
		Use: "restore", Short: "Clone a template into a prepared VMM, beside a bare one driven by hand in the same run", Args: cobra.NoArgs,
		Long: "In turn: a machine by the driver, in its jail, and a VMM of the same kind started and told by hand. Both get the same template and the same agent.\n" +
			"Answer is when the agent has greeted; ready when it has its identity, its clock, its randomness and its disk.",
	}
	n := c.Flags().IntP("clones", "n", 30, "clones of each kind")
	inLab(c, func(ctx context.Context, l *lab, r *benchReport, _ string) error {
		r.Settings["clones"] = *n
		for i := range *n {
			if err := l.clone(ctx, r); err != nil {
				return err
			}
			if err := l.bare(ctx, r, i); err != nil {
				return fmt.Errorf("bare %s: %w", l.driver.Name(), err)
			}
		}
		r.Figures["ratio of answer p50s"] = percentile(r.Samples["answer ms"], 50) / percentile(r.Samples["bare answer ms"], 50)
		r.Figures["ratio of ready p50s"] = percentile(r.Samples["ready ms"], 50) / percentile(r.Samples["bare ready ms"], 50)
		return nil
	})
	return c
}

// clone measures one machine by the driver.
func (l *lab) clone(ctx context.Context, r *benchReport) error {
	at := time.Now()
	p, err := l.driver.Prepare(ctx, l.template, vmm.Attach{})
	if err != nil {
		return err
	}
	r.add("prepare ms", time.Since(at))
	at = time.Now()
	m, err := p.Restore(ctx)
	if err != nil {
		return err
	}
	r.add("restore ms", time.Since(at))
	defer m.Close() //nolint:errcheck // closed and measured below
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return err
	}
	if err := told(ctx, conn, r, "", at); err != nil {
		return err
	}
	at = time.Now()
	err = m.Close()
	r.add("close ms", time.Since(at))
	return err
}

// told measures the agent's first answer and its READY.
func told(ctx context.Context, conn net.Conn, r *benchReport, prefix string, since time.Time) error {
	a, err := client.Connect(ctx, conn)
	if err != nil {
		return err
	}
	r.add(prefix+"answer ms", time.Since(since))
	b := make([]byte, 80)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	_, err = a.Restore(ctx, wire.Restore{
		Epoch: b[:16], Entropy: b[16:], TimeUnixNS: time.Now().UnixNano(), MachineID: strings.Repeat("0", 32), Hostname: "bench", Scratch: true,
	})
	r.add(prefix+"ready ms", time.Since(since))
	return errors.Join(err, a.Close())
}

func benchDensity() *cobra.Command {
	c := &cobra.Command{
		Use: "density", Short: "Many machines restored at once, all answering, and the memory of each", Args: cobra.NoArgs,
	}
	n := c.Flags().IntP("machines", "n", 50, "machines")
	inLab(c, func(ctx context.Context, l *lab, r *benchReport, _ string) error {
		r.Settings["machines"] = *n
		return l.density(ctx, r, *n)
	})
	return c
}

// density restores n machines at once, has each answer, and reads the memory of each while all run.
func (l *lab) density(ctx context.Context, r *benchReport, n int) error {
	start := time.Now()
	machines, agents, errs := make([]vmm.Machine, n), make([]*client.Client, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			p, err := l.driver.Prepare(ctx, l.template, vmm.Attach{})
			if err == nil {
				machines[i], err = p.Restore(ctx)
			}
			var conn net.Conn
			if err == nil {
				conn, err = machines[i].DialGuest(ctx)
			}
			if err == nil {
				agents[i], err = introduceMachine(ctx, conn, machines[i].ID())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	r.Figures["all ready after s"] = time.Since(start).Seconds()
	for _, a := range agents {
		if a == nil {
			continue
		}
		at := time.Now()
		errs = append(errs, a.Ping(ctx))
		r.add("ping ms", time.Since(at))
	}
	for _, pid := range childrenOf(os.Getpid()) {
		private, pss := memoryOf(pid)
		if pss > 0 {
			r.Samples["private MiB"] = append(r.Samples["private MiB"], private)
			r.Samples["pss MiB"] = append(r.Samples["pss MiB"], pss)
		}
	}
	errs = append(errs, idle(ctx, r))
	at := time.Now()
	for i, m := range machines {
		wg.Go(func() {
			if m != nil {
				errs[i] = errors.Join(errs[i], m.Close())
			}
		})
	}
	wg.Wait()
	r.Figures["all closed after s"] = time.Since(at).Seconds()
	r.Figures["machines answering"] = float64(len(r.Samples["ping ms"]))
	return errors.Join(errs...)
}

func childrenOf(pid int) (list []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// memoryOf gives a process's private and proportional memory, in MiB.
func memoryOf(pid int) (private, pss float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0
	}
	field := func(name string) (n float64) {
		_, rest, _ := strings.Cut(string(b), "\n"+name+":")
		_, _ = fmt.Sscan(rest, &n)
		return n / 1024
	}
	return field("Private_Clean") + field("Private_Dirty"), field("Pss")
}
