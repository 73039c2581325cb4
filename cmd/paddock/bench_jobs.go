package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// benchServer is a `paddock up` of the measurement's own: this program, with a state directory that goes with it.
type benchServer struct {
	url string
	dir string
	cmd *exec.Cmd
}

// startServer starts one and waits until it takes jobs. Images and templates are the usual store's.
func startServer(c *cobra.Command, driver string, args ...string) (_ *benchServer, err error) {
	s := &benchServer{}
	if s.dir, err = os.MkdirTemp(benchDir(), "pd-bench-"); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	_ = l.Close()
	s.url = "nats://" + addr
	all := append([]string{"up", "--state-dir", s.dir, "--listen", addr, "--metrics-listen", "", "--driver", driver, "--log-level", "warn"}, args...)
	if driver != "qemu" {
		all = append(all, "--insecure-no-isolation")
	}
	s.cmd = exec.CommandContext(c.Context(), "/proc/self/exe", all...)
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	said, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(said)
	var all2 []string
	for lines.Scan() {
		all2 = append(all2, lines.Text())
		if strings.HasPrefix(lines.Text(), "paddock: ready") {
			go io.Copy(os.Stderr, said) //nolint:errcheck // what it says later is for the person who measures
			return s, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("the server did not start:\n%s", strings.Join(all2, "\n")), s.stop())
}

// benchDir is on a real disk: what is measured is durable.
func benchDir() string {
	if dir := os.Getenv("PADDOCK_BENCH_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

func (s *benchServer) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	return errors.Join(s.cmd.Wait(), os.RemoveAll(s.dir))
}

// usage gives the processor time that the server and its children have used; valid after stop.
func (s *benchServer) usage() time.Duration {
	return s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime()
}

func benchThroughput() *cobra.Command {
	c := &cobra.Command{
		Use: "throughput", Short: "Jobs per second through the whole durable path, none lost, none doubled", Args: cobra.NoArgs,
		Long: "Submits jobs over NATS, keeps a number of them in flight, and counts their final events. The drivers inproc and hostproc leave the\n" +
			"machine out: what is left is the cost of everything else. With inproc there is beside it, on a server that is started anew in the same way: as\n" +
			"many messages through a stream of JetStream's alone, each stored, fetched and acknowledged, as many in flight.",
	}
	driver := c.Flags().String("driver", "inproc", "inproc, hostproc or qemu")
	n := c.Flags().IntP("jobs", "n", 5000, "jobs")
	width := c.Flags().IntP("concurrency", "c", 128, "jobs in flight")
	slots := c.Flags().Int("slots", 0, "jobs that run at once (64 for inproc, 4 for hostproc, as many as processors for qemu)")
	postgres := c.Flags().String("ledger", "", "PostgreSQL database that keeps the ledger, as a URL; its own file without")
	out := benchOutput(c)
	imageDir := c.Flags().String("image-dir", filepath.Join(defaultStateDir(), "images"), "image store")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *slots == 0 {
			*slots = map[string]int{"inproc": 64, "hostproc": 4, "qemu": describeHost().CPUs}[*driver]
		}
		args := []string{"--vcpus", fmt.Sprint(*slots), "--ready", fmt.Sprint(*slots), "--prepared", "0", "--image-dir", *imageDir, "--images", "base", "--ledger", *postgres}
		if *driver != "qemu" { // whose machines have no memory of their own
			args = append(args, "--memory-mib", fmt.Sprint(*slots*1024))
		}
		s, err := startServer(c, *driver, args...)
		if err != nil {
			return err
		}
		r := newReport("throughput")
		r.Settings = map[string]any{"driver": *driver, "jobs": *n, "in flight": *width, "slots": *slots, "ledger": ledgerKind(*postgres)}
		cmd := "true"
		if *driver != "inproc" {
			cmd = "/bin/true"
		}
		err = throughput(c.Context(), r, s.url, jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: cmd}}}, *n, *width)
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
		r.Figures["server cpu ms per job"] = float64(s.usage().Milliseconds()) / float64(*n)
		if *driver == "inproc" {
			if s, err = startServer(c, *driver, args...); err != nil {
				return err
			}
			if err = errors.Join(rawJetStream(c.Context(), r, s.url, *n, *width), s.stop()); err != nil {
				return err
			}
		}
		return r.print(c.OutOrStdout(), out())
	}
	return c
}

