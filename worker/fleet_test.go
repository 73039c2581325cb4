package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm/inproc"
	"github.com/paddockvm/paddock/worker"
)

// The tests here have a real NATS server, which is stopped and started again on its files, a real dispatcher and a real ledger. Times are
// a fifth of those in earnest, but for the grace.
const (
	realTTL  = 3 * time.Second
	realBeat = 400 * time.Millisecond
	// realGrace is more than a loaded machine holds a worker up for: no test here needs a silent one declared lost.
	realGrace = 5 * time.Minute
)

// realFleet is all of Paddock but the worker.
type realFleet struct {
	*testing.T
	nats  *bustest.Server
	store *sqlite.Store
	bus   *bus.Bus // the dispatcher's connection, while it runs
	stop  func()   // ends the dispatcher
}

func newRealFleet(t *testing.T) *realFleet {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	f := &realFleet{T: t, nats: bustest.Start(t), store: store}
	f.dispatch()
	return f
}

// dispatch starts a dispatcher on the ledger.
func (f *realFleet) dispatch() {
	f.Helper()
	f.bus = f.nats.Connect()
	d, err := dispatcher.New(dispatcher.Config{Store: f.store, Events: f.bus, LeaseTTL: realTTL, Grace: realGrace, RetryBase: 100 * time.Millisecond, Connected: f.bus.Connected})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(zerolog.Nop().WithContext(context.WithoutCancel(f.Context())))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			f.Error("dispatcher:", err)
		}
	}()
	stopServing := bustest.Serve(f, f.bus, d)
	f.stop = sync.OnceFunc(func() { stopServing(); cancel(); <-done })
	f.Cleanup(f.stop)
}

// roomy is a catalog whose machines are large enough for a dispatcher that looks.
type roomy struct{ catalog }

func (r roomy) Offer(name string) (jobs.OfferedImage, bool) { return offered(r, name) }

func (r roomy) Offered() []jobs.OfferedImage {
	o := r.catalog.Offered()
	o[0].Resources.MemoryMiB = 256
	return o
}

// testWorker is the configuration of the tests' workers.
func testWorker(dir string, b *bus.Bus) worker.Config {
	driver := inproc.New(func(ctx context.Context, c net.Conn) { guestagent.InProcess(ctx, c) })
	return worker.Config{
		Name: "w", Dir: dir, Driver: driver, Images: roomy{catalog{driver: driver.Name()}}, Dispatcher: b, Events: b,
		Capacity: jobs.Resources{VCPUs: 4, MemoryMiB: 1024}, BeatEvery: realBeat,
		Ports: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
	}
}

// endings are the input of programs that run until a test has them end, each by its job: what is done meanwhile takes the time that it takes.
type endings struct {
	mu sync.Mutex
	of map[string]input
}

func (e *endings) job(id string) input {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of = map[string]input{}
	}
	if e.of[id] == nil {
		e.of[id] = make(input)
	}
	return e.of[id]
}

// end has a job's program end, in whichever attempt, also in one that is still to begin.
func (e *endings) end(job string) { close(e.job(job)) }

func (e *endings) OpenStdin(ctx context.Context, tenant, job string, w io.WriteCloser) (serve func(), err error) {
	wait, err := e.job(job).OpenStdin(ctx, tenant, job, w)
	return func() {
		_, _ = io.WriteString(w, "begun\n") // the attempt may be over
		wait()
	}, err
}

// untilEnded gives a job of which the first program prints "begun" and runs until it is ended. The others follow.
func untilEnded(more ...[]string) jobs.Spec {
	s := limited(steps(append([][]string{{"cat"}}, more...)...), time.Hour, 0)
	s.StdinStream = true
	return s
}

// work runs a worker until the test's end.
func (f *realFleet) work(change func(*worker.Config)) {
	f.Helper()
	cfg := testWorker(f.TempDir(), f.nats.Connect())
	change(&cfg)
	w, err := worker.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	ctx, abort := context.WithCancel(zerolog.New(zerolog.NewTestWriter(f)).WithContext(context.WithoutCancel(f.Context())))
	drain, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Run(ctx, drain) }()
	f.Cleanup(func() {
		close(drain)
		time.AfterFunc(time.Minute, abort)
		if err := <-done; err != nil {
			f.Error("worker:", err)
		}
		abort()
	})
	<-w.Registered()
}

// submit has a job admitted, by a viewer's connection.
func (f *realFleet) submit(s jobs.Spec) string {
	f.Helper()
	s.Image = "base"
	body, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	m, err := f.nats.Plain().Request(jobs.SubmitSubject("default"), body, time.Minute)
	if err != nil {
		f.Fatal("submit:", err)
	}
	var r jobs.SubmitReply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Job == nil {
		f.Fatalf("refused: %+v", r.Error)
	}
	return r.Job.ID
}

