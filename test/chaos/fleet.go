package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/Shopify/toxiproxy/v2"

	"github.com/paddockvm/paddock/test/pgtest"
)

const (
	nodeCount   = 3
	workerCount = 3
	// leaseTTL and leaseGrace are short, so that faults are longer than they are.
	leaseTTL   = 4 * time.Second
	leaseGrace = time.Second
	// diskMiB is what each process has for its state where that is a mount of its own.
	diskMiB = 192
)

// fleet is all that runs besides this process.
type fleet struct {
	cfg                         *Config
	host                        string // an address of loopback that is this fleet's alone: what is killed can listen again where it did
	nodes, dispatchers, workers []*process
	redis                       *process // nil: there is none on this host
	postgres                    *process // nil: the ledger is in a file. Of the process there is the name only; database is what is hurt
	database                    *pgtest.Server
	links                       []*link
	proxies                     *toxiproxy.ApiServer
	lastPort                    int     // that was given out
	routes                      []int   // the ports where nodes reach each other, past the proxies
	clocks                      *clocks // nil: all have this host's
	journal                     *journal
	hooks                       *receiver
	mounts                      []string
	ledgerDriver, ledgerName    string // database/sql's
	nats                        string // the nodes' addresses, past the proxies
}

// startFleet starts everything and waits until it is of use. After an error, too, the caller stops it.
func startFleet(ctx context.Context, cfg *Config, hooks *receiver, clocks *clocks) (f *fleet, err error) {
	f = &fleet{
		cfg: cfg, hooks: hooks, clocks: clocks, proxies: newProxies(), lastPort: firstPort,
		host: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)),
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "log"), 0o755); err != nil {
		return f, err
	}
	if f.journal, err = openJournal(f.socket()); err != nil {
		return f, err
	}
	if err := f.plan(); err != nil {
		return f, err
	}
	for _, group := range [][]*process{f.nodes, f.dispatchers, f.workers} {
		for i, p := range group {
			if err := p.start(); err != nil {
				return f, err
			}
			if i == 0 && p.standsBy {
				if err := p.await(ctx); err != nil { // this one leads first
					return f, err
				}
			}
		}
		for _, p := range group {
			if p.standsBy {
				break
			}
			if err := p.await(ctx); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

func (f *fleet) socket() string { return filepath.Join(f.cfg.Dir, "journal") }

// program is the binary that jobs run.
func (f *fleet) program() string { return filepath.Join(f.cfg.Dir, "program") }

// plan makes the processes and the proxies between them, and starts what is not ours: Redis.
func (f *fleet) plan() (err error) {
	if err := f.planNodes(); err != nil {
		return err
	}
	if f.redis, err = f.planRedis(); err != nil {
		return err
	}
	if f.cfg.Ledger == ledgerPostgres {
		f.postgres = &process{name: "postgres"}
		if f.database, err = pgtest.Open(); err != nil {
			return err
		}
	}
	quotas := filepath.Join(f.cfg.Dir, "quotas.yaml")
	if err := os.WriteFile(quotas, []byte(quotasFile(f.cfg.Width)), 0o644); err != nil {
		return err
	}
	for i := range f.dispatcherCount() {
		if err := f.planDispatcher(fmt.Sprintf("dispatcher-%d", i+1), quotas); err != nil {
			return err
		}
	}
	for i := range workerCount {
		p, err := f.planWorker(fmt.Sprintf("worker-%d", i+1))
		if err != nil {
			return err
		}
		p.argv = append(p.argv, "--driver", "hostproc", "--insecure-no-isolation",
			"--vcpus", strconv.Itoa(8*f.cfg.Width), "--memory-mib", "65536", "--ready", "1", "--ready-most", strconv.Itoa(4*f.cfg.Width), "--prepared", "1")
	}
	if f.cfg.Machines > 0 {
		return f.planMachines()
	}
	return nil
}

// planWorker makes a worker; its driver and what it has room for are to be said.
func (f *fleet) planWorker(name string) (*process, error) {
	p, err := f.member(name, "worker", "ready: jobs are taken")
	if err != nil {
		return nil, err
	}
	p.argv = append(p.argv, "--name", p.name, "--images", "base", "--image-dir", f.cfg.Images, "--network", "off", "--ports", "", "--reserve-memory-mib", "64",
		"--agent", filepath.Join(f.cfg.Bin, "paddock-agent"))
	f.workers = append(f.workers, p)
	return p, nil
}

func (f *fleet) dispatcherCount() int {
	if f.database != nil {
		return 2
	}
	return 1
}

// planDispatcher makes a dispatcher, whose ledger is a file of its own, or in the database that it reaches through a proxy.
func (f *fleet) planDispatcher(name, quotas string) error {
	p, err := f.member(name, "dispatcher", "ready: dispatcher")
	if err != nil {
		return err
	}
	p.argv = append(p.argv, "--listen", "", "--lease-ttl", leaseTTL.String(), "--lease-grace", leaseGrace.String(), "--quotas", quotas,
		"--webhook-http", "--webhook-allow", "127.0.0.0/8", "--webhook-ports", fmt.Sprint(f.hooks.port()))
	if f.redis != nil {
		p.argv = append(p.argv, "--redis", "redis://"+f.redis.addr, "--redis-tenant", "t0")
	}
	f.ledgerDriver, f.ledgerName = "sqlite", "file:"+filepath.Join(p.dir, "ledger.db")+"?mode=ro&_pragma=busy_timeout(10000)"
	if f.database != nil {
		at, err := f.link(name, f.postgres.name, f.database.Addr())
		if err != nil {
			return err
		}
		f.ledgerDriver, f.ledgerName, p.standsBy = "pgx", f.database.URL("postgres"), true
		p.argv = append(p.argv, "--ledger", strings.Replace(f.ledgerName, f.database.Addr(), f.address(at), 1))
	}
	f.dispatchers = append(f.dispatchers, p)
	return nil
}

// newProcess gives a process with a log, and a state directory that is a mount of its own where this process may mount.
func (f *fleet) newProcess(name, ready string) (*process, error) {
	p := &process{name: name, ready: ready, log: filepath.Join(f.cfg.Dir, "log", name), dir: filepath.Join(f.cfg.Dir, name)}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return p, nil
	}
	if err := syscall.Mount("chaos", p.dir, "tmpfs", 0, fmt.Sprintf("size=%dm", diskMiB)); err != nil {
		return nil, fmt.Errorf("mount %s: %w", p.dir, err)
	}
	f.mounts = append(f.mounts, p.dir)
	p.mounted = true
	return p, nil
}

// planNodes makes the NATS cluster of this process's own program, or of one whose clock can be stepped. Each node knows the proxies by which it reaches the others, and tells of
// itself an address where nobody listens: a server hears from others where servers are, and would go there past the proxies.
func (f *fleet) planNodes() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if f.clocks != nil {
		program = filepath.Join(f.cfg.Stepped, steppedNode)
	}
	var clients []int
	for range nodeCount {
		clients, f.routes = append(clients, f.port()), append(f.routes, f.port())
	}
	for i := range nodeCount {
		p, err := f.newProcess(fmt.Sprintf("nats-%d", i+1), nodeReady)
		if err != nil {
			return err
		}
		if p.env, err = f.clocks.add(p.name); err != nil {
			return err
		}
		var via []int
		for other := range nodeCount {
			if other == i {
				continue
			}
			at, err := f.link(p.name, fmt.Sprintf("nats-%d", other+1), f.address(f.routes[other]))
			if err != nil {
				return err
			}
			via = append(via, at)
		}
		p.addr = f.address(clients[i])
		p.argv = []string{
			program, NodeArg, "--name", p.name, "--host", f.host, "--port", fmt.Sprint(clients[i]), "--cluster", fmt.Sprint(f.routes[i]), "--advertise", f.address(f.port()),
			"--routes", f.urls(via), "--store", p.dir,
		}
		f.nodes = append(f.nodes, p)
	}
	f.nats = f.urls(clients)
	return nil
}

