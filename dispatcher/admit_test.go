package dispatcher_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

var errDisk = errors.New("no space left on device")

// paths are the fields that an error blames.
func paths(err error) (list []string) {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		for _, f := range e.Faults {
			list = append(list, f.Path)
		}
	}
	return list
}

func TestAdmitRefuses(t *testing.T) {
	with := func(change func(s *jobs.Spec)) *jobs.Spec {
		s := spec()
		change(s)
		return s
	}
	for _, c := range []struct {
		name   string
		tenant string
		spec   *jobs.Spec
		code   jobs.Code
		paths  []string
	}{
		{"a tenant that is no token", "a.b", spec(), jobs.CodeInvalid, []string{"tenant"}},
		{"an empty spec", "t", &jobs.Spec{}, jobs.CodeInvalid, []string{"image", "steps"}},
		{"an image that no worker has", "t", with(func(s *jobs.Spec) { s.Image = "cobol" }), jobs.CodeInvalid, []string{"image"}},
		{"more processors than any worker has", "t", with(func(s *jobs.Spec) { s.Resources.VCPUs = 9 }), jobs.CodeInvalid, []string{"resources.vcpus"}},
		{
			"more memory than any worker has, and a limit past that", "t",
			with(func(s *jobs.Spec) { s.Resources.MemoryMiB, s.Limits.MemoryBytes = 10_000, 9_990<<20 }),
			jobs.CodeInvalid, []string{"resources.memory_mib", "limits.memory_bytes"},
		},
		{"a limit that the image's machine cannot keep", "t", with(func(s *jobs.Spec) { s.Limits.MemoryBytes = 256 << 20 }), jobs.CodeInvalid, []string{"limits.memory_bytes"}},
		{"less memory than the guest itself takes", "t", with(func(s *jobs.Spec) { s.Resources.MemoryMiB = 64 }), jobs.CodeInvalid, []string{"resources.memory_mib"}},
		{"a step's limit", "t", with(func(s *jobs.Spec) { s.Steps[0].Limits.MemoryBytes = 193 << 20 }), jobs.CodeInvalid, []string{"steps[0].limits.memory_bytes"}},
		{
			"what is not offered yet", "t",
			with(func(s *jobs.Spec) {
				s.Network.Policy, s.Callbacks = jobs.NetworkInternet, []jobs.Callback{{URL: "https://example.com"}}
			}),
			jobs.CodeUnsupported, []string{"network.policy", "callbacks"},
		},
		{"all that a machine of its size has", "t", with(func(s *jobs.Spec) { s.Limits.MemoryBytes = 192 << 20 }), "", nil},
		{"all that the largest worker has", "t", with(func(s *jobs.Spec) { s.Resources = size }), "", nil},
		{"memory of its own", "t", with(func(s *jobs.Spec) { s.Resources.MemoryMiB, s.Limits.MemoryBytes = 1024, 960<<20 }), "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				r.worker("a")
				_, _, err := r.Admit(r.Context(), c.tenant, c.spec)
				r.wantCode("admit", c.code, err)
				if diff := gocmp.Diff(c.paths, paths(err)); diff != "" {
					r.Errorf("blamed (-want +got):\n%s", diff)
				}
				if want := (c.code == ""); (len(r.disk.rows()) == 1) != want {
					r.Errorf("%d jobs in the ledger, accepted: %v", len(r.disk.rows()), want)
				}
			})
		})
	}
}

// An image may keep jobs from running as root.
func TestAdmitRoot(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a", "base", "rootless")
		for image, want := range map[string]jobs.Code{"base": "", "rootless": jobs.CodeInvalid} {
			_, _, err := r.Admit(r.Context(), "t", &jobs.Spec{Image: image, Steps: []jobs.Step{{Cmd: "true"}, {Cmd: "true", User: "root"}}})
			r.wantCode("root in "+image, want, err)
			if want != "" {
				if diff := gocmp.Diff([]string{"steps[1].user"}, paths(err)); diff != "" {
					r.Errorf("blamed (-want +got):\n%s", diff)
				}
			}
		}
		r.admit(&jobs.Spec{Image: "rootless", Steps: []jobs.Step{{Cmd: "true"}}})
	})
}

