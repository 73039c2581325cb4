// Package asynqin is the way in over Redis: producers enqueue tasks with plain asynq (github.com/hibiken/asynq), and each becomes a job.
// A task stays active until its job has ended, and then holds the job's result. docs/redis.md is the contract with producers.
//
// What a task has become is written in the task itself, before the job is admitted: whoever picks the task up again, after a crash, a
// restart or a loss of Redis, goes on with that job and never runs it twice. It imports jobs, and knows the dispatcher as its Brain.
package asynqin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/jobs"
)

// Brain is what runs jobs: the dispatcher. Its errors are *jobs.Error, or the context's.
type Brain interface {
	Admit(ctx context.Context, tenant string, spec *jobs.Spec) (job jobs.Job, duplicate bool, err error)
	// Await blocks until the job has ended.
	Await(ctx context.Context, tenant, id string) (jobs.Job, error)
	Cancel(ctx context.Context, tenant, id string) (jobs.State, error)
}

// Config is what Run needs. Redis, Brain and Tenants are required.
type Config struct {
	// Redis stays the caller's, who closes it after Run.
	Redis redis.UniversalClient
	Brain Brain
	// Tenants are whose tasks come in on which queues, by the queues' prefix: "paddock" is paddock:critical, paddock:default and paddock:low.
	Tenants map[string]string
	// Concurrency is how many tasks of one prefix are active at once; 0 means 1000. asynq writes the payloads of all of them to Redis
	// every 5 s.
	Concurrency int
	// KeepResult is how long a result can be read for whose task is gone; 0 means an hour.
	KeepResult time.Duration
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	// checkEvery is the pause between looks at empty queues, on average: asynq takes a half to one and a half of it. Each is one short
	// script for each queue.
	checkEvery = 25 * time.Millisecond
	// delayedEvery is how often scheduled tasks and retries are looked at that may be due.
	delayedEvery = time.Second
	// reclaimEvery is how often tasks are looked for whose bridge is gone.
	reclaimEvery = 2 * time.Second
	// healthEvery is how often Redis is pinged, to log that it is away.
	healthEvery = 5 * time.Second
	// handBackWithin bounds the wait, at the end, for tasks whose job is about to end; the others go back to their queues.
	handBackWithin = 500 * time.Millisecond
)

// Run takes tasks until ctx ends, and returns when all that it started has ended. The tasks whose jobs have not ended go back to the head
// of their queues; the jobs run on, and the next Run, here or elsewhere, finds them. Redis may come and go. An error is of the configuration.
func Run(ctx context.Context, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	m, unregister, err := newMetrics(c.Registerer)
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	defer unregister()
	inspector := asynq.NewInspectorFromRedisClient(c.Redis)
	errorRoom := newRoom()
	var bridges sync.WaitGroup
	for prefix, tenant := range c.Tenants {
		b := &bridge{cfg: c, metrics: m, inspector: inspector, tenant: tenant, queues: queuesOf(prefix), living: map[taskName]bool{}, errors: errorRoom, log: zerolog.Ctx(ctx).With().Str("tenant", tenant).Logger()}
		bridges.Go(func() { b.run(ctx) })
	}
	bridges.Wait()
	return nil
}

// check fills in what is left out.
func (c *Config) check() error {
	if c.Redis == nil || c.Brain == nil || len(c.Tenants) == 0 {
		return errors.New("redis: Redis, Brain and Tenants are required")
	}
	if c.Concurrency == 0 {
		c.Concurrency = 1000
	}
	if c.KeepResult == 0 {
		c.KeepResult = time.Hour
	}
	if c.Concurrency < 0 || c.KeepResult < time.Second {
		return fmt.Errorf("redis: %d tasks at once, results kept for %s: want at least 1, and 1 s", c.Concurrency, c.KeepResult)
	}
	return CheckTenants(c.Tenants)
}

// CheckTenants checks prefixes of queues and the tenants' names. No prefix may begin with another one and a colon: who may write
// asynq:{acme:* in Redis could write the queues of acme:eu too.
func CheckTenants(tenants map[string]string) error {
	for prefix, tenant := range tenants {
		if err := jobs.ValidTenant(tenant); err != nil {
			return err
		}
		if prefix == "" || len(prefix) > 100 || strings.ContainsFunc(prefix, func(r rune) bool { return !prefixRune(r) }) {
			return fmt.Errorf("redis: prefix %.100q of queues: want 1 to 100 letters, digits, '_', '-', '.' and ':'", prefix)
		}
		for other := range tenants {
			if strings.HasPrefix(other, prefix+":") {
				return fmt.Errorf("redis: the queues of %q are among those of %q: whoever may write the latter could submit as the former's tenant", other, prefix)
			}
		}
	}
	return nil
}