// pastProxies finds servers that have connected to each other otherwise than by the proxies: nothing would be between them that is cut.
func (f *fleet) pastProxies() (l []string) {
	for _, n := range f.nodes {
		b, err := os.ReadFile(n.log)
		if err != nil {
			l = append(l, err.Error())
		}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			for _, port := range f.routes {
				if strings.Contains(s.Text(), f.address(port)+" ") && strings.Contains(s.Text(), "Route connection created") {
					l = append(l, n.name+" has gone past the proxies: "+s.Text())
				}
			}
		}
	}
	return l
}

// member makes a dispatcher or a worker, and the proxies by which it reaches the nodes.
func (f *fleet) member(name, command, ready string) (*process, error) {
	p, err := f.newProcess(name, ready)
	if err != nil {
		return nil, err
	}
	if p.env, err = f.clocks.add(name); err != nil {
		return nil, err
	}
	var via []int
	for _, node := range f.nodes {
		at, err := f.link(name, node.name, node.addr)
		if err != nil {
			return nil, err
		}
		via = append(via, at)
	}
	bin := f.cfg.Bin
	if f.clocks != nil {
		bin = f.cfg.Stepped
	}
	p.argv = []string{filepath.Join(bin, "paddock"), command, "--state-dir", p.dir, "--metrics-listen", "", "--nats", f.urls(via)}
	return p, nil
}

