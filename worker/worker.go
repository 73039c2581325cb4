// Package worker runs jobs on this host: it leases attempts from a dispatcher, takes a machine that is already restored out of a
// pool, runs the attempt's steps through the agent inside, streams the output while it runs, destroys the machine, and only then
// reports the result. Run is the place to start reading; attempt.go is the path of one attempt.
//
// It does not know how machines are made (vmm.Driver), where images come from, or what carries its messages: those are handed in.
// It imports jobs, vmm, guestagent/wire and guestagent/client, and never the dispatcher.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/forward"
)

// Dispatcher is the other end of the fleet's protocol.
type Dispatcher interface {
	Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error)
	Beat(ctx context.Context, b jobs.Beat) (jobs.BeatReply, error)
	Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error)
}

// Events takes what viewers shall see. Publish returns once all of them are stored, in order. Republish is for those that may be stored
// already, which it passes over.
type Events interface {
	Publish(ctx context.Context, events ...jobs.Event) error
	Republish(ctx context.Context, events ...jobs.Event) error
}

// Stdin takes a job's input from its viewers: from OpenStdin's return on none is lost. serve writes it into w until ctx ends, and closes w
// at the input's end.
type Stdin interface {
	OpenStdin(ctx context.Context, tenant, job string, w io.WriteCloser) (serve func(), err error)
}

// Objects stores what is too large for a message.
type Objects interface {
	GetObject(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error)
	PutObject(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error)
}

// Images gives templates of the images on this host, building what is missing. The digest names the template in results.
type Images interface {
	Offered() []jobs.OfferedImage
	// Offer is one of them, by its name; false where it is not there. It is asked for with every job.
	Offer(image string) (jobs.OfferedImage, bool)
	Template(ctx context.Context, image string, s jobs.Shape) (t vmm.Template, digest string, err error)
	// Templates are the shapes of which the templates are there, by image, as jobs.Beat tells them. It is asked for with every heartbeat.
	Templates() map[string][]jobs.Shape
	// Env is the environment that the image gives every program, "NAME=value".
	Env(image string) []string
}

// Config is what a Worker needs. Fields without a default named are required.
type Config struct {
	// Name is the worker's, unique in its fleet and the same after a restart.
	Name string
	// Pool is the pool of workers that it is in, and Labels what jobs may require of it.
	Pool   string
	Labels map[string]string
	// Version is the build's.
	Version string
	// Dir holds results that could not be reported yet, and files on their way into machines.
	Dir string

	Driver     vmm.Driver
	Caps       vmm.Caps
	Images     Images
	Dispatcher Dispatcher
	Events     Events
	Stdin      Stdin            // nil: jobs with stdin_stream get an empty input
	Objects    Objects          // nil: no objects in, no large artifacts out
	Snapshots  SnapshotRequests // nil: nobody can ask for a snapshot of a running job
	Resizes    ResizeRequests   // nil: nobody can resize a running job's machine
	Networks   Networks         // nil: no machine has a network card
	// Ports gives a listener on a port of this host, of those that may lead to machines; nil: none may.
	Ports func() (net.Listener, error)
	// PortsHTTP leads to the same ports of machines over HTTP; nil: nothing does.
	PortsHTTP *forward.Proxy

	// Capacity is what machines may use together. A vCPU is a slot: a machine of one vCPU takes one.
	Capacity jobs.Resources
	// Ready is how many restored machines a pool keeps at least, of an image's own shape; ReadyMost how many at most, of any shape, as
	// demand wants; it is Ready where it is less. Prepared is how many VMMs wait for a template's state where machines are kept ready.
	// Pools are of the images in Warm, and of what jobs have asked for.
	Ready, ReadyMost, Prepared int
	Warm                       []string
	// Short tells whether the host is short of memory: then machines that wait are ended and no job is taken. It is asked every two
	// seconds. Nil: never.
	Short func() bool
	// Makers is how many machines are made at once; 0 means one for each processor, for two where machines are emulated, at least one.
	Makers int

	// SpillEach and SpillAll are how many bytes of one attempt's output, and of all attempts' together, may wait on this host's disk while no
	// broker takes them; 0 means 64 MiB and 1 GiB. A program that prints more waits in its write.
	SpillEach, SpillAll int64

	// BeatEvery is 2 s, CancelGrace (SIGTERM to the machine's end) 5 s, GuestSlack (how long past a wall limit the host waits for
	// the guest to enforce it) 1.5 s, ReadyWithin (restore to the agent's answer) 60 s, PlaceWithin (for a place in the network) 30 s where
	// they are 0.
	BeatEvery, CancelGrace, GuestSlack, ReadyWithin, PlaceWithin time.Duration

	Registerer prometheus.Registerer // nil: no metrics
}

// Worker is one host's share of the fleet.
type Worker struct {
	cfg      Config
	instance string
	session  sessionState
	held     heldSet
	spills   *spills
	cap      *capacity
	pools    *pools
	metrics  metrics

	registered chan struct{}
}

