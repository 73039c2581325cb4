package main

// This file is where concrete types meet: the only place that knows which driver, which ledger, which bus.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostproc"
	"github.com/paddockvm/paddock/vmm/inproc"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/worker"
	"github.com/paddockvm/paddock/worker/forward"
	"github.com/paddockvm/paddock/worker/host"
	"github.com/paddockvm/paddock/worker/jail"
	"github.com/paddockvm/paddock/worker/jail/stub"
)

// connectBus starts the embedded NATS server, where the configuration has one, and connects.
func connectBus(ctx context.Context, c config, name string, which parts) (_ *bus.Bus, url string, closeAll func(), err error) {
	log := *zerolog.Ctx(ctx)
	cfg := c.client(c.NATS)
	cfg.Name, cfg.Log, cfg.Spool = name, log, spoolDir(c.StateDir)
	if err := os.MkdirAll(cfg.Spool, 0o700); err != nil {
		return nil, "", nil, fmt.Errorf("state directory: %w", err)
	}
	cfg.EventsAge, cfg.EventsBytes = c.EventsKeep, int64(c.EventsGiB)<<30
	if which == forWorker {
		cfg.Worker = name
	} else if cfg.S3, err = c.s3(c.StateDir); err != nil {
		return nil, "", nil, err
	}
	closeAll = func() {}
	if c.Listen != "" {
		own, err := c.embed(c.Listen, c.StateDir, c.LazySync, log)
		if err != nil {
			return nil, "", nil, err
		}
		s, err := bus.Embed(own) //nolint:contextcheck // it lives as long as the server
		if err != nil {
			return nil, "", nil, err
		}
		cfg.Server, closeAll = s, s.Close
		url = s.URL()
	} else if c.NATS == "" {
		return nil, "", nil, errors.New("no NATS server: say where the dispatcher's is with --nats URL or PADDOCK_NATS")
	} else if url, err = jobs.Servers(c.NATS); err != nil { // to be shown
		return nil, "", nil, err
	}
	b, err := bus.Connect(ctx, cfg)
	if err != nil {
		closeAll()
		if cfg.Server == nil {
			err = fmt.Errorf("%w; is a dispatcher, or a NATS server with JetStream, running there?", err)
		}
		return nil, "", nil, err
	}
	closeServer := closeAll
	return b, url, func() { b.Close(); closeServer() }, nil
}

// front is what a process that may lead has before it does.
type front struct {
	cfg   dispatcher.Config
	hooks *webhook.Service
	store ledger.Store
	old   *objects.Collector
}

// openFront opens the ledger, and what works on it. ctx bounds that alone: a database may be there and say nothing.
func openFront(ctx context.Context, c config, b *bus.Bus, r prometheus.Registerer) (*front, error) {
	quotas, err := readQuotas(c.Quotas)
	if err != nil {
		return nil, err
	}
	store, err := openLedger(ctx, c.Ledger, c.StateDir)
	if err != nil {
		return nil, err
	}
	hooks, err := openWebhooks(c.webhookConfig, store, c.KeepEnded, r)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if r != nil {
		r.MustRegister(b.Collector())
	}
	old := objects.NewCollector(b.Objects(), store.NamedObjects, c.ObjectsKeep, r)
	return &front{hooks: hooks, store: store, old: old, cfg: dispatcher.Config{
		Store: store, Events: b, LeaseTTL: c.LeaseTTL, Grace: c.LeaseGrace, MaxQueued: c.MaxQueued, Quotas: quotas, KeepEnded: c.KeepEnded,
		Callback: hooks.CheckURL, Connected: b.Connected, Peers: b, Registerer: r,
	}}, nil
}

// openDriver gives the driver that the configuration names, and what it can do here.
func openDriver(ctx context.Context, c config) (vmm.Driver, vmm.Caps, func() error, error) {
	run := filepath.Join(c.StateDir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, vmm.Caps{}, nil, err
	}
	if c.Driver == "auto" {
		return chooseDriver(ctx, c, run)
	}
	return openNamed(ctx, c, run)
}