// While no worker was ever seen nothing is known of what there is, and a job may wait for it. A worker that is away for a while still
// counts; one that is gone for good does not.
func TestAdmitWithoutWorkers(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		s := spec()
		s.Image, s.Resources.VCPUs = "later", 64
		r.admit(s)
		r.worker("a")
		b := r.worker("b", "rare")
		rare := func(want jobs.Code) {
			r.Helper()
			s := spec()
			s.Image = "rare"
			_, _, err := r.Admit(r.Context(), "t", s)
			r.wantCode("job for the image of b", want, err)
		}
		b.beat()
		time.Sleep(time.Minute)
		rare("")
		time.Sleep(2 * time.Hour)
		r.worker("a")
		rare(jobs.CodeInvalid)
	})
}

func TestAdmitTwice(t *testing.T) {
	id, other := jobs.NewID(), jobs.NewID()
	with := func(id, key, cmd string) *jobs.Spec {
		return &jobs.Spec{ID: id, IdempotencyKey: key, Image: "base", Steps: []jobs.Step{{Cmd: cmd}}}
	}
	for _, c := range []struct {
		name          string
		first, second *jobs.Spec
		tenant        string
		after         time.Duration
		duplicate     bool
		code          jobs.Code
	}{
		{name: "one key", first: with("", "k", "true"), second: with("", "k", "true"), tenant: "t", duplicate: true},
		{name: "one key, another id", first: with(id, "k", "true"), second: with(other, "k", "true"), tenant: "t", duplicate: true},
		{name: "one id", first: with(id, "", "true"), second: with(id, "", "true"), tenant: "t", duplicate: true},
		{name: "one id, another key", first: with(id, "k", "true"), second: with(id, "l", "true"), tenant: "t", duplicate: true},
		{name: "one key, another body", first: with("", "k", "true"), second: with("", "k", "false"), tenant: "t", code: jobs.CodeConflict},
		{name: "one id, another body", first: with(id, "", "true"), second: with(id, "", "false"), tenant: "t", code: jobs.CodeConflict},
		{name: "another tenant's key", first: with("", "k", "true"), second: with("", "k", "true"), tenant: "u"},
		{name: "another tenant's id", first: with(id, "", "true"), second: with(id, "", "true"), tenant: "u", code: jobs.CodeConflict},
		{name: "a key within its day", first: with("", "k", "true"), second: with("", "k", "true"), tenant: "t", after: 24*time.Hour - time.Second, duplicate: true},
		{name: "a key that is forgotten", first: with("", "k", "true"), second: with("", "k", "true"), tenant: "t", after: 24*time.Hour + time.Second},
		{name: "neither", first: with("", "", "true"), second: with("", "", "true"), tenant: "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				first := r.admit(c.first)
				time.Sleep(c.after)
				job, duplicate, err := r.Admit(r.Context(), c.tenant, c.second)
				r.wantCode("second", c.code, err)
				if duplicate != c.duplicate || duplicate && job.ID != first.ID || err == nil && !duplicate && job.ID == first.ID {
					r.Errorf("second: job %s, duplicate %v; the first is %s, want duplicate %v", job.ID, duplicate, first.ID, c.duplicate)
				}
				want := 1
				if c.code == "" && !c.duplicate {
					want = 2
				}
				if len(r.disk.rows()) != want {
					r.Errorf("%d jobs in the ledger, want %d", len(r.disk.rows()), want)
				}
			})
		})
	}
}

// A client that never heard that its job was accepted asks again, and gets the job as it stands, ended or not.
func TestAdmitAgainAfterTheEnd(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := spec()
		s.IdempotencyKey = "k"
		first := r.admit(s)
		a.report(a.one(), jobs.Exited)
		job, duplicate, err := r.Admit(r.Context(), "t", s)
		if err != nil || !duplicate || job.ID != first.ID || job.State != jobs.StateEnded || job.Result == nil {
			r.Errorf("admit again: %+v, duplicate %v, %v", job, duplicate, err)
		}
		if got := a.lease(1, 0); len(got) != 0 {
			r.Errorf("it runs again: %+v", got)
		}
	})
}