// prefixRune keeps out what has a meaning in Redis's patterns and in asynq's hash tags.
func prefixRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.:", r)
}

// queue is one of a prefix's three.
type queue struct {
	name     string
	weight   int // how often it is looked at first, against the others
	priority int // of jobs whose spec has none
}

func queuesOf(prefix string) []queue {
	return []queue{{prefix + ":critical", 6, 8}, {prefix + ":default", 3, 5}, {prefix + ":low", 1, 2}}
}

// bridge is one tenant's. Each has an asynq server of its own: asynq knows active tasks by their id alone, and ids are the producers' to
// choose, so that in one server a tenant's task could stand in the way of another's; and a tenant whose jobs wait keeps no other out.
type bridge struct {
	cfg       Config
	metrics   *metrics
	inspector *asynq.Inspector
	tenant    string
	queues    []queue
	log       zerolog.Logger
	errors    *rate.Limiter // of asynq, in the log
	// handlers is held for reading by each handler that runs.
	handlers sync.RWMutex

	mu     sync.Mutex
	living map[taskName]bool // tasks with a handler
}

type taskName struct{ queue, id string }

func (b *bridge) run(ctx context.Context) {
	b.reclaim(ctx)
	weights := map[string]int{}
	for _, q := range b.queues {
		weights[q.name] = q.weight
	}
	base := context.WithoutCancel(ctx) // the end of the bridge is not the end of tasks
	server := asynq.NewServerFromRedisClient(withoutRecoverer{b.cfg.Redis}, asynq.Config{
		Queues: weights, Concurrency: b.cfg.Concurrency, TaskCheckInterval: checkEvery, DelayedTaskCheckInterval: delayedEvery,
		ShutdownTimeout: handBackWithin, HealthCheckInterval: healthEvery, HealthCheckFunc: b.health(),
		BaseContext:    func() context.Context { return withAttempt(base) },
		IsFailure:      func(err error) bool { return !goesOn(err) },
		RetryDelayFunc: retryDelay,
		ErrorHandler:   asynq.ErrorHandlerFunc(func(task context.Context, _ *asynq.Task, err error) { b.settle(ctx, task, err) }),
		Logger:         logger{b.log, b.errors}, LogLevel: asynq.WarnLevel,
	})
	err := server.Start(asynq.HandlerFunc(func(task context.Context, t *asynq.Task) error {
		return apart(func() error { return b.process(ctx, task, t) })
	}))
	if err != nil {
		panic(err) // of a server that was started twice
	}
	b.log.Info().Strs("queues", slices.Sorted(maps.Keys(weights))).Msg("taking tasks from redis")
	b.keepReclaiming(ctx)
	server.Shutdown()
	b.handlers.Lock() // asynq waits for tasks, not for the handlers of those that it has given back
	defer b.handlers.Unlock()
	b.log.Info().Msg("takes no more tasks from redis")
}

// apart has a handler run where asynq does not recover from its panics: the Brain may hold its locks then, and a process that lived on with them would
// answer nobody, while what is sent it goes to nobody else. What reads a task's payload gives its own panics as errors (jobs.BugError).
func apart(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return <-done
}

// goesOn tells whether the run of a task that asynq takes back is to be gone on with, so that it costs none of the task's retries: its
// bridge had lost it, or it was canceled, and the next look at it finds the job's end.
func goesOn(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, asynq.ErrLeaseExpired)
}

func retryDelay(n int, err error, t *asynq.Task) time.Duration {
	if goesOn(err) {
		return 0
	}
	return asynq.DefaultRetryDelayFunc(n, err, t)
}

// health logs when Redis goes and when it is back. What it gives is called by one goroutine.
func (b *bridge) health() func(error) {
	away := false
	return func(err error) {
		switch {
		case err != nil && !away:
			b.log.Warn().Err(err).Msg("redis is away")
		case err == nil && away:
			b.log.Info().Msg("redis is back")
		}
		away = err != nil
	}
}
