package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/pgtest"
)

// withDatabase is an older version that keeps its ledger in PostgreSQL, as previous does not, with this version's contract. Its schema is older, and
// while it has the ledger open it does not look for that, but this version's has nothing on top that it could not do without. When previous is a
// later one it is that.
const withDatabase = "16fe053"

// A fleet on PostgreSQL is upgraded while it has jobs in every state, its dispatchers first, then its workers, one by one. Each job ends once, in
// its first attempt, and ran once.
func TestUpgradeOnPostgreSQL(t *testing.T) {
	old := versionOf(t, withDatabase)
	database := pgtest.Start(t)
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		u := newUpgrade(t, old, database)
		next := u.stand("")
		if err := u.leader.Stop(); err != nil {
			t.Error(err)
		}
		u.leads(next)
		u.letGo(2)
		u.goesOn()
		u.workers()
		u.ended()
		u.outdated(database)
	})
	// Once the newer version has the ledger no older one is started any more, and newer ones follow each other.
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		u := newUpgrade(t, old, database)
		next := u.stand("")
		u.leader.Kill()
		u.leads(next)
		u.letGo(1)
		u.goesOn()
		u.tooOld(old)
		next = u.stand("")
		u.leader.Kill()
		u.leads(next)
		u.letGo(1)
		u.goesOn()
		next = u.stand("")
		if err := u.leader.Stop(); err != nil {
			t.Error(err)
		}
		u.leads(next)
		u.workers()
		u.ended()
	})
}

// upgrade is a fleet that is upgraded, and what it was given to do.
type upgrade struct {
	*testing.T
	c      *client.Client
	nats   string
	ledger string
	hooks  *hookServer
	leader *harness.Paddock
	old    [2]*harness.Paddock // workers
	dir    string              // where programs tell that they run
	held   []string            // jobs that run until they are let go, all slots full of them
	queued []string            // jobs behind them: a dozen ends with each held one, so that the others wait for as long as is wanted
	free   int                 // how many of them were let go
	jobs   []string            // that are to end well, held ones included
	batch  string
	dead   jobs.Job
	told   jobs.Delivery // waits for its server, signed with secret
	secret string
}

// newUpgrade starts an old dispatcher and two old workers, and gives them jobs.
func newUpgrade(t *testing.T, old string, database *pgtest.Server) *upgrade {
	s := embed(t, t.TempDir(), "127.0.0.1:0")
	t.Cleanup(s.Close)
	u := &upgrade{T: t, nats: s.URL(), ledger: database.Database(t), hooks: newHookServer(t), dir: t.TempDir()}
	u.leader = start(t, u.dispatcher(old))
	for i := range u.old {
		u.old[i] = start(t, u.worker(old, fmt.Sprint("w", i), shortDir(t)))
	}
	u.leader.URL = s.URL()
	u.c = connect(t, u.leader)
	u.fill()
	return u
}

func (u *upgrade) dispatcher(bin string) harness.Options {
	args := []string{"--listen", "", "--nats", u.nats, "--ledger", u.ledger}
	return harness.Options{Binary: bin, Command: "dispatcher", Args: append(args, u.hooks.args(u.T)[2:]...)}
}

func (u *upgrade) worker(bin, name, dir string) harness.Options {
	return harness.Options{Binary: bin, Command: "worker", NATS: u.nats, Driver: "hostproc", Dir: dir, Args: []string{"--name", name, "--images", "base", "--vcpus", "2"}}
}

// program tells that its attempt runs, and prints its job's id when it has done what it has to.
func (u *upgrade) program(does string) jobs.Spec {
	return jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 600_000}, Steps: []jobs.Step{{
		Shell: fmt.Sprintf("echo $PADDOCK_JOB $PADDOCK_ATTEMPT >>%s/ran; %s; echo $PADDOCK_JOB", u.dir, does),
	}}}
}

func (u *upgrade) quick() jobs.Spec { return u.program("true") }

// until is a job that ends when the n-th held one may.
func (u *upgrade) until(n int) jobs.Spec {
	return u.program(fmt.Sprintf("until [ -e %s/go%d ]; do sleep 0.05; done", u.dir, n))
}

// submit adds a job, whoever leads.
func (u *upgrade) submit(key string, s jobs.Spec) string {
	u.Helper()
	s.IdempotencyKey = key
	id := accepted(u.T, u.c, &s).Job.ID
	u.jobs = append(u.jobs, id)
	return id
}

