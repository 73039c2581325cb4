package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/images/build"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

func upCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "up", Short: "Start everything in one process: NATS, dispatcher, worker", Args: arguments(0, 0),
		Long: "Starts an embedded NATS server, a dispatcher and a worker, and builds the images that are missing.\n" +
			"SIGINT or SIGTERM lets running jobs end; a second one ends them.",
	}
	flags := addConfigFlags(c, forDispatcher|forWorker)
	c.RunE = func(*cobra.Command, []string) error { return serve(flags, forDispatcher|forWorker) }
	return c
}

func dispatcherCommand() *cobra.Command {
	c := &cobra.Command{Use: "dispatcher", Short: "Start a dispatcher, with NATS or on an external one", Args: arguments(0, 0)}
	flags := addConfigFlags(c, forDispatcher)
	c.RunE = func(*cobra.Command, []string) error { return serve(flags, forDispatcher) }
	return c
}

func workerCommand() *cobra.Command {
	c := &cobra.Command{Use: "worker", Short: "Start a worker on this host", Args: arguments(0, 0), Example: "  paddock worker --nats nats://dispatcher.example:4222"}
	flags := addConfigFlags(c, forWorker)
	c.RunE = func(*cobra.Command, []string) error { return serve(flags, forWorker) }
	return c
}

// serve runs the parts until a signal or until one of them fails.
func serve(flags *configFlags, which parts) (err error) {
	c, printed, err := flags.load()
	if err != nil || printed {
		return err
	}
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil {
		return err
	}
	log := zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: time.TimeOnly, NoColor: !fancy(os.Stderr)}).Level(level).With().Timestamp().Logger()
	ctx, abort := context.WithCancelCause(log.WithContext(context.Background()))
	defer abort(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer signal.Stop(signals)
	unread := make(chan os.Signal, 1)
	signal.Notify(unread, syscall.SIGPIPE) // and not ignored, which programs that are started would inherit
	defer signal.Stop(unread)
	if err := c.absolute(); err != nil {
		return err
	}
	release, err := lockState(c.StateDir, which)
	if err != nil {
		return err
	}
	defer release()
	drain := make(chan struct{})
	go onSignals(ctx, signals, drain, abort)

	// Until it is ready there is nothing to drain: the first signal ends what is being built.
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-drain:
			cancel(errStopped)
		case <-starting.Done():
		}
	}()
	s := &server{config: c, registry: prometheus.NewRegistry(), drain: drain}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	err = s.run(ctx, starting, which)
	if errors.Is(err, errStopped) || errors.Is(context.Cause(ctx), errAborted) {
		return nil
	}
	return err
}

var (
	errStopped = errors.New("stopped while starting")
	errAborted = errors.New("second signal")
)

// onSignals lets the first signal drain and the second abort. A terminal that closes may say so more than once: its shell does, and the kernel.
func onSignals(ctx context.Context, signals <-chan os.Signal, drain chan struct{}, abort context.CancelCauseFunc) {
	for draining := false; ; draining = true {
		var got os.Signal
		select {
		case <-ctx.Done():
			return
		case got = <-signals:
		}
		if draining && got == syscall.SIGHUP {
			continue
		}
		if draining {
			abort(errAborted)
			return
		}
		say("stopping; running jobs are let end, a second signal ends them")
		close(drain)
	}
}

// server is one process's parts.
type server struct {
	config   config
	registry *prometheus.Registry
	drain    chan struct{}
}

// buildImages builds the configured images that the store does not have in this version.
func (s *server) buildImages(ctx context.Context, store *images.Store) error {
	agent, err := agentPath(s.config.Agent)
	if err != nil {
		return err
	}
	p := newProgress()
	defer p.done()
	for _, name := range s.config.Images {
		_, have := store.Get(name)
		if have == nil && !isMachine(s.config.Driver) {
			continue // nothing of it is booted: any will do
		}
		r, err := images.ShippedRecipe(name)
		if err != nil {
			if have == nil {
				continue // one of the operator's own
			}
			return err
		}
		_, err = build.Image(ctx, store, r, build.Options{Agent: agent, Progress: func(stage, detail string) { p.stage("image %s: %s %s", name, stage, detail) }})
		if err != nil {
			return err
		}
	}
	return nil
}

