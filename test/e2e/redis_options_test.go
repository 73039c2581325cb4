package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// redisUp starts a dispatcher that takes tasks from a Redis, and a worker of so many slots.
func redisUp(t *testing.T, url string, slots int, args ...string) (*client.Client, *harness.Paddock) {
	t.Helper()
	d := start(t, harness.Options{Command: "dispatcher", Args: append([]string{"--redis", url}, args...)})
	w := start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--images", "base", "--vcpus", fmt.Sprint(slots)}})
	return connect(t, d), w
}

// begin enqueues a witnessed job, and waits until it runs.
func (p producer) begin(dir string, opts ...asynq.Option) *asynq.TaskInfo {
	p.Helper()
	task := p.enqueueSpec(witnessed(dir), opts...)
	untilText(p.T, filepath.Join(dir, "begin"), "1\n")
	return task
}

// untilGone waits until there is no such task.
func (p producer) untilGone(task *asynq.TaskInfo) {
	p.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		info, err := p.inspect.GetTaskInfo(task.Queue, task.ID)
		if errors.Is(err, asynq.ErrTaskNotFound) {
			return
		}
		if time.Now().After(end) {
			p.Fatalf("task %s is still there: %+v, %v", task.ID, info, err)
		}
	}
}

// beside waits for the result that is kept beside a task.
func beside(t *testing.T, c redis.UniversalClient, task *asynq.TaskInfo) (r redisResult) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		b, err := c.Get(t.Context(), "paddock:result:{"+task.Queue+"}:"+task.ID).Bytes()
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err == nil {
			return r
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// What asynq's options mean to the real dispatcher, whose programs are counted from outside.
func TestRedisOptions(t *testing.T) {
	t.Parallel()
	server := harness.StartRedis(t, harness.RedisOptions{})
	c, w := redisUp(t, server.URL(), 8)
	p := produce(t, server)
	gone := func(dir string) {
		t.Helper()
		if l := processes(t, w.PID(), dir); len(l) > 0 {
			t.Errorf("the program of %s still runs: %d", dir, l)
		}
	}

	// What is to be over begins now, and is looked at in the end: each time is longer than a loaded machine stands still.
	const retention, timeout = 30 * time.Second, 20 * time.Second
	kept := p.enqueue("echo kept", asynq.Retention(retention))
	out, outAgain, over := t.TempDir(), t.TempDir(), t.TempDir()
	overdue := p.enqueueSpec(witnessed(over), asynq.Deadline(time.Now().Add(retention)), asynq.MaxRetry(0))
	timedOut := p.begin(out, asynq.Timeout(timeout), asynq.MaxRetry(0))
	timedOutAgain := p.begin(outAgain, asynq.Timeout(timeout), asynq.MaxRetry(1), asynq.Queue("paddock:low"))
	p.pause(timedOutAgain.Queue)
	n := 4

	// Retention, while the task is there.
	if r := p.until(kept, asynq.TaskStateCompleted, time.Minute); stdout(t, r.Result) != "kept\n" {
		t.Errorf("%+v", r)
	}
	completed, err := p.inspect.GetTaskInfo(kept.Queue, kept.ID)
	if err != nil {
		t.Fatal(err)
	}
	// None: the result is beside the task.
	none := p.enqueue("echo none", asynq.Retention(0))
	p.untilGone(none)
	if r := beside(t, server.Client(t), none); stdout(t, r.Result) != "none\n" {
		t.Errorf("%+v", r)
	}
	// A program that fails: archived at once, whatever retries are left, and whatever the retention.
	failed := p.enqueue("echo why >&2; exit 3", asynq.Retention(0))
	if r := p.until(failed, asynq.TaskStateArchived, time.Minute); *r.ExitCode != 3 || lastStderr(r.Result) != "why\n" {
		t.Errorf("%+v", r)
	}
	n += 2

	// Unique: refused while there is one, and not after.
	single, unique := t.TempDir(), asynq.Unique(time.Hour)
	first := p.begin(single, unique)
	if _, err := p.try(witnessed(single), unique); !errors.Is(err, asynq.ErrDuplicateTask) {
		t.Errorf("a second one: %v", err)
	}
	letGo(t, single)
	p.until(first, asynq.TaskStateCompleted, time.Minute)
	p.until(p.enqueueSpec(witnessed(single), unique), asynq.TaskStateCompleted, time.Minute)
	wantRan(t, single, "1\n1\n", "1\n1\n")
	n += 2

	// Canceled: archived, with retries left, and the program is gone.
	stopped := t.TempDir()
	task := p.begin(stopped)
	if r := p.cancel(task); r.Ending != jobs.Canceled {
		t.Errorf("%+v", r)
	}
	if info, err := p.inspect.GetTaskInfo(task.Queue, task.ID); err != nil || info.Retried != 0 {
		t.Errorf("%+v, %v", info, err)
	}
	gone(stopped)
	n++

	// Timeout and Deadline: the job is canceled, and the task archived, or tried again where it has retries left, as another job.
	for dir, task := range map[string]*asynq.TaskInfo{out: timedOut, over: overdue} {
		r := p.until(task, asynq.TaskStateArchived, time.Minute)
		if info, err := p.inspect.GetTaskInfo(task.Queue, task.ID); r.Ending != jobs.Canceled || err != nil || !strings.Contains(info.LastErr, "deadline") {
			t.Errorf("%+v, %+v, %v", r, info, err)
		}
		if j, err := c.Get(t.Context(), r.Job); err != nil || !j.State.Terminal() {
			t.Errorf("job %s is %s, %v", r.Job, j.State, err)
		}
		gone(dir)
	}
	before := p.untilFailed(timedOutAgain)
	gone(outAgain)
	p.tryAgain(timedOutAgain)
	after := p.until(timedOutAgain, asynq.TaskStateArchived, 2*time.Minute)
	if before.Ending != jobs.Canceled || after.Ending != jobs.Canceled || before.Job == after.Job {
		t.Errorf("%+v, then %+v", before, after)
	}
	gone(outAgain)
	n++

	// Retention, when it is over.
	p.untilGone(kept)
	if since := time.Since(completed.CompletedAt); since < retention-time.Second { // asynq counts in seconds
		t.Errorf("kept for %s of %s", since, retention)
	}
	if r := beside(t, server.Client(t), kept); stdout(t, r.Result) != "kept\n" {
		t.Errorf("%+v", r)
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, n)
}

// Where there is one slot, tasks of better queues go first.
func TestRedisQueues(t *testing.T) {
	t.Parallel()
	server := harness.StartRedis(t, harness.RedisOptions{})
	c, _ := redisUp(t, server.URL(), 1)
	p := produce(t, server)
	dir := t.TempDir()
	p.begin(dir)
	order := filepath.Join(dir, "order")
	var tasks []*asynq.TaskInfo
	for _, q := range []string{"low", "default", "critical"} {
		tasks = append(tasks, p.enqueue(fmt.Sprintf("echo %s >>%s", q, order), asynq.Queue("paddock:"+q)))
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 4)
	letGo(t, dir)
	for _, task := range tasks {
		p.until(task, asynq.TaskStateCompleted, time.Minute)
	}
	untilText(t, order, "critical\ndefault\nlow\n")
}

// Redis is killed while tasks are active, and started again with what it had written: nothing runs twice, what ended meanwhile is known.
func TestRedisRestarts(t *testing.T) {
	t.Parallel()
	server := harness.StartRedis(t, harness.RedisOptions{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	c, _ := redisUp(t, server.URL(), 3)
	p := produce(t, server)
	brief, lasting := t.TempDir(), t.TempDir()
	ended, held := p.begin(brief, asynq.MaxRetry(0)), p.begin(lasting, asynq.MaxRetry(0))
	server.Kill()
	letGo(t, brief)
	untilFile(t, filepath.Join(brief, "end"))
	server.Start(t)
	wantSuccess(t, p.until(ended, asynq.TaskStateCompleted, 2*time.Minute).Result)
	p.until(held, asynq.TaskStateActive, time.Minute)
	letGo(t, lasting)
	wantSuccess(t, p.until(held, asynq.TaskStateCompleted, 2*time.Minute).Result)
	for _, dir := range []string{brief, lasting} {
		wantRan(t, dir, "1\n", "1\n")
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 2)
}

// The dispatcher is cut off from Redis for longer than asynq's leases, by a network that was slow before. Redis runs on, and producers reach
// it. Nothing runs twice, and nobody else notices.
func TestRedisCut(t *testing.T) {
	t.Parallel()
	server := harness.StartRedis(t, harness.RedisOptions{})
	relay := harness.StartRelay(t, server.Addr())
	relay.Slow(100 * time.Millisecond)
	c, _ := redisUp(t, "redis://"+relay.Addr(), 5)
	p, plain := produce(t, server), server.Client(t)
	brief, lasting, stopped, late := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	ended, held, canceled := p.begin(brief, asynq.MaxRetry(0)), p.begin(lasting, asynq.MaxRetry(0)), p.begin(stopped, asynq.MaxRetry(0))
	relay.Slow(0)

	// lease says until when the task's is good.
	lease := func(task *asynq.TaskInfo) time.Time {
		return time.Unix(int64(plain.ZScore(t.Context(), "asynq:{"+task.Queue+"}:lease", task.ID).Val()), 0)
	}
	relay.Cut()
	if err := plain.Ping(t.Context()).Err(); err != nil { // behind whatever had come through
		t.Fatal(err)
	}
	letGo(t, late)
	waiting := p.enqueueSpec(witnessed(late), asynq.MaxRetry(0))
	if err := p.inspect.CancelProcessing(canceled.ID); err != nil { // nobody hears it
		t.Fatal(err)
	}
	wantSuccess(t, runJob(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "true"}}}))
	for _, task := range []*asynq.TaskInfo{ended, held, canceled} {
		for end := time.Now().Add(time.Minute); time.Since(lease(task)) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the lease of %s is until %s", task.ID, lease(task))
			}
		}
	}
	letGo(t, brief)
	untilFile(t, filepath.Join(brief, "end"))
	if info, err := p.inspect.GetTaskInfo(waiting.Queue, waiting.ID); err != nil || info.State != asynq.TaskStatePending {
		t.Errorf("it is not cut: %+v, %v", info, err)
	}
	relay.Heal()

	wantSuccess(t, p.until(ended, asynq.TaskStateCompleted, 2*time.Minute).Result)
	wantSuccess(t, p.until(waiting, asynq.TaskStateCompleted, 2*time.Minute).Result)
	if r := p.cancel(canceled); r.Ending != jobs.Canceled {
		t.Errorf("%+v", r)
	}
	for end := time.Now().Add(time.Minute); time.Now().After(lease(held)); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is not taken up again", held.ID)
		}
	}
	letGo(t, lasting)
	wantSuccess(t, p.until(held, asynq.TaskStateCompleted, 2*time.Minute).Result)
	for _, dir := range []string{brief, lasting, late} {
		wantRan(t, dir, "1\n", "1\n")
	}
	wantRan(t, stopped, "1\n", "")
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 5)
}

