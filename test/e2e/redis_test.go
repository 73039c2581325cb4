package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// producer knows asynq alone.
type producer struct {
	*testing.T
	client  *asynq.Client
	inspect *asynq.Inspector
}

func produce(t *testing.T, r *harness.Redis) producer {
	t.Helper()
	return produceAt(t, asynq.RedisClientOpt{Addr: r.Addr(), ReadTimeout: redisAnswers})
}

// redisAnswers bounds a server's answer to a producer, whose machine may be loaded and whose disk may stand still. After 3 s, which is what
// go-redis waits by itself, it asks again, and a task that was enqueued already is "a conflict" then.
const redisAnswers = time.Minute

func produceAt(t *testing.T, at asynq.RedisConnOpt) producer {
	t.Helper()
	p := producer{t, asynq.NewClient(at), asynq.NewInspector(at)}
	t.Cleanup(func() { _, _ = p.client.Close(), p.inspect.Close() })
	return p
}

func (p producer) enqueue(shell string, opts ...asynq.Option) *asynq.TaskInfo {
	p.Helper()
	return p.enqueueSpec(jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: shell}}}, opts...)
}

func (p producer) enqueueSpec(s jobs.Spec, opts ...asynq.Option) *asynq.TaskInfo {
	p.Helper()
	info, err := p.try(s, opts...)
	if err != nil {
		p.Fatal(err)
	}
	return info
}

func (p producer) try(s jobs.Spec, opts ...asynq.Option) (*asynq.TaskInfo, error) {
	p.Helper()
	payload, err := json.Marshal(s)
	if err != nil {
		p.Fatal(err)
	}
	return p.client.Enqueue(asynq.NewTask("sandbox:run", payload), append([]asynq.Option{asynq.Queue("paddock:default"), asynq.Retention(time.Hour)}, opts...)...)
}

// cancel cancels an active task, as often as that takes: Redis may lose what is published.
func (p producer) cancel(task *asynq.TaskInfo) redisResult {
	p.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		info, err := p.inspect.GetTaskInfo(task.Queue, task.ID)
		if err == nil && info.State == asynq.TaskStateArchived {
			return p.until(task, asynq.TaskStateArchived, time.Minute)
		}
		err = errors.Join(err, p.inspect.CancelProcessing(task.ID))
		if time.Now().After(end) {
			p.Fatalf("task %s is not canceled: %+v, %v", task.ID, info, err)
		}
	}
}

// redisResult is what a task holds.
type redisResult struct {
	jobs.Result
	Job string
}

// until waits until the task is in a state, and gives its result.
func (p producer) until(task *asynq.TaskInfo, want asynq.TaskState, within time.Duration) (r redisResult) {
	p.Helper()
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		info, err := p.inspect.GetTaskInfo(task.Queue, task.ID)
		switch {
		case err == nil && info.State == want && want == asynq.TaskStateActive:
			return r
		case err == nil && info.State == want:
			if err := json.Unmarshal(info.Result, &r); err != nil {
				p.Fatalf("%v: %q", err, info.Result)
			}
			return r
		case time.Now().After(end):
			p.Fatalf("task %s is not %s within %s: %+v %v", task.ID, want, within, info, err)
		}
	}
}

// untilFailed waits until asynq is to try a task again, in a queue that stands still, and gives the result of the try that failed.
func (p producer) untilFailed(task *asynq.TaskInfo) (r redisResult) {
	p.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		info, err := p.inspect.GetTaskInfo(task.Queue, task.ID)
		if err == nil && info.Retried == 1 && (info.State == asynq.TaskStateRetry || info.State == asynq.TaskStatePending) { // its time comes after 15 to 45 s
			if err := json.Unmarshal(info.Result, &r); err != nil {
				p.Fatalf("%v: %q", err, info.Result)
			}
			return r
		}
		if time.Now().After(end) {
			p.Fatalf("task %s is not to be tried again: %+v %v", task.ID, info, err)
		}
	}
}

// pause has a queue stand still: what is active stays so.
func (p producer) pause(queue string) {
	p.Helper()
	if err := p.inspect.PauseQueue(queue); err != nil {
		p.Fatal(err)
	}
}

// tryAgain lets the queue go on, with that task at once.
func (p producer) tryAgain(task *asynq.TaskInfo) {
	p.Helper()
	_ = p.inspect.RunTask(task.Queue, task.ID) // where its time has not come
	if err := p.inspect.UnpauseQueue(task.Queue); err != nil {
		p.Fatal(err)
	}
}

