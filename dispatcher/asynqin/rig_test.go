package asynqin_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childRedis) != "" {
		child()
		return
	}
	leak.VerifyTestMain(m)
}

// rig is a Redis, a producer that knows asynq alone, a brain, and bridges between them.
type rig struct {
	*testing.T
	at      string                // the Redis's URL
	redis   redis.UniversalClient // the bridges'
	plain   redis.UniversalClient // the producer's and the test's
	client  *asynq.Client
	inspect *asynq.Inspector
	brain   *brain
	tenants map[string]string
}

// each runs a test with every kind of server that this machine has.
func each(t *testing.T, test func(r *rig)) {
	t.Helper()
	for _, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			t.Parallel()
			test(newRig(t, harness.StartRedis(t, harness.RedisOptions{Binary: binary}).URL(), asynqin.Access{}))
		})
	}
}

// newRig connects to a Redis.
func newRig(t *testing.T, url string, access asynqin.Access) *rig {
	t.Helper()
	r := &rig{T: t, at: url, redis: open(t, url, access), plain: open(t, url, access), brain: newBrain(), tenants: map[string]string{"paddock": "default"}}
	r.client, r.inspect = asynq.NewClientFromRedisClient(r.plain), asynq.NewInspectorFromRedisClient(r.plain)
	t.Cleanup(r.brain.letGo)
	return r
}

func open(t *testing.T, url string, access asynqin.Access) redis.UniversalClient {
	t.Helper()
	c, err := asynqin.Open(url, access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// bridge starts a bridge, and gives what ends it and waits; the test's end does so too.
func (r *rig) bridge() (stop func()) {
	r.Helper()
	return r.bridgeWith(asynqin.Config{})
}

func (r *rig) bridgeWith(c asynqin.Config) (stop func()) {
	r.Helper()
	c.Redis, c.Brain, c.Tenants = r.redis, r.brain, r.tenants
	ctx, cancel := context.WithCancel(zerolog.New(zerolog.NewTestWriter(r.T)).Level(zerolog.InfoLevel).WithContext(context.Background()))
	done := make(chan error, 1)
	go func() { done <- asynqin.Run(ctx, c) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.Error(err)
			}
		case <-time.After(30 * time.Second):
			r.Fatal("the bridge does not end")
		}
	}
	r.Cleanup(stop)
	return stop
}

// enqueue enqueues a task, on paddock:default where the options name no queue.
func (r *rig) enqueue(kind, payload string, opts ...asynq.Option) *asynq.TaskInfo {
	r.Helper()
	info, err := r.client.EnqueueContext(r.Context(), asynq.NewTask(kind, []byte(payload)), append([]asynq.Option{asynq.Queue("paddock:default")}, opts...)...)
	if err != nil {
		r.Fatal(err)
	}
	return info
}

// run enqueues a source.
func (r *rig) run(source string, opts ...asynq.Option) *asynq.TaskInfo {
	r.Helper()
	return r.enqueue("sandbox:python", source, opts...)
}

const patience = 20 * time.Second

// until waits for what is to come, and says what it waited for.
func (r *rig) until(what string, is func() bool) {
	r.Helper()
	r.within(patience, what, is)
}

func (r *rig) within(d time.Duration, what string, is func() bool) {
	r.Helper()
	for end := time.Now().Add(d); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not within %s: %s", d, what)
		}
	}
}

// untilState waits until the task is in a state.
func (r *rig) untilState(t *asynq.TaskInfo, want asynq.TaskState) (info *asynq.TaskInfo) {
	r.Helper()
	return r.stateWithin(patience, t, want)
}

func (r *rig) stateWithin(d time.Duration, t *asynq.TaskInfo, want asynq.TaskState) (info *asynq.TaskInfo) {
	r.Helper()
	var err error
	var last string
	for end := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		if info, err = r.inspect.GetTaskInfo(t.Queue, t.ID); err == nil && info.State == want {
			return info
		}
		if err != nil {
			last = err.Error()
		} else {
			last = info.State.String() + ": " + info.LastErr
		}
		if time.Now().After(end) {
			r.Fatalf("task %s is not %s within %s: %s", t.ID, want, d, last)
		}
	}
}

// untilGone waits until asynq has deleted the task.
func (r *rig) untilGone(t *asynq.TaskInfo) {
	r.Helper()
	r.until("the task's end", func() bool {
		_, err := r.inspect.GetTaskInfo(t.Queue, t.ID)
		return errors.Is(err, asynq.ErrTaskNotFound)
	})
}

// result is what producers read.
type result struct {
	jobs.Result
	Job      string
	State    jobs.State
	Cut      bool
	Warnings []string
	Error    *jobs.Error
}

// kept gives the result that is kept beside the task.
func (r *rig) kept(t *asynq.TaskInfo) result {
	r.Helper()
	data, err := r.plain.Get(r.Context(), "paddock:result:{"+t.Queue+"}:"+t.ID).Bytes()
	if err != nil {
		r.Fatal(err)
	}
	return r.decode(data)
}

func (r *rig) decode(data []byte) (res result) {
	r.Helper()
	if err := json.Unmarshal(data, &res); err != nil {
		r.Fatalf("%v: %q", err, data)
	}
	return res
}

// wantJobs checks how many jobs there have ever been.
func (r *rig) wantJobs(n int) []jobs.Job {
	r.Helper()
	all := r.brain.all()
	if len(all) != n {
		r.Errorf("%d jobs were admitted, want %d", len(all), n)
	}
	return all
}
