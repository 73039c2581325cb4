package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func benchAsynq() *cobra.Command {
	c := &cobra.Command{
		Use: "asynq", Short: "Tasks through Redis: how soon they are picked up, how many a second", Args: cobra.NoArgs,
		Long: "Starts a redis-server, and a Paddock of the driver inproc on it. Picked up is from the producer's call until the job is in the ledger, one\n" +
			"task at a time and the system idle. Beside it, in the same run, asynq's own server with a handler that does nothing: as many tasks, as many at once.",
	}
	n := c.Flags().IntP("tasks", "n", 2000, "tasks for the rates")
	picked := c.Flags().Int("pickups", 300, "tasks one at a time")
	width := c.Flags().IntP("concurrency", "c", 128, "tasks that are active at once")
	server := c.Flags().String("redis-server", "redis-server", "the server's program")
	imageDir := c.Flags().String("image-dir", defaultStateDir()+"/images", "image store")
	out := benchOutput(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r := newReport("asynq")
		r.Settings = map[string]any{"tasks": *n, "active at once": *width, "pickups": *picked, "driver": "inproc", "redis": "appendonly no"}
		at, stop, err := startBenchRedis(c.Context(), *server)
		if err != nil {
			return err
		}
		defer stop()
		s, err := startServer(c, "inproc", "--vcpus", "64", "--ready", "64", "--prepared", "0", "--image-dir", *imageDir, "--images", "base",
			"--redis", "redis://"+at, "--redis-concurrency", fmt.Sprint(*width))
		if err != nil {
			return err
		}
		err = asynqRates(c.Context(), r, s.url, at, *n, *picked, *width)
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
		return r.print(c.OutOrStdout(), out())
	}
	return c
}

// startBenchRedis starts a server on loopback and gives its address.
func startBenchRedis(ctx context.Context, program string) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String()
	_ = l.Close()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(benchDir(), "pd-bench-redis-")
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	probe := redis.NewClient(&redis.Options{Addr: addr})
	defer probe.Close() //nolint:errcheck // it was asked what it was asked
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = probe.Ping(ctx).Err(); err == nil {
			return addr, stop, nil
		}
		if time.Now().After(end) {
			stop()
			return "", nil, fmt.Errorf("%s: %w", program, err)
		}
	}
}

// asynqRates measures Paddock, and then asynq alone.
func asynqRates(ctx context.Context, r *benchReport, url, addr string, n, picked, width int) error {
	at := asynq.RedisClientOpt{Addr: addr}
	p := &benchProducer{client: asynq.NewClient(at), plain: redis.NewClient(&redis.Options{Addr: addr})}
	defer p.client.Close() //nolint:errcheck // what was enqueued was answered
	defer p.plain.Close()  //nolint:errcheck // it was read
	c, err := client.Connect(url)
	if err != nil {
		return err
	}
	defer c.Close()
	payload, err := json.Marshal(jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}})
	if err != nil {
		return err
	}
	for i := range picked + 1 {
		time.Sleep(50*time.Millisecond + rand.N(100*time.Millisecond)) // at any moment between two looks
		began := time.Now()
		id, err := p.enqueue("sandbox:run", "paddock:default", payload)
		if err != nil {
			return err
		}
		job, err := p.job(ctx, id)
		if err != nil {
			return err
		}
		rec, err := c.Get(ctx, job)
		if err != nil {
			return err
		}
		if i > 0 { // the first connects
			r.add("picked up ms", rec.AcceptedAt.Sub(began))
		}
	}
	took, err := p.burst(ctx, n, "sandbox:run", "paddock:default", payload)
	if err != nil {
		return err
	}
	r.Figures["tasks per second through paddock"] = float64(n) / took.Seconds()
	return rawAsynq(ctx, r, at, p, n, width, payload)
}

// rawAsynq measures asynq's own server: its rate with a handler that does nothing, and how soon it picks up a task as it is by default.
func rawAsynq(ctx context.Context, r *benchReport, at asynq.RedisClientOpt, p *benchProducer, n, width int, payload []byte) error {
	began, seen := make(chan time.Time, 1), make(chan time.Duration, 1)
	handler := asynq.HandlerFunc(func(_ context.Context, t *asynq.Task) error {
		if t.Type() == "one" {
			seen <- time.Since(<-began)
		}
		return nil
	})
	run := func(c asynq.Config, do func() error) error {
		c.Queues, c.LogLevel = map[string]int{"raw": 1}, asynq.FatalLevel
		s := asynq.NewServer(at, c)
		if err := s.Start(handler); err != nil {
			return err
		}
		defer s.Shutdown()
		return do()
	}
	err := run(asynq.Config{Concurrency: width}, func() error {
		for range 20 {
			time.Sleep(rand.N(time.Second))
			began <- time.Now()
			if _, err := p.enqueue("one", "raw", payload); err != nil {
				return err
			}
			r.add("picked up by asynq as it is ms", <-seen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return run(asynq.Config{Concurrency: width, TaskCheckInterval: 50 * time.Millisecond}, func() error {
		took, err := p.burst(ctx, n, "none", "raw", payload)
		r.Figures["tasks per second through asynq alone"] = float64(n) / took.Seconds()
		return err
	})
}

// benchProducer enqueues.
type benchProducer struct {
	client *asynq.Client
	plain  *redis.Client
}

func (p *benchProducer) enqueue(kind, queue string, payload []byte) (string, error) {
	t, err := p.client.Enqueue(asynq.NewTask(kind, payload), asynq.Queue(queue), asynq.Retention(time.Hour))
	if err != nil {
		return "", err
	}
	return t.ID, nil
}

// job waits until a task is a job, and gives that.
func (p *benchProducer) job(ctx context.Context, task string) (string, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var m struct{ Job string }
		data, err := p.plain.Get(ctx, "paddock:result:{paddock:default}:"+task).Bytes()
		if err == nil {
			if err := json.Unmarshal(data, &m); err != nil || m.Job == "" {
				return "", fmt.Errorf("task %s became no job: %w", task, err)
			}
			return m.Job, nil
		}
		if !errors.Is(err, redis.Nil) || time.Now().After(end) {
			return "", fmt.Errorf("task %s: no job within 10 s: %w", task, err)
		}
	}
}

// burst enqueues n tasks from 16 goroutines and gives the time until all are completed.
func (p *benchProducer) burst(ctx context.Context, n int, kind, queue string, payload []byte) (time.Duration, error) {
	completed := "asynq:{" + queue + "}:completed"
	before, err := p.plain.ZCard(ctx, completed).Result()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	const producers = 16
	errs := make([]error, producers)
	var wg sync.WaitGroup
	for i := range producers {
		wg.Go(func() {
			for j := i; j < n && errs[i] == nil; j += producers {
				_, errs[i] = p.enqueue(kind, queue, payload)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		done, err := p.plain.ZCard(ctx, completed).Result()
		if err != nil {
			return 0, err
		}
		if done-before >= int64(n) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("not all of %d tasks were completed within 10 minutes", n)
}
