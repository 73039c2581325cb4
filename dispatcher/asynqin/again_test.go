package asynqin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// The bridge ends while a job runs: the task waits in its queue, the job runs on, and the next bridge finds it.
func TestStop(t *testing.T) {
	each(t, func(r *rig) {
		stop := r.bridge()
		task := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour))
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		stop()
		if info := r.untilState(task, asynq.TaskStatePending); info.Retried != 0 {
			r.Errorf("retried %d", info.Retried)
		}
		if j := r.wantJobs(1)[0]; j.CancelRequested || j.State.Terminal() {
			r.Errorf("the job is %s, canceled: %t", j.State, j.CancelRequested)
		}
		r.bridge()
		r.untilState(task, asynq.TaskStateActive)
		r.brain.letGo()
		r.untilState(task, asynq.TaskStateCompleted)
		r.wantJobs(1)
	})
}

// A bridge that has died with a task: what ended meanwhile is found ended. Its lease is made to run out, which takes 30 s otherwise.
func TestAbandoned(t *testing.T) {
	each(t, func(r *rig) {
		c := r.startChild()
		ended, lasting := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour)), r.run("exit 4; sleep 1h", asynq.MaxRetry(0))
		r.until("the jobs", func() bool { return len(r.brain.all()) == 2 })
		c.kill()
		r.bridge()
		time.Sleep(3 * time.Second) // looks at leases that are still good
		for _, task := range []*asynq.TaskInfo{ended, lasting} {
			if info := r.untilState(task, asynq.TaskStateActive); !r.leased(task) {
				r.Errorf("%+v is not the dead bridge's any more", info)
			}
		}
		r.brain.letGo()
		r.expire(ended)
		r.untilState(ended, asynq.TaskStateCompleted)
		r.expire(lasting)
		if info := r.untilState(lasting, asynq.TaskStateArchived); *r.decode(info.Result).ExitCode != 4 {
			r.Errorf("%s", info.Result)
		}
		r.wantJobs(2)
	})
}

// A bridge that has died while its clock was two days ahead: its leases are not taken for good ones for as long.
func TestAbandonedAhead(t *testing.T) {
	each(t, func(r *rig) {
		c := r.startChild()
		task := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour))
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		c.kill()
		r.leaseUntil(task, time.Now().Add(48*time.Hour))
		r.brain.letGo()
		r.bridge()
		r.untilState(task, asynq.TaskStateCompleted)
		r.wantJobs(1)
	})
}

// A bridge whose clock is set does not take its own tasks for abandoned: none gets a second job while its first ends.
func TestClockSet(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		task := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour))
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		for _, by := range []time.Duration{48 * time.Hour, -48 * time.Hour} {
			r.leaseUntil(task, time.Now().Add(by))
			time.Sleep(3 * time.Second) // looks for abandoned ones
			if did := r.plain.Info(r.Context(), "commandstats").Val(); strings.Contains(did, "cmdstat_rpush:") {
				r.Errorf("with a lease until %v from now it was given back to its queue", by)
			}
		}
		r.brain.letGo()
		r.untilState(task, asynq.TaskStateCompleted)
		r.wantJobs(1)
	})
}

// The same at its own pace: asynq's recoverer, which archives such a task, does not come first.
func TestKilled(t *testing.T) {
	each(t, func(r *rig) {
		c := r.startChild()
		task := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour))
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		c.kill()
		killed := time.Now()
		r.bridge()
		r.brain.letGo()
		r.stateWithin(45*time.Second, task, asynq.TaskStateCompleted)
		r.Logf("ended %s after the bridge was killed", time.Since(killed).Round(time.Millisecond))
		r.wantJobs(1)
	})
}

// Redis is away when the bridge looks for abandoned tasks, and there when asynq's recoverer would: a task without retries, whose lease ran
// out long ago, is not archived while its job runs.
func TestAbandonedForLong(t *testing.T) {
	each(t, func(r *rig) {
		c := r.startChild()
		task := r.run("hold", asynq.MaxRetry(0), asynq.Retention(time.Hour))
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		c.kill()
		r.leaseUntil(task, time.Now().Add(-time.Minute))
		r.redis = &stumbling{UniversalClient: r.redis, looks: 3} // one a queue
		r.bridge()
		r.brain.letGo()
		r.untilState(task, asynq.TaskStateCompleted)
		r.wantJobs(1)
	})
}