// eventsOf reads all of a job's events.
func (f *realFleet) eventsOf(nc *nats.Conn, id string) (l []jobs.Event) {
	f.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		f.Fatal(err)
	}
	c, err := js.CreateConsumer(f.Context(), jobs.StreamEvents, jetstream.ConsumerConfig{
		FilterSubject: jobs.EventSubject("default", id), AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true,
	})
	if err != nil {
		return nil // the server has just come back
	}
	for {
		batch, err := c.FetchNoWait(1000)
		if err != nil {
			return nil
		}
		n := len(l)
		for m := range batch.Messages() {
			var e jobs.Event
			if err := json.Unmarshal(m.Data(), &e); err != nil {
				f.Fatal(err)
			}
			l = append(l, e)
		}
		if len(l) == n {
			return l
		}
	}
}

// job waits until a job's record says what it shall.
func (f *realFleet) job(id, what string, ok func(jobs.Job) bool) (j jobs.Job) {
	f.Helper()
	bustest.Eventually(f, id+" "+what, func() bool {
		var err error
		j, err = f.store.Get(f.Context(), "default", id)
		return err == nil && ok(j)
	})
	return j
}

func running(j jobs.Job) bool { return j.State == jobs.StateRunning }
func over(j jobs.Job) bool    { return j.State.Terminal() }

// history gives all events of a job that the stream has, up to the final one, and holds those of each attempt to their order.
func (f *realFleet) history(id string) (all []jobs.Event) {
	f.Helper()
	nc := f.nats.Plain()
	bustest.Eventually(f, "the final event of "+id, func() bool {
		all = f.eventsOf(nc, id)
		return len(all) > 0 && all[len(all)-1].Final
	})
	seq := map[int]int64{}
	for i, e := range all {
		if seq[e.Attempt]++; e.Seq != seq[e.Attempt] {
			f.Errorf("event %d of %s is %d of attempt %d, want %d", i, id, e.Seq, e.Attempt, seq[e.Attempt])
		}
		if i > 0 && e.Attempt < all[i-1].Attempt {
			f.Errorf("event %d of %s is of attempt %d, after one of attempt %d", i, id, e.Attempt, all[i-1].Attempt)
		}
	}
	return all
}

// TestRealOutage: NATS is away for twice the TTL, with the dispatcher living through it or started anew.
func TestRealOutage(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart bool
	}{{"the dispatcher stays", false}, {"the dispatcher is started anew", true}} {
		t.Run(tt.name, func(t *testing.T) {
			f, programs := newRealFleet(t), &endings{}
			f.work(func(c *worker.Config) { c.Stdin = programs })
			long, short := f.submit(untilEnded([]string{"echo", "after"})), f.submit(untilEnded([]string{"echo", "short"}))
			withPort := untilEnded()
			withPort.Network.Ports = []int{80}
			acts := f.submit(withPort)
			before := map[string]int{} // attempts: a machine with a port is ended whenever its worker was held up for as long as a lease
			for _, id := range []string{long, short, acts} {
				before[id] = f.job(id, "runs", running).Attempt
			}
			if tt.restart {
				f.stop()
			}
			f.nats.Close()
			programs.end(short)
			time.Sleep(2 * realTTL)
			f.nats.Restart()
			if tt.restart {
				f.dispatch()
			}
			programs.end(long)
			f.job(acts, "is given out again", func(j jobs.Job) bool { return j.Attempt > before[acts] })
			programs.end(acts)
			for id, want := range map[string]string{long: "begun\nafter\n", short: "begun\nshort\n", acts: "begun\n"} {
				j := f.job(id, "ends", over)
				if j.Result == nil || !j.Result.Success() || id != acts && j.Attempt != 1 {
					t.Errorf("%s ended in attempt %d: %+v", id, j.Attempt, j.Result)
				}
				if got := string(output(t, attemptOf(f.history(id), j.Attempt))); got != want {
					t.Errorf("%s told %q, want %q", id, got, want)
				}
			}
		})
	}
}

func attemptOf(events []jobs.Event, n int) (l []jobs.Event) {
	for _, e := range events {
		if e.Attempt == n {
			l = append(l, e)
		}
	}
	return l
}