func openNamed(ctx context.Context, c config, run string) (d vmm.Driver, caps vmm.Caps, closeDriver func() error, err error) {
	closeDriver = func() error { return nil }
	switch c.Driver {
	case "cloud-hypervisor":
		if d, closeDriver, err = openCloudHypervisor(c, run); err != nil { //nolint:contextcheck // the jail is tried for milliseconds
			return nil, caps, nil, err
		}
	case "qemu":
		launcher, closeLauncher, err := openLauncher(c) //nolint:contextcheck // the jail is tried for milliseconds
		if err != nil {
			return nil, caps, nil, err
		}
		q, err := qemu.New(qemu.Config{
			Binary: c.QEMU, RunDir: run, Launcher: launcher, Accel: c.Accel, Channel: c.QEMUChannel, Disk: diskLimits(c), ProbeTimeout: c.ProbeTimeout, StepTimeout: c.StepTimeout,
		})
		if err != nil {
			return nil, caps, nil, errors.Join(err, closeLauncher())
		}
		d, closeDriver = q, func() error { return errors.Join(q.Close(), closeLauncher()) }
	case "hostproc":
		agent, err := agentPath(c.Agent)
		if err != nil {
			return nil, caps, nil, err
		}
		if d, err = hostproc.New(hostproc.Config{Agent: agent, RunDir: run, Insecure: c.Insecure}); err != nil {
			return nil, caps, nil, err
		}
	case "inproc":
		if !c.Insecure {
			return nil, caps, nil, errors.New("the driver inproc runs no program in a machine; it is for measuring, and wants --insecure-no-isolation")
		}
		d = inproc.New(func(ctx context.Context, conn net.Conn) { guestagent.InProcess(ctx, conn) })
	default:
		return nil, caps, nil, fmt.Errorf("driver %q: want auto, cloud-hypervisor, qemu, hostproc or inproc", c.Driver)
	}
	caps, err = d.Probe(ctx)
	if err != nil {
		return nil, caps, nil, errors.Join(fmt.Errorf("driver %s: %w", c.Driver, err), closeDriver())
	}
	return d, caps, closeDriver, nil
}