// stumbling is a Redis that is away for the first looks at abandoned tasks.
type stumbling struct {
	redis.UniversalClient
	looks int
}

func (s *stumbling) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if len(keys) == 3 && strings.HasSuffix(keys[0], "}:lease") && s.looks > 0 {
		s.looks--
		return redis.NewCmdResult(nil, errors.New("away"))
	}
	return s.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

// The bridge dies between the mapping and the admission, or the dispatcher is away: the job is admitted by the next, once.
func TestKilledBeforeAdmission(t *testing.T) {
	each(t, func(r *rig) {
		refuse := errors.New("first")
		r.brain.refuse = func(string, *jobs.Spec) error {
			if refuse != nil {
				return &jobs.Error{Code: jobs.CodeUnavailable, Message: "not yet", RetryAfterMS: 1000}
			}
			return nil
		}
		c := r.startChild()
		task := r.run("print once", asynq.Retention(time.Hour))
		r.until("the mapping", func() bool { return r.plain.HExists(r.Context(), "asynq:{"+task.Queue+"}:t:"+task.ID, "paddock").Val() })
		c.kill()
		r.brain.mu.Lock()
		refuse = nil
		r.brain.mu.Unlock()
		r.expire(task)
		r.bridge()
		r.untilState(task, asynq.TaskStateCompleted)
		r.wantJobs(1)
	})
}

// Redis restarts, with its data, while jobs run and end.
func TestRedisRestarts(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		for name, away := range map[string]time.Duration{"soon": 2 * time.Second, "past the leases": 36 * time.Second} {
			t.Run(binary+" "+name, func(t *testing.T) {
				t.Parallel()
				s := harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
				r := newRig(t, s.URL(), asynqin.Access{})
				r.bridge()
				retain := asynq.Retention(time.Hour)
				ended, lasting := r.run("sleep 1s", asynq.MaxRetry(0), retain), r.run("hold", asynq.MaxRetry(0), retain)
				r.until("the jobs", func() bool { return len(r.brain.all()) == 2 })
				s.Kill()
				began := cpuTime(t)
				time.Sleep(away)
				t.Logf("%s of processor time while Redis was away for %s", cpuTime(t)-began, away)
				s.Start(t)
				r.stateWithin(time.Minute, ended, asynq.TaskStateCompleted)
				r.untilState(lasting, asynq.TaskStateActive)
				r.brain.letGo()
				r.stateWithin(time.Minute, lasting, asynq.TaskStateCompleted)
				if res := r.decode(r.stateWithin(time.Minute, r.run("print after", retain), asynq.TaskStateCompleted).Result); res.Steps[0].Stdout.Text != "after\n" {
					r.Errorf("%+v", res)
				}
				r.wantJobs(3)
			})
		}
	}
}

// Redis comes later than the bridge, and goes before it.
func TestRedisLateAndGone(t *testing.T) {
	o := harness.RedisOptions{Binary: harness.NeedRedis(t)[0], Port: harness.FreePort(t), Dir: t.TempDir()}
	r := newRig(t, fmt.Sprintf("redis://127.0.0.1:%d", o.Port), asynqin.Access{})
	stop := r.bridge()
	time.Sleep(500 * time.Millisecond)
	s := harness.StartRedis(t, o)
	r.untilState(r.run("1", asynq.Retention(time.Hour)), asynq.TaskStateCompleted)
	s.Kill()
	stop()
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Round(time.Millisecond)
}

// leased tells whether the task's lease is good.
func (r *rig) leased(t *asynq.TaskInfo) bool {
	return r.plain.ZScore(r.Context(), "asynq:{"+t.Queue+"}:lease", t.ID).Val() > float64(time.Now().Unix())
}

// expire lets the task's lease run out now.
func (r *rig) expire(t *asynq.TaskInfo) { r.leaseUntil(t, time.Now().Add(-time.Second)) }

func (r *rig) leaseUntil(t *asynq.TaskInfo, until time.Time) {
	r.Helper()
	if err := r.plain.ZAdd(r.Context(), "asynq:{"+t.Queue+"}:lease", redis.Z{Member: t.ID, Score: float64(until.Unix())}).Err(); err != nil {
		r.Fatal(err)
	}
}