// The server dies, and the Sentinels make its replica the server, which has not all that the server had acknowledged. What it knows to be
// active goes on, and does not run twice. A task that it does not know is gone, but its job runs to its end. One that it knows for one that
// waits still is another job, where the spec has no key.
func TestRedisFailover(t *testing.T) {
	t.Parallel()
	binary := harness.NeedRedis(t)[0]
	server := harness.StartRedis(t, harness.RedisOptions{Binary: binary})
	main := server.Client(t)
	do := func(args ...any) {
		t.Helper()
		if err := main.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do("acl", "setuser", "replica", "on", ">secret", "+psync", "+replconf", "+ping")
	harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{
		"--replicaof", fmt.Sprintf("127.0.0.1 %d", server.Port), "--masteruser", "replica", "--masterauth", "secret",
	}})
	at := harness.StartSentinels(t, binary, server)
	c, _ := redisUp(t, at, 8)
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	sentinels := []string{u.Host, u.Query().Get("addr")}
	p := produceAt(t, asynq.RedisFailoverClientOpt{MasterName: "main", SentinelAddrs: sentinels, ReadTimeout: redisAnswers})
	plain := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: sentinels, ReadTimeout: redisAnswers})
	t.Cleanup(func() { _ = plain.Close() })

	brief, lasting, unseen := t.TempDir(), t.TempDir(), t.TempDir()
	ended, held := p.begin(brief, asynq.MaxRetry(0)), p.begin(lasting, asynq.MaxRetry(0))
	// Two that the replica sees enqueued, and not taken: one of them says that it is the same.
	low := asynq.Queue("paddock:low")
	keyed, unkeyed := t.TempDir(), t.TempDir()
	p.until(p.enqueue("true", low), asynq.TaskStateCompleted, time.Minute)
	if err := p.inspect.PauseQueue("paddock:low"); err != nil {
		t.Fatal(err)
	}
	spec := witnessed(keyed)
	spec.IdempotencyKey = "once"
	same, another := p.enqueueSpec(spec, low), p.enqueueSpec(witnessed(unkeyed), low)
	seen := plain.Pipeline() // WAIT is about what its connection has written
	seen.Set(t.Context(), "seen", 1, 0)
	n := seen.Do(t.Context(), "wait", 1, 0)
	if _, err := seen.Exec(t.Context()); err != nil || n.Val() != int64(1) {
		t.Fatal(n, err)
	}
	do("acl", "setuser", "replica", "off")
	do("client", "kill", "type", "replica")
	lost := p.begin(unseen, asynq.MaxRetry(0))
	if err := p.inspect.UnpauseQueue("paddock:low"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{keyed, unkeyed} {
		untilText(t, filepath.Join(dir, "begin"), "1\n")
	}
	server.Kill()
	letGo(t, brief)
	wantSuccess(t, p.until(ended, asynq.TaskStateCompleted, 2*time.Minute).Result)
	if info, err := p.inspect.GetTaskInfo(lost.Queue, lost.ID); !errors.Is(err, asynq.ErrTaskNotFound) {
		t.Errorf("the replica has seen what it was to have lost: %+v, %v", info, err)
	}
	letGo(t, unseen)
	wantSuccess(t, beside(t, plain, lost).Result)
	letGo(t, lasting)
	wantSuccess(t, p.until(held, asynq.TaskStateCompleted, 2*time.Minute).Result)
	if err := p.inspect.UnpauseQueue("paddock:low"); err != nil { // that it was before has been lost as well
		t.Fatal(err)
	}
	p.until(same, asynq.TaskStateActive, time.Minute)
	untilText(t, filepath.Join(unkeyed, "begin"), "1\n1\n")
	for dir, task := range map[string]*asynq.TaskInfo{keyed: same, unkeyed: another} {
		letGo(t, dir)
		wantSuccess(t, p.until(task, asynq.TaskStateCompleted, 2*time.Minute).Result)
	}
	for _, dir := range []string{brief, lasting, unseen, keyed} {
		wantRan(t, dir, "1\n", "1\n")
	}
	untilJobs(t, func() (jobs.ListReply, error) { return c.List(t.Context(), jobs.ListRequest{}) }, 7)
}