// link puts a proxy between two processes, and gives the port where the first reaches the second.
func (f *fleet) link(from, to, upstream string) (port int, err error) {
	port = f.port()
	l := &link{from: from, to: to, addr: f.address(port), upstream: upstream, s: f.proxies}
	if err := l.open(); err != nil {
		return 0, err
	}
	f.links = append(f.links, l)
	return port, nil
}

// port gives one that nobody has.
func (f *fleet) port() int { f.lastPort++; return f.lastPort }

// planRedis makes a Redis where the host has one. What it has acknowledged it has written, so that a crash of it alone loses nothing.
func (f *fleet) planRedis() (*process, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // the run says what it had
	}
	p, err := f.newProcess("redis", "Ready to accept connections")
	if err != nil {
		return nil, err
	}
	port := f.port()
	p.addr = f.address(port)
	p.argv = []string{bin, "--bind", f.host, "--port", fmt.Sprint(port), "--dir", p.dir, "--save", "", "--appendonly", "yes", "--logfile", ""}
	return p, p.start()
}

// processes are all.
func (f *fleet) processes() []*process {
	all := slices.Concat(f.nodes, f.dispatchers, f.workers)
	if f.redis != nil {
		all = append(all, f.redis)
	}
	return all
}

// linksOf are the proxies that a process connects through.
func (f *fleet) linksOf(name string) (l []*link) {
	for _, k := range f.links {
		if k.from == name {
			l = append(l, k)
		}
	}
	return l
}

// stop ends everything: workers first, as an operator would. It is for a fleet that is whole, and for one that never came to be.
func (f *fleet) stop() error {
	var errs []error
	for _, group := range [][]*process{f.workers, f.dispatchers, f.nodes, {f.redis}} {
		for _, p := range group {
			if p != nil {
				p.signal(syscall.SIGCONT)
				errs = append(errs, p.stop())
			}
		}
	}
	for _, l := range f.links {
		l.cut()
	}
	if f.database != nil {
		errs = append(errs, f.database.Close())
	}
	if f.journal != nil {
		errs = append(errs, f.journal.close())
	}
	for _, m := range f.mounts {
		if err := syscall.Unmount(m, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err), syscall.Unmount(m, syscall.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

func (f *fleet) address(port int) string { return fmt.Sprintf("%s:%d", f.host, port) }

func (f *fleet) urls(ports []int) string {
	var l []string
	for _, p := range ports {
		l = append(l, "nats://"+f.address(p))
	}
	return strings.Join(l, ",")
}

// firstPort is the first that is given out; those after it follow.
const firstPort = 12_000