// Environment of a child, which is this test's program as a bridge.
const (
	childRedis = "PADDOCK_TEST_ASYNQIN_REDIS"
	childBrain = "PADDOCK_TEST_ASYNQIN_BRAIN"
)

// bridgeChild is a bridge in a process of its own, whose brain is the test's.
type bridgeChild struct {
	cmd  *exec.Cmd
	kill func()
}

func (r *rig) startChild() bridgeChild {
	r.Helper()
	dir, err := os.MkdirTemp("", "asynqin-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "brain")
	l, err := net.Listen("unix", socket)
	if err != nil {
		r.Fatal(err)
	}
	served := rpc.NewServer()
	if err := served.Register(&Remote{r.brain}); err != nil {
		r.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go served.ServeConn(c)
		}
	}()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childRedis+"="+r.at, childBrain+"="+socket)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	killed := false
	c := bridgeChild{cmd, func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			l.Close()
			<-over
		}
	}}
	r.Cleanup(c.kill)
	return c
}

// child is the process of startChild.
func child() {
	c, err := asynqin.Open(os.Getenv(childRedis), asynqin.Access{})
	if err != nil {
		panic(err)
	}
	var b asynqin.Brain = broken{}
	if socket := os.Getenv(childBrain); socket != "" {
		conn, err := rpc.Dial("unix", socket)
		if err != nil {
			panic(err)
		}
		b = far{conn}
	}
	if err := asynqin.Run(context.Background(), asynqin.Config{Redis: c, Brain: b, Tenants: map[string]string{"paddock": "default"}}); err != nil {
		panic(err)
	}
}

// broken is a brain that panics with its lock held.
type broken struct{ asynqin.Brain }

var locked sync.Mutex

func (broken) Admit(context.Context, string, *jobs.Spec) (jobs.Job, bool, error) {
	locked.Lock()
	panic("broken while it holds its lock")
}

// A dispatcher that has panicked does not live on, whoever had called it.
func TestPanicEndsTheProcess(t *testing.T) {
	each(t, func(r *rig) {
		var said bytes.Buffer
		cmd := exec.CommandContext(r.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), childRedis+"="+r.at, childBrain+"=")
		cmd.Stderr = &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			r.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		r.run("1")
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(said.String(), "panic: broken while it holds its lock") {
				r.Errorf("it ended with %v:\n%s", err, &said)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
			r.Errorf("it lives on:\n%s", &said)
		}
	})
}

// Remote serves a brain to a child.
type Remote struct{ brain *brain }

// Call is what the brain is asked; Answer what it says.
type (
	Call struct {
		Tenant, ID string
		Spec       *jobs.Spec
	}
	Answer struct {
		Job       jobs.Job
		Duplicate bool
		Err       *jobs.Error
	}
)

func (r *Remote) Admit(c Call, a *Answer) (_ error) {
	var err error
	a.Job, a.Duplicate, err = r.brain.Admit(context.Background(), c.Tenant, c.Spec)
	a.Err = jobs.ErrorOf(err)
	return nil
}

func (r *Remote) Await(c Call, a *Answer) (_ error) {
	var err error
	a.Job, err = r.brain.Await(context.Background(), c.Tenant, c.ID)
	a.Err = jobs.ErrorOf(err)
	return nil
}

func (r *Remote) Cancel(c Call, a *Answer) (_ error) {
	var err error
	a.Job.State, err = r.brain.Cancel(context.Background(), c.Tenant, c.ID)
	a.Err = jobs.ErrorOf(err)
	return nil
}

// far is the child's end.
type far struct{ *rpc.Client }

func (f far) ask(ctx context.Context, what string, c Call) (a Answer, _ error) {
	call := f.Go("Remote."+what, c, &a, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	if call.Error != nil {
		return a, call.Error
	}
	if a.Err != nil {
		return a, a.Err
	}
	return a, nil
}

func (f far) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	a, err := f.ask(ctx, "Admit", Call{Tenant: tenant, Spec: spec})
	return a.Job, a.Duplicate, err
}

func (f far) Await(ctx context.Context, tenant, id string) (jobs.Job, error) {
	a, err := f.ask(ctx, "Await", Call{Tenant: tenant, ID: id})
	return a.Job, err
}

func (f far) Cancel(ctx context.Context, tenant, id string) (jobs.State, error) {
	a, err := f.ask(ctx, "Cancel", Call{Tenant: tenant, ID: id})
	return a.Job.State, err
}