// Whoever asks again gets its job, whatever would be said of a new one by now; and is not let off a refusal by a key that others have.
func TestAdmitAgainWhatWouldBeRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    dispatcher.Config
		image  string
		change func(r *rig) // after which a new one is refused
		code   jobs.Code
	}{
		{"the queue is full", dispatcher.Config{MaxQueued: 2}, "base", func(r *rig) { r.admit(spec()) }, jobs.CodeQueueFull},
		{
			"the tenant has as many as it may", dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{Queued: 2}}}, "base",
			func(r *rig) { r.admit(spec()) }, jobs.CodeQuota,
		},
		{
			"the tenant is too fast", dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{PerSecond: 1, Burst: 2}}}, "base",
			func(r *rig) { r.admit(spec()) }, jobs.CodeQuota,
		},
		{
			"no worker has the image any more", dispatcher.Config{}, "rare",
			func(r *rig) {
				time.Sleep(2 * time.Hour)
				r.worker("a")
			}, jobs.CodeInvalid,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			rigged(t, c.cfg, func(r *rig) {
				r.worker("a")
				r.worker("b", "rare")
				with := func(id, key, cmd string) *jobs.Spec {
					return &jobs.Spec{ID: id, IdempotencyKey: key, Image: c.image, Steps: []jobs.Step{{Cmd: cmd}}}
				}
				id := jobs.NewID()
				first := r.admit(with(id, "k", "true"))
				c.change(r)
				for _, again := range []struct {
					name string
					spec *jobs.Spec
					code jobs.Code
				}{
					{"by its key", with("", "k", "true"), ""},
					{"by its id", with(id, "", "true"), ""},
					{"with another body", with("", "k", "false"), jobs.CodeConflict},
					{"another", with("", "l", "true"), c.code},
					{"one that nobody can know", with("", "", "true"), c.code},
				} {
					job, duplicate, err := r.Admit(r.Context(), "t", again.spec)
					r.wantCode(again.name, again.code, err)
					if err == nil && (!duplicate || job.ID != first.ID) {
						r.Errorf("%s: job %s, duplicate %v, want %s", again.name, job.ID, duplicate, first.ID)
					}
				}
				_, _, err := r.Admit(r.Context(), "u", with(id, "", "true"))
				if err == nil {
					r.Error("another tenant has got the job by its id")
				}
			})
		})
	}
}

func TestAdmitQueueFull(t *testing.T) {
	rigged(t, dispatcher.Config{MaxQueued: 2}, func(r *rig) {
		a := r.worker("a")
		r.admit(spec())
		r.admit(spec())
		_, _, err := r.Admit(r.Context(), "t", spec())
		r.wantCode("third", jobs.CodeQueueFull, err)
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.RetryAfterMS == 0 {
			r.Errorf("no time to try again in %+v", err)
		}
		if got := a.lease(1, 0); len(got) != 1 {
			r.Fatalf("leased %+v", got)
		}
		r.admit(spec())
	})
}

// The bound holds for jobs that are on their way into the ledger, however many come at once.
func TestAdmitQueueFullAtOnce(t *testing.T) {
	rigged(t, dispatcher.Config{MaxQueued: 5}, func(r *rig) {
		r.store.before(func(op string) error {
			if op == "admit" {
				time.Sleep(time.Second)
			}
			return nil
		})
		var mu sync.Mutex
		codes := map[jobs.Code]int{}
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() {
				_, _, err := r.Admit(r.Context(), "t", spec())
				mu.Lock()
				defer mu.Unlock()
				codes[code(err)]++
			})
		}
		clients.Wait()
		if diff := gocmp.Diff(map[jobs.Code]int{"": 5, jobs.CodeQueueFull: 15}, codes); diff != "" {
			r.Errorf("answers (-want +got):\n%s", diff)
		}
	})
}

// One key is one job, and it runs once, however many bring it at once.
func TestAdmitOneKeyAtOnce(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		var mu sync.Mutex
		ids, fresh := map[string]bool{}, 0
		var clients sync.WaitGroup
		for range 16 {
			clients.Go(func() {
				s := spec()
				s.IdempotencyKey = "k"
				j, duplicate, err := r.Admit(r.Context(), "t", s)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					r.Error(err)
				}
				if ids[j.ID] = true; !duplicate {
					fresh++
				}
			})
		}
		clients.Wait()
		if len(ids) != 1 || fresh != 1 {
			r.Errorf("jobs %v, %d of them new, want one", ids, fresh)
		}
		if got := a.lease(8, time.Second); len(got) != 1 {
			r.Errorf("leased %v, want one", names(got))
		}
	})
}