// Tasks become jobs of the real dispatcher, which a real worker runs; a dispatcher that is killed has a successor, and no job runs twice.
func TestRedis(t *testing.T) {
	s := embed(t, t.TempDir(), "127.0.0.1:0")
	t.Cleanup(s.Close)
	redis := harness.StartRedis(t, harness.RedisOptions{})
	o := harness.Options{Command: "dispatcher", Dir: shortDir(t), Args: []string{"--listen", "", "--nats", s.URL(), "--redis", redis.URL()}}
	d := start(t, o)
	d.URL = s.URL()
	start(t, harness.Options{Command: "worker", NATS: s.URL(), Driver: "hostproc", Args: []string{"--images", "base", "--vcpus", "3"}})
	c := connect(t, d)
	p := produce(t, redis)

	ok := p.until(p.enqueue("echo $PADDOCK_ATTEMPT"), asynq.TaskStateCompleted, time.Minute)
	if stdout(t, ok.Result) != "1\n" {
		t.Errorf("%+v", ok)
	}
	wantSuccess(t, wantOnce(t, c, ok.Job))
	if r := p.until(p.enqueue("echo no >&2; exit 9"), asynq.TaskStateArchived, time.Minute); *r.ExitCode != 9 || lastStderr(r.Result) != "no\n" {
		t.Errorf("%+v", r)
	}

	if r := p.cancel(p.begin(t.TempDir())); r.Ending != jobs.Canceled {
		t.Errorf("%+v", r)
	}

	brief, lasting := t.TempDir(), t.TempDir()
	tasks := map[string]*asynq.TaskInfo{}
	for _, dir := range []string{brief, lasting} {
		tasks[dir] = p.enqueueSpec(witnessed(dir), asynq.MaxRetry(0))
		untilText(t, filepath.Join(dir, "begin"), "1\n")
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 5)
	// Both run: a lease that was given and not yet heard of would be given anew, as attempt 2.
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		l, err := c.List(t.Context(), jobs.ListRequest{States: []jobs.State{jobs.StateQueued, jobs.StateLeased}})
		if err == nil && len(l.Jobs) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal(l, err)
		}
	}
	d.Kill()
	letGo(t, brief)
	untilFile(t, filepath.Join(brief, "end"))
	start(t, o)
	wantSuccess(t, wantOnce(t, c, p.until(tasks[brief], asynq.TaskStateCompleted, 2*time.Minute).Job))
	letGo(t, lasting)
	wantSuccess(t, wantOnce(t, c, p.until(tasks[lasting], asynq.TaskStateCompleted, 2*time.Minute).Job))
	for dir := range tasks {
		wantRan(t, dir, "1\n", "1\n")
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 5)
}

// A job whose every attempt has lost its worker is dead, and its task waits for asynq's own retry, which is another job.
func TestRedisRetry(t *testing.T) {
	needMachines(t)
	redis := harness.StartRedis(t, harness.RedisOptions{})
	d := start(t, harness.Options{Command: "dispatcher", Args: []string{"--redis", redis.URL()}})
	worker := harness.Options{Command: "worker", Dir: shortDir(t), NATS: d.URL, Driver: "hostproc", Args: []string{"--images", "base"}}
	w := start(t, worker)
	c, p, dir := connect(t, d), produce(t, redis), t.TempDir()
	spec := witnessed(dir)
	spec.InfraRetries = new(1)
	task := p.enqueueSpec(spec, asynq.MaxRetry(1))
	for _, began := range []string{"1\n", "1\n2\n"} {
		untilText(t, filepath.Join(dir, "begin"), began)
		if began == "1\n2\n" {
			p.pause(task.Queue)
		}
		w.Kill()
		w = start(t, worker)
	}
	dead := p.untilFailed(task)
	if dead.Ending != jobs.WorkerLost || dead.Class != jobs.ClassInfra || dead.Attempt != 2 {
		t.Errorf("%+v", dead)
	}
	wantDead := func() {
		t.Helper()
		if j, err := c.Get(t.Context(), dead.Job); err != nil || j.State != jobs.StateDead || j.Attempt != 2 {
			t.Errorf("the first job is %s in attempt %d, %v", j.State, j.Attempt, err)
		}
	}
	wantDead()
	letGo(t, dir)
	p.tryAgain(task)
	again := p.until(task, asynq.TaskStateCompleted, time.Minute)
	if wantSuccess(t, again.Result); again.Job == dead.Job || again.Attempt != 1 {
		t.Errorf("the retry is %s in attempt %d, and was %s before", again.Job, again.Attempt, dead.Job)
	}
	if info, err := p.inspect.GetTaskInfo(task.Queue, task.ID); err != nil || info.Retried != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	untilText(t, filepath.Join(dir, "begin"), "1\n2\n1\n")
	wantDead()
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 2)
}

// untilText waits until a file holds just that.
func untilText(t *testing.T, name, want string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(name)
		if string(b) == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s holds %q and not %q: %v", name, b, want, err)
		}
	}
}

// wantRan checks, outside of Paddock, which attempts of a witnessed job began and ended.
func wantRan(t *testing.T, dir, began, ended string) {
	t.Helper()
	for name, want := range map[string]string{"begin": began, "end": ended} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if string(b) != want || err != nil && !os.IsNotExist(err) {
			t.Errorf("%s of %s: attempts %q, want %q: %v", name, dir, b, want, err)
		}
	}
}

// untilJobs waits until there are so many jobs, and fails where there are ever more.
func untilJobs(t *testing.T, list func() (jobs.ListReply, error), n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		l, err := list()
		if err == nil && len(l.Jobs) == n {
			return
		}
		if len(l.Jobs) > n || time.Now().After(end) {
			t.Fatal(len(l.Jobs), "jobs", errors.Join(err))
		}
	}
}

// The measurement of this way in works. Figures are not looked at, but that there are as many as asked for.
func TestBenchAsynq(t *testing.T) {
	needMachines(t)
	harness.NeedRedis(t)
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "bench", "asynq", "--json", "--image-dir", filepath.Join(cache, "images"), "--tasks", "200", "--pickups", "5")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	var report struct{ Samples map[string][]float64 }
	if err := json.Unmarshal(out, &report); err != nil || len(report.Samples["picked up ms"]) != 5 {
		t.Errorf("%v in %s", err, out)
	}
}