// wantTasks shows that a success, a failure and a cancel come through each of three queues.
func (p producer) wantTasks(prefix string) {
	p.Helper()
	for _, q := range []string{"critical", "default", "low"} {
		queue := asynq.Queue(prefix + ":" + q)
		if r := p.until(p.enqueue("echo "+q, queue), asynq.TaskStateCompleted, time.Minute); stdout(p.T, r.Result) != q+"\n" {
			p.Errorf("%s: %+v", q, r)
		}
		if r := p.until(p.enqueue("exit 9", queue), asynq.TaskStateArchived, time.Minute); *r.ExitCode != 9 {
			p.Errorf("%s: %+v", q, r)
		}
		dir := p.TempDir()
		if r := p.cancel(p.begin(dir, queue)); r.Ending != jobs.Canceled {
			p.Errorf("%s: %+v", q, r)
		}
		wantRan(p.T, dir, "1\n", "")
	}
}

// Redis is a cluster of three nodes, on which the queues are spread.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	at := harness.StartRedisCluster(t, harness.NeedRedis(t)[0])
	redisUp(t, at, 3)
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	produceAt(t, asynq.RedisClusterClientOpt{Addrs: append([]string{u.Host}, u.Query()["addr"]...), ReadTimeout: redisAnswers}).wantTasks("paddock")
}

