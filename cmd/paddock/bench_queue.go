package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func benchQueue() *cobra.Command {
	c := &cobra.Command{
		Use: "queue", Short: "How soon a job is leased, with few and with many queued, in a burst, and beside another tenant's", Args: cobra.NoArgs,
		Long: "On a Paddock of the driver inproc, one after the other: jobs at a steady rate; batches of another tenant's, which wait, for how many come in\n" +
			"a second; jobs at that rate again, with those queued; many submissions at one moment; single jobs beside a tenant with a backlog of jobs of\n" +
			"200 ms that could all run. Leased is from the client's call until the dispatcher's decision, by this host's clock.",
	}
	q := queueBench{r: newReport("queue")}
	c.Flags().IntVar(&q.rate, "rate", 100, "jobs a second, one by one")
	c.Flags().DurationVar(&q.lasting, "for", 20*time.Second, "how long jobs come at that rate, each time")
	c.Flags().IntVar(&q.queued, "queued", 100_000, "jobs that wait, brought in by batches")
	c.Flags().IntVar(&q.burst, "burst", 1000, "jobs that are submitted at one moment")
	c.Flags().IntVar(&q.backlog, "backlog", 50_000, "another tenant's jobs that single ones come in beside; 0 leaves that out")
	c.Flags().IntVar(&q.singles, "singles", 30, "single jobs, one after the other")
	slots := c.Flags().Int("slots", 64, "jobs that run at once")
	postgres := c.Flags().String("ledger", "", "PostgreSQL database that keeps the ledger, as a URL; its own file without")
	imageDir := c.Flags().String("image-dir", filepath.Join(defaultStateDir(), "images"), "image store")
	out := benchOutput(c)
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if err := q.check(*slots); err != nil {
			return err
		}
		q.r.Settings = map[string]any{
			"driver": "inproc", "jobs a second": q.rate, "for": q.lasting.String(), "queued": q.queued, "burst": q.burst, "backlog": q.backlog, "slots": *slots, "ledger": ledgerKind(*postgres),
		}
		s, stop, err := queueServer(c, *slots, *postgres, *imageDir)
		if err != nil {
			return err
		}
		q.url = s.url
		err = q.measure(c.Context())
		if err = errors.Join(err, stop()); err != nil {
			return err
		}
		return q.r.print(c.OutOrStdout(), out())
	}
	return c
}

func ledgerKind(url string) string {
	if url == "" {
		return "sqlite"
	}
	return "postgres"
}

// Tenants of the measurement: of waiting's jobs one runs, and takes an hour; many has a backlog.
const (
	single  = "single"
	waiting = "waiting"
	many    = "many"
)

// queueServer starts a server whose quotas let in as much as is wanted.
func queueServer(c *cobra.Command, slots int, postgres, imageDir string) (s *benchServer, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "pd-bench-")
	if err != nil {
		return nil, nil, err
	}
	quotas := filepath.Join(dir, "quotas.yaml")
	err = os.WriteFile(quotas, []byte("tenants:\n  "+waiting+": {running: 1}\n"), 0o600)
	if err == nil {
		s, err = startServer(c, "inproc", "--vcpus", fmt.Sprint(slots), "--ready", fmt.Sprint(slots), "--prepared", "0", "--memory-mib", fmt.Sprint(slots*1024),
			"--image-dir", imageDir, "--images", "base", "--quotas", quotas, "--max-queued", "3000000", "--ledger", postgres)
	}
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, func() error { return errors.Join(s.stop(), os.RemoveAll(dir)) }, nil
}

// queueBench is the measurement.
type queueBench struct {
	r                                     *benchReport
	url                                   string
	rate, queued, burst, backlog, singles int
	lasting                               time.Duration
}

func (q *queueBench) check(slots int) error {
	if q.rate < 1 || slots < 1 {
		return fmt.Errorf("--rate %d and --slots %d must be at least 1", q.rate, slots)
	}
	if min(q.queued, q.burst, q.backlog, q.singles) < 0 || q.lasting < 0 {
		return errors.New("--queued, --burst, --backlog, --singles and --for must not be negative")
	}
	return nil
}

func (q *queueBench) measure(ctx context.Context) error {
	c, err := client.Connect(q.url, client.Tenant(single))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := q.steady(ctx, c, "at a steady rate ms"); err != nil {
		return err
	}
	if q.queued > 0 {
		release, err := q.fill(ctx)
		if err != nil {
			return err
		}
		defer release() // who stops a server waits for what runs
		if err := q.steady(ctx, c, "with many queued ms"); err != nil {
			return err
		}
	}
	if err := q.atOnce(ctx, c); err != nil {
		return err
	}
	if q.backlog == 0 {
		return nil
	}
	return q.beside(ctx, c)
}

