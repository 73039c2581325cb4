package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/jobs"
)

// crashFile is the environment variable that makes the test binary a process that writes to the ledger it names until it is killed.
const crashFile = "PADDOCK_TEST_CRASH_LEDGER"

// TestCrash kills a process in the middle of writing, again and again, and looks for everything that it was told is durable.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	file := filepath.Join(t.TempDir(), "ledger.db")
	acks := acknowledged{}
	enough := time.Now().Add(3 * time.Second)
	for round := 0; round < 30 && (round == 0 || time.Now().Before(enough)); round++ {
		after := 1 + r.IntN(700)
		if round%3 == 0 {
			after = 1 + r.IntN(12) // soon after its recovery from the last crash
		}
		acks.add(t, writeAndDie(t, file, after))
		checkLedger(t, file, acks)
		if t.Failed() {
			t.Fatalf("round %d, killed after %d acknowledgements", round, after)
		}
	}
	t.Logf("acknowledged: %d batches, %d admitted, %d leased, %d ended, %d requeued", len(acks["batch"]), len(acks["admit"]), len(acks["lease"]), len(acks["finish"])+len(acks["end"]), len(acks["requeue"]))
}

// writeAndDie runs a process that writes, kills it once it has told of so many writes, and gives all that it told.
func writeAndDie(t *testing.T, file string, after int) (lines []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), crashFile+"="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(out); in.Scan(); {
		if lines = append(lines, in.Text()); len(lines) == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); len(lines) < after {
		t.Fatalf("the writer ended by itself after %d lines: %v", len(lines), err)
	}
	return lines
}

// acknowledged are the jobs that each operation was acknowledged for; of "register", the largest session by worker.
type acknowledged map[string]map[string]int64

func (a acknowledged) add(t *testing.T, lines []string) {
	t.Helper()
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) != 3 {
			t.Fatalf("line %q", l)
		}
		n, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		if a[f[0]] == nil {
			a[f[0]] = map[string]int64{}
		}
		a[f[0]][f[1]] = max(a[f[0]][f[1]], n)
	}
}