func TestAdmitLedgerFails(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.store.before(func(string) error { return errDisk })
		for what, call := range map[string]func() error{
			"admit":  func() error { _, _, err := r.Admit(r.Context(), "t", spec()); return err },
			"get":    func() error { _, err := r.Get(r.Context(), "t", jobs.NewID()); return err },
			"list":   func() error { _, err := r.List(r.Context(), "t", jobs.ListRequest{}); return err },
			"cancel": func() error { _, err := r.Cancel(r.Context(), "t", jobs.NewID()); return err },
		} {
			err := call()
			r.wantCode(what, jobs.CodeUnavailable, err)
			if e, ok := errors.AsType[*jobs.Error](err); ok && e.RetryAfterMS == 0 {
				r.Errorf("%s: no time to try again in %+v", what, e)
			}
		}
		if got := a.lease(1, 0); len(got) != 0 {
			r.Errorf("a job that was not accepted runs: %+v", got)
		}
		r.store.before(nil)
		j := r.admit(spec())
		a.report(a.one(), jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// The ledger took the job and its answer was lost; the client tries again, and the job runs, once.
func TestAdmitAnswerOfLedgerLost(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := spec()
		s.IdempotencyKey = "k"
		r.loseAnswer("admit")
		_, _, err := r.Admit(r.Context(), "t", s)
		r.wantCode("admit", jobs.CodeUnavailable, err)
		j, duplicate, err := r.Admit(r.Context(), "t", s)
		if err != nil || !duplicate {
			r.Fatalf("admit again: duplicate %v, %v", duplicate, err)
		}
		a.report(a.one(), jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// Of a job in doubt its own row is read, however many others are queued.
func TestDoubtAmongMany(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		for range 50 {
			r.admit(spec())
		}
		r.loseAnswer("admit")
		_, _, err := r.Admit(r.Context(), "other", spec())
		r.wantCode("admit", jobs.CodeUnavailable, err)
		r.store.read.Store(0)
		time.Sleep(5 * time.Second)
		if n := r.store.read.Load(); n != 1 {
			r.Errorf("%d rows were read, for one job", n)
		}
		a := r.worker("a")
		if l := []jobs.Lease{a.one(), a.one()}; l[0].Tenant == l[1].Tenant {
			r.Errorf("it is not given to a worker: got jobs of %s and %s", l[0].Tenant, l[1].Tenant)
		}
	})
}

// What comes before the ledger has been read waits for that, or hears that it should come again.
func TestAdmitBeforeLoaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := &rig{T: t, disk: newDisk(t), board: newBoard(t)}
		r.store = &memory{disk: r.disk}
		r.store.before(func(op string) error {
			if op == "open" {
				time.Sleep(time.Minute)
			}
			return nil
		})
		r.run()
		defer func() { r.kill() }()
		r.admit(spec())
		if got := len(r.disk.rows()); got != 1 {
			r.Errorf("%d jobs", got)
		}
	})
}

// An id that is none is nobody's, and the ledger is not asked: not every one could be.
func TestIDsThatAreNone(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.store.before(func(op string) error {
			if op == "get" || op == "cancel" {
				return errDisk
			}
			return nil
		})
		ctx := r.Context()
		for _, id := range []string{"", "x", "\x00", "\xff", strings.ToUpper(jobs.NewID()), strings.Repeat("0", 1000)} {
			_, get := r.Get(ctx, "t", id)
			_, await := r.Await(ctx, "t", id)
			_, cancel := r.Cancel(ctx, "t", id)
			_, redrive := r.Redrive(ctx, "t", id)
			_, drop := r.DropDead(ctx, "t", id)
			_, batch := r.Batch(ctx, "t", id)
			_, cancelBatch := r.CancelBatch(ctx, "t", id)
			for what, err := range map[string]error{"get": get, "await": await, "cancel": cancel, "redrive": redrive, "drop": drop, "batch": batch, "cancel batch": cancelBatch} {
				r.wantCode(fmt.Sprintf("%s %q", what, id), jobs.CodeNotFound, err)
			}
		}
	})
}