// throughput keeps width jobs in flight until n have ended, and counts what came back.
func throughput(ctx context.Context, r *benchReport, url string, spec jobs.Spec, n, width int) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	finals := &finals{seen: map[string]int{}, waiting: map[string]chan struct{}{}}
	sub, err := nc.Subscribe("paddock.v1.job.default.*.event", finals.take)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	c, err := client.Connect(url)
	if err != nil {
		return err
	}
	defer c.Close()
	work := make(chan struct{})
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	start := time.Now()
	for range width {
		wg.Go(func() {
			for range work {
				at := time.Now()
				s := spec
				s.ID = jobs.NewID()
				done := finals.expect(s.ID)
				_, err := c.Submit(ctx, &s)
				accepted := time.Since(at)
				if err == nil {
					select {
					case <-done:
					case <-time.After(time.Minute):
						err = fmt.Errorf("job %s: no final event within a minute", s.ID)
					}
				}
				mu.Lock()
				r.add("accepted ms", accepted)
				r.add("ended ms", time.Since(at))
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	for range n {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	took := time.Since(start)
	r.Figures["jobs per second"] = float64(n) / took.Seconds()
	r.Figures["jobs lost"], r.Figures["jobs doubled"], r.Figures["jobs failed"] = finals.count(n)
	return errors.Join(errs...)
}

// rawJetStream measures what is the least that a job through the same broker could cost: a message that is stored, as durably as the server
// stores anything, fetched by a consumer, and acknowledged by it.
func rawJetStream(ctx context.Context, r *benchReport, url string, n, width int) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench.raw"}, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		return err
	}
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: width})
	if err != nil {
		return err
	}
	var seen atomic.Int64
	all := make(chan struct{})
	start := time.Now()
	taking, err := consumer.Consume(func(m jetstream.Msg) {
		if m.Ack() == nil && seen.Add(1) == int64(n) {
			close(all)
		}
	})
	if err != nil {
		return err
	}
	defer taking.Stop()
	var sending errgroup.Group
	for i := range width {
		sending.Go(func() error {
			for range n/width + min(1, max(0, n%width-i)) {
				if _, err := js.Publish(ctx, "bench.raw", []byte(`{"image": "base", "steps": [{"cmd": "true"}]}`)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	select {
	case <-all:
	case <-time.After(time.Minute):
		return fmt.Errorf("JetStream gave %d messages of %d", seen.Load(), n)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.Figures["messages per second through JetStream alone"] = float64(n) / time.Since(start).Seconds()
	return nil
}

// finals counts the final events of jobs.
type finals struct {
	mu      sync.Mutex
	seen    map[string]int
	failed  int
	waiting map[string]chan struct{}
}

func (f *finals) expect(id string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := make(chan struct{})
	f.waiting[id] = done
	return done
}

func (f *finals) take(m *nats.Msg) {
	var e jobs.Event
	if json.Unmarshal(m.Data, &e) != nil || !e.Final {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[e.Job]++
	if e.Result == nil || !e.Result.Success() {
		f.failed++
	}
	if done := f.waiting[e.Job]; done != nil {
		close(done)
		delete(f.waiting, e.Job)
	}
}

func (f *finals) count(n int) (lost, doubled, failed float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, times := range f.seen {
		if times > 1 {
			doubled++
		}
	}
	return float64(n - len(f.seen)), doubled, float64(f.failed)
}

func benchLatency() *cobra.Command {
	c := &cobra.Command{
		Use: "latency", Short: "One job at a time on a warm pool: what the system adds to the program's own time", Args: cobra.NoArgs,
		Long: "Overhead is from the submission to the final event over NATS, less the time that the guest measured for the program.",
	}
	driver := c.Flags().String("driver", "qemu", "qemu, hostproc or inproc")
	n := c.Flags().IntP("jobs", "n", 100, "jobs")
	pause := c.Flags().Duration("pause", 700*time.Millisecond, "between jobs, for the pool to refill: the system is idle then")
	out := benchOutput(c)
	imageDir := c.Flags().String("image-dir", filepath.Join(defaultStateDir(), "images"), "image store")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := startServer(c, *driver, "--image-dir", *imageDir, "--images", "base")
		if err != nil {
			return err
		}
		r := newReport("latency")
		r.Settings = map[string]any{"driver": *driver, "jobs": *n, "pause": pause.String()}
		cmd := "/bin/true"
		if *driver == "inproc" {
			cmd = "true"
		}
		err = latency(c.Context(), r, s.url, jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: cmd}}}, *n, *pause)
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
		return r.print(c.OutOrStdout(), out())
	}
	return c
}

func latency(ctx context.Context, r *benchReport, url string, spec jobs.Spec, n int, pause time.Duration) error {
	c, err := client.Connect(url)
	if err != nil {
		return err
	}
	defer c.Close()
	made := 0
	for range n {
		time.Sleep(pause)
		at := time.Now()
		reply, err := c.Submit(ctx, &spec)
		if err != nil {
			return err
		}
		accepted := time.Since(at)
		res, err := c.Wait(ctx, reply.Job.ID)
		if err != nil {
			return err
		}
		took := time.Since(at)
		if !res.Success() {
			return fmt.Errorf("job %s: %s %s", reply.Job.ID, res.Ending, res.Reason)
		}
		if !res.Phases.FromPool {
			made++
		}
		msec := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
		r.add("overhead ms", took-msec(res.Phases.GuestMS))
		r.add("whole ms", took)
		r.add("phase accepted ms", accepted)
		r.add("phase queued ms", msec(res.Phases.QueuedMS))
		r.add("phase claim ms", msec(res.Phases.ClaimMS))
		r.add("phase channel ms", msec(res.Phases.RunMS-res.Phases.GuestMS))
		r.add("phase guest ms", msec(res.Phases.GuestMS))
		r.add("phase destroy ms", msec(res.Phases.DestroyMS))
	}
	r.Figures["machines made on demand"] = float64(made)
	return nil
}