// fill brings in a dead job, one whose webhook waits, as many as fill all slots until they are let go, and behind them some hundred: by themselves,
// in a batch, by a schedule, at a time, and after another.
func (u *upgrade) fill() {
	t := u.T
	none := 0
	dies := u.program("until [ -e " + u.dir + "/lives ]; do sleep 0.05; done")
	dies.InfraRetries = &none
	dead := accepted(t, u.c, &dies).Job.ID
	u.untilRuns(dead)
	for _, w := range u.old {
		for _, pid := range processes(t, w.PID(), "paddock-agent") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	wantOnce(t, u.c, dead)
	if u.dead = u.get(dead); u.dead.State != jobs.StateDead {
		t.Fatalf("a job whose agent was killed is %s", u.dead.State)
	}
	u.secret = askWebhook(t, u.c, jobs.WebhookSecret, nil).Secret
	u.hooks.setDown(true)
	tells := u.quick()
	tells.Callbacks = []jobs.Callback{{URL: u.hooks.URL + "/callback"}}
	wantOnce(t, u.c, u.submit("tells", tells))
	for end := time.Now().Add(time.Minute); u.told.Attempts == 0; time.Sleep(10 * time.Millisecond) {
		for _, d := range askWebhook(t, u.c, jobs.WebhookDeliveries, jobs.DeliveriesRequest{Endpoint: jobs.CallbacksID, Job: u.jobs[0]}).Deliveries {
			u.told = d
		}
		if time.Now().After(end) {
			t.Fatal("nobody tries to call the webhook")
		}
	}
	for i := range 4 {
		id := u.submit(fmt.Sprint("held", i), u.until(i))
		u.untilRuns(id)
		u.held = append(u.held, id)
	}
	for i := range 48 {
		u.queued = append(u.queued, u.submit(fmt.Sprint("queued", i), u.until(i/12)))
	}
	spec, err := json.Marshal(u.quick())
	if err != nil {
		t.Fatal(err)
	}
	r := jobs.BatchRequest{Defaults: spec, IdempotencyKey: "batch"}
	for range 30 {
		r.Jobs = append(r.Jobs, json.RawMessage(`{}`))
	}
	b := answered(t, func(ctx context.Context) (jobs.BatchReply, error) { return u.c.SubmitBatch(ctx, &r) })
	u.batch = b.Batch.ID
	for _, i := range b.Items {
		u.jobs = append(u.jobs, i.ID)
	}
	after, at := u.quick(), u.quick()
	after.DependsOn = u.held[:1]
	at.RunAt = time.Now().Add(4 * time.Second)
	for i := range 5 {
		u.submit(fmt.Sprint("after", i), after)
		u.submit(fmt.Sprint("at", i), at)
	}
	each := u.quick()
	each.Labels = map[string]string{"by": "schedule"}
	answered(t, func(ctx context.Context) (jobs.Schedule, error) {
		return u.c.PutSchedule(ctx, jobs.Schedule{Name: "each", Cron: "@every 1s", Overlap: jobs.OverlapAllow, Spec: &each})
	})
}

// untilRuns waits until a job's program has begun: of it a dispatcher is told with the next heartbeat.
func (u *upgrade) untilRuns(id string) {
	u.Helper()
	for end := time.Now().Add(time.Minute); len(u.attempts(id)) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			u.Fatalf("%s does not run after a minute", id)
		}
	}
}

func (u *upgrade) get(id string) jobs.Job {
	u.Helper()
	return answered(u.T, func(ctx context.Context) (jobs.Job, error) { return u.c.Get(ctx, id) })
}

// letGo lets more of the held jobs end.
func (u *upgrade) letGo(n int) {
	u.Helper()
	for range n {
		if err := os.WriteFile(filepath.Join(u.dir, fmt.Sprint("go", u.free)), nil, 0o644); err != nil {
			u.Fatal(err)
		}
		u.free++
	}
}

// goesOn waits until who leads has taken a job and one that had waited has ended, while others wait.
func (u *upgrade) goesOn() {
	u.Helper()
	u.submit(fmt.Sprint("new", u.free), u.quick())
	wantSuccess(u.T, wait(u.T, u.c, u.queued[12*(u.free-1)]))
	if u.get(u.queued[len(u.queued)-1]).State.Terminal() {
		u.Fatal("nothing waits any more: this shows nothing")
	}
}

// candidate is a dispatcher that stands by until it leads.
type candidate struct {
	p    *harness.Paddock
	err  error
	done chan struct{} // closed when p leads, or err tells why not
}