// steady submits jobs at a rate, however long each takes, and looks how soon each was leased.
func (q *queueBench) steady(ctx context.Context, c *client.Client, name string) error {
	n := int(q.lasting.Seconds() * float64(q.rate))
	took, whole, errs := make([]time.Duration, n), make([]time.Duration, n), make([]error, n)
	tick := time.NewTicker(time.Second / time.Duration(q.rate))
	defer tick.Stop()
	var all sync.WaitGroup
	for i := range n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		all.Go(func() {
			began := time.Now()
			took[i], errs[i] = leased(ctx, c)
			whole[i] = time.Since(began)
		})
	}
	all.Wait()
	for i := range n {
		q.r.add("leased "+name, took[i])
		q.r.add("ended "+name, whole[i])
	}
	return errors.Join(errs...)
}

// leased submits a job, waits for its end, and gives how long it took until the job was leased.
func leased(ctx context.Context, c *client.Client) (time.Duration, error) {
	began := time.Now()
	reply, err := c.Submit(ctx, &jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}})
	if err != nil {
		return 0, err
	}
	if _, err := c.Wait(ctx, reply.Job.ID); err != nil {
		return 0, err
	}
	j, err := c.Get(ctx, reply.Job.ID)
	return j.LeasedAt.Sub(began), err
}

// fill brings in jobs that wait until release is called.
func (q *queueBench) fill(ctx context.Context) (release func(), err error) {
	c, err := client.Connect(q.url, client.Tenant(waiting))
	if err != nil {
		return nil, err
	}
	first, err := c.Submit(ctx, &jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "sleep", Args: []string{"3600"}}}, Limits: jobs.Limits{WallMS: 3_600_000}})
	if err != nil {
		c.Close()
		return nil, err
	}
	release = func() {
		_, _ = c.Cancel(ctx, first.Job.ID) // else the server is told so when it is stopped
		c.Close()
	}
	began := time.Now()
	if err := bringIn(ctx, c, q.queued, `{"image": "base", "steps": [{"cmd": "true"}]}`); err != nil {
		release()
		return nil, err
	}
	q.r.Figures["jobs per second admitted in batches"] = float64(q.queued) / time.Since(began).Seconds()
	return release, nil
}

// bringIn submits n jobs in batches, one after the other.
func bringIn(ctx context.Context, c *client.Client, n int, spec string) error {
	for n > 0 {
		b := jobs.BatchRequest{Jobs: make([]json.RawMessage, min(n, jobs.MaxBatch))}
		for i := range b.Jobs {
			b.Jobs[i] = json.RawMessage(spec)
		}
		reply, err := c.SubmitBatch(ctx, &b)
		if err != nil {
			return err
		}
		for _, i := range reply.Items {
			if i.Error != nil {
				return i.Error
			}
		}
		n -= len(b.Jobs)
	}
	return nil
}

// atOnce submits many jobs at one moment. Each is taken, and ends, or is refused.
func (q *queueBench) atOnce(ctx context.Context, c *client.Client) error {
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	refused := 0
	start := make(chan struct{})
	began := time.Now()
	for range q.burst {
		all.Go(func() {
			<-start
			_, err := leased(ctx, c)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if e, ok := errors.AsType[*jobs.Error](err); ok && e.RetryAfterMS > 0 {
				refused++
			} else {
				q.r.add("ended in a burst ms", took)
				errs = append(errs, err)
			}
		})
	}
	began = time.Now()
	close(start)
	all.Wait()
	q.r.Figures["refused in a burst"] = float64(refused)
	return errors.Join(errs...)
}

// beside submits single jobs while another's wait that could all run.
func (q *queueBench) beside(ctx context.Context, c *client.Client) error {
	other, err := client.Connect(q.url, client.Tenant(many))
	if err != nil {
		return err
	}
	defer other.Close()
	if err := bringIn(ctx, other, q.backlog, `{"image": "base", "steps": [{"cmd": "sleep", "args": ["0.2"]}]}`); err != nil {
		return err
	}
	for range q.singles {
		took, err := leased(ctx, c)
		if err != nil {
			return err
		}
		q.r.add("leased beside a backlog ms", took)
	}
	return nil
}