// Redis wants TLS with a client's certificate, and knows the users of docs/redis.md alone, with the rights that are there.
func TestRedisTLSAndUsers(t *testing.T) {
	t.Parallel()
	ca := bustest.NewAuthority(t)
	serverCert, serverKey := ca.Leaf("server")
	cert, key := ca.Leaf("client")
	server := harness.StartRedis(t, harness.RedisOptions{Args: []string{
		"--port", "0", "--tls-port", fmt.Sprint(harness.FreePort(t)), "--tls-auth-clients", "yes",
		"--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", ca.File("ca.pem"),
	}})
	addr := "127.0.0.1:" + server.Setting("--tls-port")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca.File("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	trust := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	trust.RootCAs.AppendCertsFromPEM(pem)
	admin := redis.NewClient(&redis.Options{Addr: addr, TLSConfig: trust, ReadTimeout: redisAnswers})
	t.Cleanup(func() { _ = admin.Close() })
	for _, args := range append(harness.RedisUsers(t), []any{"acl", "setuser", "default", "off"}) {
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
	}

	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("other-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ := redisUp(t, "rediss://paddock@"+addr, 3, "--redis-password-file", password,
		"--redis-ca", ca.File("ca.pem"), "--redis-cert", cert, "--redis-key", key, "--redis-tenants", "acme=acme")
	as := func(user, password string) producer {
		return produceAt(t, asynq.RedisClientOpt{Addr: addr, Username: user, Password: password, TLSConfig: trust, ReadTimeout: redisAnswers})
	}
	as("paddock", "other-secret").wantTasks("paddock")

	acme, queue := as("acme", "secret"), asynq.Queue("acme:default")
	dir := t.TempDir()
	task := acme.begin(dir, queue, asynq.Unique(time.Hour), asynq.Timeout(time.Hour))
	for what, err := range map[string]error{
		"cancel":                      acme.inspect.CancelProcessing(task.ID),
		"enqueue on paddock's queues": second(acme.try(witnessed(dir))),
	} {
		if err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("%s: %v", what, err)
		}
	}
	letGo(t, dir)
	r := acme.until(task, asynq.TaskStateCompleted, time.Minute)
	wantSuccess(t, r.Result)
	wantRan(t, dir, "1\n", "1\n")
	if _, err := c.Get(t.Context(), r.Job); jobs.ErrorOf(err).Code != jobs.CodeNotFound {
		t.Errorf("acme's job is the default tenant's: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
