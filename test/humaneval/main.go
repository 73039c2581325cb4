// Command humaneval runs the HumanEval tasks through a running Paddock, over NATS: every reference solution, and each again with
// its body broken. It prints what came back and fails unless every right one passes and every broken one fails.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

func main() {
	o := options{}
	flag.StringVar(&o.url, "nats", "", "NATS URL of a running Paddock; empty starts one")
	flag.StringVar(&o.data, "data", "", "the tasks' file; empty means ../shared/data/HumanEval.jsonl.gz beside the repository")
	flag.IntVar(&o.tasks, "tasks", 0, "how many tasks; 0 means all")
	flag.IntVar(&o.width, "c", 8, "how many jobs are in flight")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	s, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "humaneval:", err)
		os.Exit(1)
	}
	s.print(os.Stdout)
	if !s.ok() {
		os.Exit(1)
	}
}

type options struct {
	url, data    string
	tasks, width int
}

// run starts Paddock where none is named, and runs all tasks both ways.
func run(ctx context.Context, o options) (_ *score, err error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	if o.data == "" {
		o.data = filepath.Join(root, "..", "shared", "data", "HumanEval.jsonl.gz")
	}
	tasks, err := load(o.data)
	if err != nil {
		return nil, err
	}
	if o.tasks > 0 && o.tasks < len(tasks) {
		tasks = tasks[:o.tasks]
	}
	if o.url == "" {
		p, err := harness.Start(ctx, harness.Options{Args: []string{"--images", "python"}, Log: os.Stderr})
		if err != nil {
			return nil, err
		}
		defer p.Stop() // the score is what counts
		o.url = p.URL
	}
	c, err := client.Connect(o.url)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return submitAll(ctx, c, tasks, o.width)
}

// outcome is one job's end.
type outcome struct {
	task   string
	right  bool
	passed bool
	result jobs.Result
	err    error
}

// submitAll keeps width jobs in flight until all have ended.
func submitAll(ctx context.Context, c *client.Client, tasks []task, width int) (*score, error) {
	type unit struct {
		task
		right bool
	}
	work := make(chan unit)
	var mu sync.Mutex
	s := &score{tasks: len(tasks)}
	var wg sync.WaitGroup
	start := time.Now()
	for range width {
		wg.Go(func() {
			for u := range work {
				o := one(ctx, c, u.task, u.right)
				mu.Lock()
				s.outcomes = append(s.outcomes, o)
				mu.Unlock()
			}
		})
	}
feed:
	for _, t := range tasks {
		for _, right := range []bool{true, false} {
			select {
			case work <- unit{t, right}:
			case <-ctx.Done():
				break feed
			}
		}
	}
	close(work)
	wg.Wait()
	s.took = time.Since(start)
	return s, ctx.Err()
}

func one(ctx context.Context, c *client.Client, t task, right bool) outcome {
	o := outcome{task: t.ID, right: right}
	source := t.wrong()
	if right {
		source = t.right()
	}
	reply, err := c.Submit(ctx, &jobs.Spec{Language: "python", Source: source, Labels: map[string]string{"task": t.ID}})
	if err != nil {
		o.err = err
		return o
	}
	if o.result, o.err = c.Wait(ctx, reply.Job.ID); o.err == nil {
		o.passed = o.result.Success()
	}
	return o
}

// score is what came of a run.
type score struct {
	tasks    int
	took     time.Duration
	outcomes []outcome
}

// count gives how many of the right or the broken programs ended as they should: the broken ones by their own exit, not by our fault.
func (s *score) count(right bool) (n int) {
	for _, o := range s.outcomes {
		fine := o.err == nil && o.result.Ending == jobs.Exited
		if o.right == right && fine && o.passed == right {
			n++
		}
	}
	return n
}

func (s *score) ok() bool { return s.count(true) == s.tasks && s.count(false) == s.tasks }

func (s *score) print(f *os.File) {
	for _, o := range s.outcomes {
		switch {
		case o.err != nil:
			fmt.Fprintf(f, "%s (right: %v): %v\n", o.task, o.right, o.err)
		case o.passed != o.right || o.result.Ending != jobs.Exited:
			fmt.Fprintf(f, "%s (right: %v): %s %s\n", o.task, o.right, o.result.Ending, o.result.Reason)
		}
	}
	w := tabwriter.NewWriter(f, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "right\t%d/%d pass\t\n", s.count(true), s.tasks)
	fmt.Fprintf(w, "broken\t%d/%d fail\t\n", s.count(false), s.tasks)
	fmt.Fprintf(w, "jobs per second\t%.2f\t\n", float64(len(s.outcomes))/s.took.Seconds())
	fmt.Fprintf(w, "phase, ms\tp50\tp99\t\n")
	for _, ph := range []struct {
		name string
		of   func(jobs.Phases) float64
	}{
		{"queued", func(p jobs.Phases) float64 { return p.QueuedMS }},
		{"claim", func(p jobs.Phases) float64 { return p.ClaimMS }},
		{"copy in", func(p jobs.Phases) float64 { return p.CopyInMS }},
		{"run", func(p jobs.Phases) float64 { return p.RunMS }},
		{"copy out", func(p jobs.Phases) float64 { return p.CopyOutMS }},
		{"destroy", func(p jobs.Phases) float64 { return p.DestroyMS }},
		{"total", func(p jobs.Phases) float64 { return p.TotalMS }},
	} {
		var v []float64
		for _, o := range s.outcomes {
			if o.err == nil {
				v = append(v, ph.of(o.result.Phases))
			}
		}
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t\n", ph.name, percentile(v, 50), percentile(v, 99))
	}
	_ = w.Flush()
}

// percentile gives the p-th percentile by the nearest rank; 0 of none.
func percentile(v []float64, p int) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[min(len(v)-1, len(v)*p/100)]
}