// TestRealOutageOfAChattyJob: 50 MB that are printed while NATS is away are all told, in order.
func TestRealOutageOfAChattyJob(t *testing.T) {
	f := newRealFleet(t)
	f.work(func(c *worker.Config) { c.Driver = inproc.New(talk) })
	id := f.submit(limited(steps([]string{"count", "52428800"}), 5*time.Minute, fifty))
	f.job(id, "runs", running)
	f.nats.Close()
	time.Sleep(2 * realTTL)
	f.nats.Restart()
	j := f.job(id, "ends", over)
	if j.Result == nil || !j.Result.Success() || j.Attempt != 1 {
		t.Fatalf("ended in attempt %d: %+v", j.Attempt, j.Result)
	}
	if got := output(t, f.history(id)); !bytes.Equal(got, numbered(fifty)) {
		t.Errorf("%d bytes were told, and not all as they were printed", len(got))
	}
}

// TestRealOutageAndWorkerKilled: a worker that is killed while NATS is away loses what ran there and nothing else, and nothing comes twice.
func TestRealOutageAndWorkerKilled(t *testing.T) {
	f := newRealFleet(t)
	dir := t.TempDir()
	end, kill := startWorker(t, dir, f.nats.URL())
	runs, ends := f.submit(untilEnded()), f.submit(untilEnded([]string{"echo", "ended"}))
	f.job(runs, "runs", running)
	f.job(ends, "runs", running)
	f.nats.Close()
	end(ends)
	time.Sleep(2 * realTTL) // so that no request for leases stands of the one that is killed: it goes on in its session, which may be given some for it
	bustest.Eventually(t, "the result is in the spool", func() bool {
		l, err := filepath.Glob(filepath.Join(dir, "spool", ends+".*.json"))
		return err == nil && len(l) == 1
	})
	kill()
	f.nats.Restart()
	end, _ = startWorker(t, dir, f.nats.URL())
	end(runs)
	for id, want := range map[string]struct {
		attempt int
		told    string
	}{runs: {2, "begun\n"}, ends: {1, "begun\nended\n"}} {
		j := f.job(id, "ends", over)
		if j.Result == nil || !j.Result.Success() || j.Attempt != want.attempt {
			t.Errorf("ended in attempt %d: %+v", j.Attempt, j.Result)
		}
		events := f.history(id)
		if got := string(output(t, attemptOf(events, want.attempt))); got != want.told {
			t.Errorf("told %q, want %q", got, want.told)
		}
		finals := 0
		for _, e := range events {
			if e.Final {
				finals++
			}
		}
		if finals != 1 {
			t.Errorf("%d final events", finals)
		}
	}
	bustest.Eventually(t, "nothing is left on disk", func() bool {
		l, err := filepath.Glob(filepath.Join(dir, "*", "*"))
		return err == nil && len(l) == 0
	})
}

// TestRenamedWorker: what a worker could not report it does under another name too.
func TestRenamedWorker(t *testing.T) {
	f := newRealFleet(t)
	dir := t.TempDir()
	end, kill := startWorker(t, dir, f.nats.URL())
	id := f.submit(untilEnded([]string{"echo", "ended"}))
	f.job(id, "runs", running)
	f.nats.Close()
	end(id)
	bustest.Eventually(t, "the result is in the spool", func() bool {
		l, err := filepath.Glob(filepath.Join(dir, "spool", id+".*.json"))
		return err == nil && len(l) == 1
	})
	kill()
	f.nats.Restart()
	f.work(func(c *worker.Config) { c.Dir, c.Name = dir, "renamed" })
	if j := f.job(id, "ends", over); j.Result == nil || !j.Result.Success() || j.Attempt != 1 {
		t.Errorf("ended in attempt %d: %+v", j.Attempt, j.Result)
	}
	if got := string(output(t, f.history(id))); got != "begun\nended\n" {
		t.Errorf("told %q", got)
	}
}

// workerEnv makes this test's binary a worker: its directory, and the server's URL.
const workerEnv = "PADDOCK_TEST_WORKER"

// beWorker is such a process's life, until it is killed. It is told on its input whose programs shall end.
func beWorker(dir, url string) error {
	ctx := zerolog.New(os.Stderr).WithContext(context.Background())
	b, err := bus.Connect(ctx, bus.Config{URL: url, Name: "worker", Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	cfg, programs := testWorker(dir, b), &endings{}
	cfg.Stdin = programs
	w, err := worker.New(cfg)
	if err != nil {
		return err
	}
	go func() {
		for told := bufio.NewScanner(os.Stdin); told.Scan(); {
			programs.end(told.Text())
		}
	}()
	go func() {
		<-w.Registered()
		fmt.Println("registered")
	}()
	return w.Run(ctx, nil)
}

// startWorker starts a worker as a process of its own and waits until a dispatcher has taken it in. end has a job's program end.
func startWorker(t *testing.T, dir, url string) (end func(job string), kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+dir+" "+url)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal("the worker ended:", err)
	}
	end = func(job string) {
		if _, err := fmt.Fprintln(in, job); err != nil {
			t.Error("the worker does not hear:", err)
		}
	}
	return end, kill
}