// New checks the configuration; it starts nothing.
func New(cfg Config) (*Worker, error) {
	if cfg.Name == "" || cfg.Dir == "" || cfg.Driver == nil || cfg.Images == nil || cfg.Dispatcher == nil || cfg.Events == nil {
		return nil, errors.New("worker: Name, Dir, Driver, Images, Dispatcher and Events are required")
	}
	if cfg.Capacity.VCPUs < 1 || cfg.Capacity.MemoryMiB < 1 {
		return nil, fmt.Errorf("worker: capacity of %d vCPUs and %d MiB runs nothing", cfg.Capacity.VCPUs, cfg.Capacity.MemoryMiB)
	}
	defaultTo(&cfg.BeatEvery, 2*time.Second)
	defaultTo(&cfg.CancelGrace, 5*time.Second)
	defaultTo(&cfg.GuestSlack, 1500*time.Millisecond) // 128 processes take a second to die under TCG on a busy host
	defaultTo(&cfg.ReadyWithin, time.Minute)
	defaultTo(&cfg.PlaceWithin, 30*time.Second)
	for _, d := range []string{spoolDir(cfg.Dir), tempDir(cfg.Dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("worker: %w", err)
		}
	}
	spills, err := newSpills(spillDir(cfg.Dir), cfg.SpillEach, cfg.SpillAll)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	instance, err := instanceOf(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w := &Worker{cfg: cfg, instance: instance, spills: spills, cap: newCapacity(cfg.Capacity), metrics: newMetrics(cfg.Registerer), registered: make(chan struct{})}
	w.pools = newPools(cfg, &w.metrics)
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "paddock_machines_ready", Help: "Machines that wait in the pools, restored.",
		}, func() float64 { return float64(w.pools.readyCount()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "paddock_output_spilled_bytes", Help: "Output of running jobs that waits on disk for the broker.",
		}, func() float64 { return float64(w.spills.waiting()) }), w.pools)
	}
	return w, nil
}

func defaultTo(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

func tempDir(dir string) string { return filepath.Join(dir, "in") }

// Run works until drain is closed and all that it had leased has ended, or until ctx ends: then it ends its machines, tells the
// dispatcher that it did not finish them, and returns. It returns an error where it could not begin or lost its own ground.
func (w *Worker) Run(ctx context.Context, drain <-chan struct{}) error {
	spooled, err := w.readSpool(ctx)
	if err != nil {
		return err
	}
	resumed, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var attempts sync.WaitGroup
	w.resume(resumed, drain, spooled, &attempts) // before registering: the heartbeat names them
	if err := w.register(ctx); err != nil {
		giveUp()
		attempts.Wait()
		return err
	}
	close(w.registered)
	live, stop := context.WithCancel(context.WithoutCancel(ctx)) // beats and pools outlive the attempts
	g, live := errgroup.WithContext(live)
	g.Go(func() error { return w.beat(live, drain) })
	g.Go(func() error { return w.pools.run(live) })

	for leases := range w.leases(ctx, live, drain) {
		for _, l := range leases {
			attempts.Go(func() { w.runLease(ctx, drain, l) })
		}
	}
	attempts.Wait()
	stop()
	return g.Wait()
}

// Registered is closed when a dispatcher has taken the worker in.
func (w *Worker) Registered() <-chan struct{} { return w.registered }

// resume goes on to deliver what an earlier life could not, in that one's session: in another, its attempts would be taken for lost. Those of a life
// under another name are none of this worker's, and no heartbeat has them: the dispatcher is told how they ended, and says whether it is too late.
func (w *Worker) resume(ctx context.Context, drain <-chan struct{}, spooled []*delivery, attempts *sync.WaitGroup) {
	for _, d := range spooled {
		log := zerolog.Ctx(ctx).With().Str("job", d.Job).Int("attempt", d.Attempt).Logger()
		ctx := log.WithContext(ctx)
		if d.Worker != w.cfg.Name {
			log.Info().Str("worker", d.Worker).Msg("a result of when this worker had another name is reported")
			d.Worker, d.Session = w.cfg.Name, 0
			attempts.Go(func() { w.redeliver(ctx, ctx, drain, d) })
			continue
		}
		_, lost, end := w.held.add(ctx, d.Held, false)
		w.session.resume(d.Session)
		attempts.Go(func() {
			defer end()
			w.redeliver(ctx, lost, drain, d)
		})
	}
}

// actsTwice tells whether what a job does could be done twice if its machine outlived its lease: it can do more than report, and another
// attempt may follow one that was lost.
func actsTwice(s *jobs.Spec) bool {
	return len(s.Network.Needs()) > 0 && (s.InfraRetries == nil || *s.InfraRetries > 0)
}

// runLease is one attempt from lease to report.
func (w *Worker) runLease(ctx context.Context, drain <-chan struct{}, l jobs.Lease) {
	log := zerolog.Ctx(ctx).With().Str("job", l.Job).Int("attempt", l.Attempt).Str("tenant", l.Tenant).Logger()
	ctx = log.WithContext(ctx)
	work, lost, end := w.held.add(ctx, l.Held, actsTwice(&l.Spec))
	defer end()
	defer w.cap.release(l.Spec.Resources)
	a := w.attempt(ctx, l)
	go a.events.run(lost) // until deliver ends them
	result := a.run(work)
	w.held.rests(l.Held)
	if !dropped(lost) { // else nobody will hear of it
		w.metrics.ended(result)
	}
	w.deliver(ctx, lost, drain, a.events, jobs.Report{Held: l.Held, Result: result})
}