// stand starts a dispatcher beside the one that leads, and waits until it stands by.
func (u *upgrade) stand(bin string) *candidate {
	u.Helper()
	o, c := u.dispatcher(bin), &candidate{done: make(chan struct{})}
	by := &saying{text: "this one stands by", said: make(chan struct{})}
	o.Dir, o.Log = shortDir(u.T), by
	ctx, cancel := context.WithCancel(context.WithoutCancel(u.Context()))
	go func() {
		defer close(c.done)
		c.p, c.err = harness.Start(ctx, o)
	}()
	u.Cleanup(func() {
		cancel()
		<-c.done
		if c.p == nil {
			return
		}
		select {
		case <-c.p.Done():
		default:
			if err := c.p.Stop(); err != nil {
				u.Error("stop:", err)
			}
		}
		if u.Failed() {
			u.Logf("a dispatcher that stood by said:\n%s", c.p.Log())
		}
	})
	select {
	case <-by.said:
	case <-c.done: // it leads already: the one that led stood still
		if c.err != nil {
			u.Fatal(c.err)
		}
	case <-time.After(time.Minute):
		u.Fatal("it does not stand by after a minute")
	}
	return c
}

// leads waits until a candidate leads: nobody else is there.
func (u *upgrade) leads(c *candidate) {
	u.Helper()
	select {
	case <-c.done:
	case <-time.After(time.Minute):
		u.Fatal("nobody leads after a minute")
	}
	if c.err != nil {
		u.Fatal(c.err)
	}
	u.leader = c.p
}

// workers replaces the old workers by new ones of their names, each when it has been drained, with jobs that it still has at first.
func (u *upgrade) workers() {
	u.Helper()
	for i, w := range u.old {
		name := fmt.Sprint("w", i)
		state := func(flag func(ctx context.Context) ([]jobs.WorkerInfo, error)) string {
			u.Helper()
			list := answered(u.T, flag)
			if len(list) != 1 {
				u.Fatalf("%s: %+v", name, list)
			}
			return list[0].State
		}
		drain := func(until ...string) {
			u.Helper()
			for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				s := state(func(ctx context.Context) ([]jobs.WorkerInfo, error) { return u.c.Drain(ctx, name, 10*time.Minute) })
				if slices.Contains(until, s) {
					return
				}
				if time.Now().After(end) {
					u.Fatalf("%s is %s after a minute", name, s)
				}
			}
		}
		drain(jobs.FleetDraining, jobs.FleetDrained) // it is lost for who leads until it is heard of
		if i == 0 {
			u.letGo(len(u.held) - u.free) // whoever has them
		}
		drain(jobs.FleetDrained)
		if err := w.Stop(); err != nil {
			u.Error(err)
		}
		start(u.T, u.worker("", name, w.Dir))
		s := state(func(ctx context.Context) ([]jobs.WorkerInfo, error) { return u.c.Uncordon(ctx, name) })
		if s == jobs.FleetDraining || s == jobs.FleetDrained {
			u.Errorf("%s is %s, uncordoned", name, s)
		}
	}
}