// checkLedger opens what a crash has left.
func checkLedger(t *testing.T, file string, acks acknowledged) {
	t.Helper()
	ctx := t.Context()
	s, err := sqlite.Open(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	all := everyJob(ctx, t, s)
	want := map[string]func(jobs.Job, int64) bool{
		"admit":   func(jobs.Job, int64) bool { return true },
		"lease":   func(j jobs.Job, n int64) bool { return j.Attempt >= int(n) && !j.LeasedAt.IsZero() },
		"requeue": func(j jobs.Job, n int64) bool { return j.State == jobs.StateQueued || j.Attempt > int(n) },
		"finish":  func(j jobs.Job, _ int64) bool { return j.State == jobs.StateEnded && j.Result.Reason == j.ID },
		"end":     func(j jobs.Job, _ int64) bool { return j.State == jobs.StateEnded && j.Result.Ending == jobs.Expired },
		"cancel":  func(j jobs.Job, _ int64) bool { return j.CancelRequested },
	}
	for op, of := range want {
		for id, n := range acks[op] {
			if j, ok := all[id]; !ok || !of(j, n) {
				t.Errorf("%s of %s was acknowledged; there is %+v", op, id, j)
			}
		}
	}
	workers, err := s.Workers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sessions := map[string]int64{}
	for _, w := range workers {
		sessions[w.Name] = w.Session
	}
	for worker, n := range acks["register"] {
		if sessions[worker] < n {
			t.Errorf("session %d of %s was acknowledged; there is %d", n, worker, sessions[worker])
		}
	}
	checkWhole(ctx, t, s, all, acks)
	checkBatches(ctx, t, s, all, acks)
}

// checkBatches: what is there of a batch is all of it, and what was acknowledged is there.
func checkBatches(ctx context.Context, t *testing.T, s ledger.Store, all map[string]jobs.Job, acks acknowledged) {
	t.Helper()
	if err := s.DropIncoming(ctx); err != nil {
		t.Error(err)
	}
	have := map[string]int{}
	for _, j := range all {
		have[j.Batch]++
	}
	list, err := s.Batches(ctx, "t", "", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]int{"": have[""]}
	for _, b := range list {
		there[b.ID] = b.Total
	}
	for id := range acks["batch"] {
		if there[id] != crashBatch {
			t.Errorf("the batch %s was acknowledged; there are %d jobs", id, there[id])
		}
	}
	if after := len(everyJob(ctx, t, s)); !maps.Equal(have, there) || after != len(all) {
		t.Errorf("of the batches with %v jobs there are %v, of %d jobs %d when what is not whole was removed", there, have, len(all), after)
	}
}

func everyJob(ctx context.Context, t *testing.T, s ledger.Store) map[string]jobs.Job {
	t.Helper()
	all := map[string]jobs.Job{}
	q := jobs.ListRequest{Limit: 1000}
	for {
		r, err := s.List(ctx, "t", q)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range r.Jobs {
			all[j.ID] = j
		}
		if q.Before = r.Next; r.Next == "" {
			return all
		}
	}
}

// checkWhole: no transition was done by half. A job that has ended has its result and one final event, an open one has neither.
func checkWhole(ctx context.Context, t *testing.T, s ledger.Store, all map[string]jobs.Job, acks acknowledged) {
	t.Helper()
	out, err := s.Outbox(ctx, 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	finals, requeues := map[string]int{}, map[string]int64{}
	for _, o := range out {
		if o.Event.Final {
			finals[o.Event.Job]++
		} else {
			requeues[o.Event.Job]++
		}
	}
	for id, j := range all {
		if ended := j.State == jobs.StateEnded; ended != (j.Result != nil) || ended != (finals[id] == 1) || finals[id] > 1 {
			t.Errorf("job %s is %s with %d final events and the result %v", id, j.State, finals[id], j.Result)
		}
	}
	for id, n := range acks["requeue"] {
		if requeues[id] < n {
			t.Errorf("%s was requeued %d times; there are %d events of it", id, n, requeues[id])
		}
	}
}

// crashing writes until it is killed, and tells of each write that was acknowledged: what, whose, and a number.
func crashing(file string) int {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var all sync.WaitGroup
	all.Go(func() {
		for range 3 { // enough to be killed in the middle of one
			if err := oneBatch(ctx, s); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	})
	for n := range 8 {
		all.Go(func() {
			for err == nil {
				if err := oneJob(ctx, s, rand.N(5), fmt.Sprint("w", n)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		})
	}
	all.Wait()
	return 0
}

func tell(op, of string, n int64) { fmt.Printf("%s %s %d\n", op, of, n) } // one write: whole, or not at all

// crashBatch is how many jobs a batch has: more than a piece.
const crashBatch = 1200

func oneBatch(ctx context.Context, s ledger.Store) error {
	now := time.Now()
	b := ledger.BatchAdmission{ID: jobs.NewID(), Tenant: "t", AcceptedAt: now}
	for range crashBatch {
		id := jobs.NewID()
		b.Jobs = append(b.Jobs, ledger.Admission{
			Job:   jobs.Job{ID: id, Spec: &jobs.Spec{Image: "base"}},
			Entry: ledger.Entry{ID: id, Tenant: "t", Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
		})
	}
	_, err := s.AdmitBatch(ctx, b)
	if err == nil {
		tell("batch", b.ID, 0)
	}
	return err
}

// oneJob takes a job along one of its paths.
func oneJob(ctx context.Context, s ledger.Store, path int, worker string) error {
	id, now := jobs.NewID(), time.Now()
	taken, err := s.Admit(ctx, ledger.Admission{
		Job: jobs.Job{ID: id, Spec: &jobs.Spec{Image: "base"}}, Key: id,
		Entry: ledger.Entry{ID: id, Tenant: "t", Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
	})
	if err != nil || taken != nil {
		return fmt.Errorf("admit: %+v, %w", taken, err)
	}
	tell("admit", id, 0)
	r := jobs.Result{Ending: jobs.Exited, Reason: id, EndedAt: now}
	event := jobs.Event{Type: jobs.EventResult, Job: id, Tenant: "t"}
	final := event
	final.Final = true
	step := func(op string, n int64, do func() (bool, error)) error {
		if err != nil {
			return err
		}
		var ok bool
		if ok, err = do(); err == nil && !ok {
			err = fmt.Errorf("%s of %s: refused", op, id)
		}
		if err == nil {
			tell(op, id, n)
		}
		return err
	}
	switch path {
	case 0:
		session, err := s.Register(ctx, worker, now)
		if err != nil {
			return err
		}
		tell("register", worker, session)
	case 1:
		r.Ending = jobs.Expired
		return step("end", 0, func() (bool, error) { return s.EndQueued(ctx, id, 0, jobs.StateEnded, r, final) })
	case 2:
		return step("cancel", 0, func() (bool, error) { j, err := s.RequestCancel(ctx, "t", id); return j.CancelRequested, err })
	default:
		for attempt := 1; attempt <= path-1; attempt++ {
			h := jobs.Held{Job: id, Attempt: attempt, Epoch: int64(attempt)}
			_ = step("lease", int64(attempt), func() (bool, error) {
				specs, err := s.Lease(ctx, []ledger.Lease{{Held: h, Worker: worker, At: now}})
				return len(specs) == 1 && specs[0] != nil, err
			})
			if attempt < path-1 {
				_ = step("requeue", int64(attempt), func() (bool, error) {
					return s.Requeue(ctx, h, ledger.Retry{NotBefore: now, Attempt: jobs.Attempt{Attempt: attempt}}, event)
				})
				continue
			}
			return step("finish", 0, func() (bool, error) { return s.Finish(ctx, h, jobs.StateEnded, r, final) })
		}
	}
	return nil
}