// openLauncher gives what VMMs are started with. Where the jail cannot be had, that is an error and not a quiet loss.
func openLauncher(c config) (vmm.Launcher, func() error, error) {
	if c.Jail == "off" {
		return vmm.Direct{}, func() error { return nil }, nil
	}
	if c.Jail != "on" {
		return nil, nil, fmt.Errorf("jail %q: want on or off", c.Jail)
	}
	first, count, err := uidRange(cmp.Or(c.JailUIDs, defaultUIDs))
	if err != nil {
		return nil, nil, fmt.Errorf("jail_uids: want %w", err)
	}
	memory, overcommit := machineMemory(c)
	l, err := jail.New(jail.Config{
		Self: []string{"/proc/self/exe", stub.Command}, UIDBase: first, UIDCount: count, CgroupParent: c.CgroupParent, MemoryBytes: memory, Overcommit: overcommit,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w; --jail off starts VMMs without walls of their own", err)
	}
	if lacks := l.Lacks(); c.JailRequire == "full" && len(lacks) > 0 {
		var why []string
		for _, lack := range lacks {
			why = append(why, fmt.Sprintf("%s (%s; %s)", lack.Name, lack.Why, jailAdvice(lack.Name)))
		}
		return nil, nil, errors.Join(fmt.Errorf("jail_require is full, and this host lacks %s", strings.Join(why, ", ")), l.Close())
	}
	return l, l.Close, nil
}

// site is what a worker works with on this host.
type site struct {
	driver   vmm.Driver
	caps     vmm.Caps
	capacity jobs.Resources
	ports    func() (net.Listener, error) // nil: none is forwarded
	proxy    *forward.Proxy               // nil: not over HTTP
	networks *networks                    // nil: no machine has one
	closers  []func() error
}

// openSite opens it all. The caller closes it, when the worker has ended.
func openSite(ctx context.Context, c config, r prometheus.Registerer) (_ *site, err error) {
	s := &site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.capacity, err = capacityOf(c); err != nil {
		return s, err
	}
	if err := checkUIDs(c, s.capacity); err != nil {
		return s, err
	}
	if s.ports, err = portsOf(c); err != nil {
		return s, err
	}
	proxy, closeProxy, err := openProxy(ctx, c)
	if err != nil {
		return s, err
	}
	s.proxy, s.closers = proxy, append(s.closers, closeProxy)
	driver, caps, closeDriver, err := openDriver(ctx, c)
	if err != nil {
		return s, err
	}
	s.driver, s.caps, s.closers = driver, caps, append(s.closers, closeDriver)
	nets, closeNetworks, err := openNetworks(ctx, c, r)
	if err != nil {
		return s, err
	}
	s.networks, s.closers = nets, append(s.closers, closeNetworks)
	if r != nil {
		r.MustRegister(host.Reader{})
	}
	return s, nil
}

// Close closes all, what was opened last first.
func (s *site) Close() error {
	var errs []error
	for _, closer := range slices.Backward(s.closers) {
		errs = append(errs, closer())
	}
	return errors.Join(errs...)
}

// images are the host's, of a store.
func (s *site) images(store *images.Store, progress func(image, stage string)) *images.Host {
	h := &images.Host{Store: store, Driver: s.driver, Caps: s.caps, Progress: progress}
	if s.networks != nil {
		h.Tap = s.networks.tap
	}
	return h
}

// workplace is a worker, and what it leaves to others on its host: to be closed when it has ended.
type workplace struct {
	*site
	worker    *worker.Worker
	images    *images.Host
	retention *images.Retention
}

func openWorker(ctx context.Context, c config, store *images.Store, b *bus.Bus, r prometheus.Registerer, progress func(image, stage string)) (*workplace, error) {
	s, err := openSite(ctx, c, r)
	if err != nil {
		return nil, err
	}
	here := s.images(store, progress)
	if here.Snapshots, err = store.Snapshots(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	labels, err := workerLabels(c.Labels)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	cfg := worker.Config{
		Name: c.Name, Pool: c.Pool, Labels: labels, Version: version, Dir: filepath.Join(c.StateDir, "worker"), Driver: s.driver, Caps: s.caps, Images: here,
		Dispatcher: b, Events: b, Stdin: b, Objects: b, Snapshots: b, Resizes: b, Capacity: s.capacity, Ports: s.ports, PortsHTTP: s.proxy,
		Ready: c.Ready, ReadyMost: c.ReadyMost, Prepared: c.Prepared, Warm: c.Images, Registerer: r,
		Short: host.MemoryWatch{LeastMiB: c.ReserveMemoryMiB / 2}.Short,
	}
	if s.networks != nil {
		cfg.Networks = s.networks
	}
	w, err := worker.New(cfg)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &workplace{site: s, worker: w, images: here, retention: images.NewRetention(here.Snapshots, c.policy(), r)}, nil
}

// agentPath finds the agent's binary: named, beside this one, or in PATH.
func agentPath(named string) (string, error) {
	if named != "" {
		if _, err := os.Stat(named); err != nil {
			return "", fmt.Errorf("--agent: %w; `make build` makes one", err)
		}
		return filepath.Abs(named)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "paddock-agent")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	p, err := exec.LookPath("paddock-agent")
	if err != nil {
		return "", errors.New("no paddock-agent beside this program or in PATH: `make build` makes it, --agent names it")
	}
	return filepath.Abs(p)
}

// lockState keeps a second server's same part off a state directory, and says who has it.
func lockState(dir string, which parts) (release func(), _ error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("state directory: %w; another is given with --state-dir", err)
	}
	var held []*os.File
	release = func() {
		for _, f := range held {
			_ = f.Close()
		}
	}
	for part, name := range map[parts]string{forDispatcher: "dispatcher.lock", forWorker: "worker.lock"} {
		if which&part == 0 {
			continue
		}
		f, err := lockFile(filepath.Join(dir, name))
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, f)
	}
	return release, nil
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; another is given with --state-dir", err)
	}
	if err := flock(f); err != nil {
		b, _ := os.ReadFile(name)
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use by process %s; stop that, or choose another --state-dir", filepath.Dir(name), strings.TrimSpace(string(b)))
	}
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // for people only
	return f, nil
}