// ended waits for all, and checks it.
func (u *upgrade) ended() {
	t := u.T
	if j := u.get(u.dead.ID); j.State != jobs.StateDead || j.Result == nil || j.Result.Ending != u.dead.Result.Ending {
		t.Errorf("the dead job is %+v", j)
	}
	letLive := filepath.Join(u.dir, "lives")
	if err := os.WriteFile(letLive, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	again := answered(t, func(ctx context.Context) (jobs.Job, error) { return u.c.Redrive(ctx, u.dead.ID) })
	u.jobs = append(u.jobs, again.ID)
	for end := time.Now().Add(time.Minute); u.schedule().LastJob == ""; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the schedule has brought in nothing after a minute")
		}
	}
	answered(t, func(ctx context.Context) (bool, error) { return true, u.c.DeleteSchedule(ctx, "each") })
	all := answered(t, func(ctx context.Context) (jobs.ListReply, error) { return u.c.List(ctx, jobs.ListRequest{Limit: 1000}) })
	scheduled := 0
	for _, j := range all.Jobs {
		if j.Labels["by"] == "schedule" {
			u.jobs = append(u.jobs, j.ID)
			scheduled++
		}
	}
	if len(all.Jobs) != len(u.jobs)+1 || scheduled == 0 {
		t.Errorf("%d jobs, %d of them by the schedule: want %d and the dead one", len(all.Jobs), scheduled, len(u.jobs))
	}
	for _, id := range u.jobs {
		r := wantOnce(t, u.c, id)
		if wantSuccess(t, r); stdout(t, r) != id+"\n" || r.Attempt != u.ran(id) {
			t.Errorf("%s in attempt %d printed %q", id, r.Attempt, stdout(t, r))
		}
	}
	b := answered(t, func(ctx context.Context) (jobs.Batch, error) { return u.c.Batch(ctx, u.batch) })
	if b.Total != 30 || b.Ended != 30 || b.OK != 30 || b.EndedAt.IsZero() {
		t.Errorf("batch %+v", b)
	}
	if d := askWebhook(t, u.c, jobs.WebhookDelivery, jobs.DeliveryID{ID: u.told.ID}).Delivery; d.State != jobs.DeliveryPending || d.Attempts < 1 {
		t.Errorf("the webhook that waits is %+v", d)
	}
	u.hooks.setDown(false)
	askWebhook(t, u.c, jobs.WebhookReplay, jobs.RedeliverRequest{ID: u.told.ID})
	for _, h := range u.hooks.wait(t, u.jobs[0], 1) {
		if verify(t, u.secret, h); h.id != u.told.ID {
			t.Errorf("the delivery is %s, and was %s", h.id, u.told.ID)
		}
	}
	t.Logf("%d jobs", len(u.jobs))
}

func (u *upgrade) schedule() jobs.Schedule {
	u.Helper()
	l := answered(u.T, u.c.Schedules)
	if len(l) != 1 {
		u.Fatalf("schedules %+v", l)
	}
	return l[0]
}

// ran gives the one attempt of a job that ran. Where a dispatcher dies between a lease's commit and its answer that is not the first.
func (u *upgrade) ran(job string) int {
	u.Helper()
	l := u.attempts(job)
	if len(l) != 1 {
		u.Errorf("of %s the attempts %v ran", job, l)
		return 0
	}
	return l[0]
}

// attempts are those of a job that ran.
func (u *upgrade) attempts(job string) (l []int) {
	u.Helper()
	b, err := os.ReadFile(filepath.Join(u.dir, "ran"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var id string
		var attempt int
		if _, err := fmt.Sscan(line, &id, &attempt); err == nil && id == job {
			l = append(l, attempt)
		}
	}
	return l
}

// tooOld checks that a version that does not know the ledger's schema does not start.
func (u *upgrade) tooOld(bin string) {
	u.Helper()
	o := u.dispatcher(bin)
	o.Dir = shortDir(u.T)
	if p, err := harness.Start(u.Context(), o); err == nil || !strings.Contains(err.Error(), "its schema has the version") {
		u.Errorf("an older version on a newer schema: %v", err)
		if err == nil {
			p.Kill()
		}
	}
}

// outdated brings the ledger to a version that this one does not know, as the next will: who leads ends, and says why; so does one that is
// started. When the version is as it was nothing is lost.
func (u *upgrade) outdated(database *pgtest.Server) {
	t := u.T
	waits := u.quick()
	waits.RunAt = time.Now().Add(time.Hour)
	id := u.submit("waits", waits)
	name := strings.TrimSuffix(filepath.Base(u.ledger), "?sslmode=disable")
	database.Exec(t, name, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9000, true)`)
	const why = "a newer Paddock has brought the ledger up to date: its schema has the version 9000"
	select {
	case <-u.leader.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on with a ledger that it does not know")
	}
	if !strings.Contains(u.leader.Log(), why) {
		t.Errorf("it says:\n%s", u.leader.Log())
	}
	o := u.dispatcher("")
	o.Dir = shortDir(t)
	if p, err := harness.Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("started anew: %v", err)
		if err == nil {
			p.Kill()
		}
	}
	database.Exec(t, name, `DELETE FROM goose_db_version WHERE version_id = 9000`)
	start(t, u.dispatcher(""))
	if j := u.get(id); j.State != jobs.StateQueued {
		t.Errorf("the job that waits is %s", j.State)
	}
}

// saying notices when a text is written.
type saying struct {
	text string
	said chan struct{}

	mu  sync.Mutex
	all []byte
	was bool
}

// Write implements io.Writer.
func (s *saying) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.was {
		return len(b), nil
	}
	s.all = append(s.all, b...)
	if s.was = bytes.Contains(s.all, []byte(s.text)); s.was {
		close(s.said)
	}
	return len(b), nil
}