// run starts the parts and waits for their end: the worker first, when it is to drain, then what it needs.
func (s *server) run(ctx, starting context.Context, which parts) error {
	c := s.config
	b, url, closeBus, err := connectBus(starting, c, c.Name, which)
	if starting.Err() != nil && err != nil {
		return context.Cause(starting)
	}
	if err != nil {
		return err
	}
	defer closeBus()
	g, gctx := errgroup.WithContext(ctx)
	serving, stop := context.WithCancel(gctx) // what the worker needs, until it has ended
	if err := s.serveMetrics(serving, g); err != nil {
		stop()
		return err
	}
	if which&forDispatcher != 0 {
		f, err := openFront(starting, c, b, s.registry)
		if err != nil {
			stop()
			if starting.Err() != nil {
				err = context.Cause(starting)
			}
			return err
		}
		defer f.store.Close() //nolint:errcheck // everything is committed
		if err := s.serveHTTP(serving, g, b); err != nil {
			stop()
			return err
		}
		g.Go(func() error { return serveCallout(serving, c) }) // also of one that stands by
		ready := sync.OnceFunc(func() {
			if which&forWorker == 0 { // else it is the worker that is waited for
				say("ready: dispatcher on %s", url)
			}
		})
		g.Go(func() error {
			return dispatcher.Lead(serving, f.cfg, holder(), func(ctx context.Context, d *dispatcher.Dispatcher) error {
				return s.serveTerm(ctx, b, &brain{d, f.hooks}, f.old, ready)
			})
		})
	}
	if which&forWorker != 0 {
		err = s.work(gctx, starting, g, b, stop, url)
	} else {
		g.Go(func() error {
			defer stop()
			select {
			case <-s.drain:
			case <-gctx.Done():
			}
			return nil
		})
	}
	if err != nil {
		g.Go(func() error { return err }) // the group keeps the first error: what the others say when they are stopped for it is no news
	}
	return g.Wait()
}

// serveTerm serves a dispatcher while it leads.
func (s *server) serveTerm(ctx context.Context, b *bus.Bus, d *brain, old *objects.Collector, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.ServeDispatcher(ctx, d, ready) })
	g.Go(func() error { return d.hooks.Run(ctx) })
	g.Go(func() error { return old.Run(ctx) })
	g.Go(func() error { return serveRedis(ctx, s.config.redisConfig, d, s.registry) })
	return g.Wait()
}

// holder is this process to the other dispatchers of its fleet, and to people.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return fmt.Sprintf("%s (process %d)", host, os.Getpid())
}

// work starts the worker; when it ends, what it needed is stopped.
func (s *server) work(ctx, starting context.Context, g *errgroup.Group, b *bus.Bus, stop context.CancelFunc, url string) error {
	p := newProgress()
	store, err := openStore(s.config.ImageDir)
	if err != nil {
		return err
	}
	here, err := openWorker(ctx, s.config, store, b, s.registry, func(image, stage string) { p.stage("template %s: %s", image, stage) })
	if err != nil {
		return err
	}
	if err := s.buildImages(starting, store); err != nil { // which takes minutes: what this host lacks has been said by now
		return errors.Join(err, here.Close())
	}
	for _, image := range s.config.Images {
		if _, _, err := here.images.Template(starting, image, jobs.Shape{}); err != nil {
			p.done()
			return errors.Join(err, here.Close())
		}
	}
	p.done()
	running, halt := context.WithCancelCause(ctx)
	g.Go(func() error { return here.retention.Run(running) })
	g.Go(func() error {
		defer stop()
		defer halt(nil)
		err := here.worker.Run(running, s.drain)
		return errors.Join(err, here.Close())
	})
	select {
	case <-here.worker.Registered():
		say("ready: jobs are taken on %s; try: %s", url, tryLine(url))
	case <-running.Done():
	case <-starting.Done():
		halt(context.Cause(starting)) // no dispatcher has answered: there is nothing to let end
	}
	return nil
}

// tryLine is a command that works with the server as it was started.
func tryLine(url string) string {
	if url == client.DefaultURL {
		return "paddock run hello.py"
	}
	return "paddock run --nats " + url + " hello.py"
}

// serveMetrics serves /metrics and /healthz.
func (s *server) serveMetrics(ctx context.Context, g *errgroup.Group) error {
	if s.config.MetricsListen == "" {
		return nil
	}
	l, err := net.Listen("tcp", s.config.MetricsListen)
	if err != nil {
		return fmt.Errorf("metrics: %w; another address is given with --metrics-listen", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("metrics: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return h.Close()
	})
	return nil
}
