package asynqin_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/jobs"
)

func TestResults(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		for _, tt := range []struct {
			name, kind, payload string
			state               asynq.TaskState // 0: gone
			ending              jobs.Ending
			code                jobs.Code
			fault               string
			exit                int
		}{
			{"success", "sandbox:run", `{"language": "python", "source": "print hello"}`, asynq.TaskStateCompleted, jobs.Exited, "", "", 0},
			{"bare source", "sandbox:python", "print hello", asynq.TaskStateCompleted, jobs.Exited, "", "", 0},
			{"failure", "sandbox:run", `{"language": "python", "source": "print hello; exit 3"}`, asynq.TaskStateArchived, jobs.Exited, "", "", 3},
			{"policy", "sandbox:run", `{"language": "python", "source": "expire"}`, asynq.TaskStateArchived, jobs.Expired, "", "", 0},
			{"no JSON", "sandbox:run", `{"language": `, asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "", 0},
			{"no spec", "sandbox:run", `{"language": "cobol", "priority": 12}`, asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "priority", 0},
			{"no such language", "sandbox:cobol", "print hello", asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "language", 0},
			{"no source", "sandbox:python", "", asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "source", 0},
			{"binary", "sandbox:python", "\xff\x00", asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "source", 0},
			{"another's task", "email:deliver", `{}`, asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "", 0},
			{"too large", "sandbox:python", strings.Repeat("x", jobs.MaxSpecBytes+1), asynq.TaskStateArchived, jobs.Rejected, jobs.CodeInvalid, "source", 0},
		} {
			task := r.enqueue(tt.kind, tt.payload, asynq.Retention(time.Hour))
			info := r.untilState(task, tt.state)
			res := r.decode(info.Result)
			if d := cmp.Diff(r.kept(task), res); d != "" {
				r.Errorf("%s: kept beside the task is something else: %s", tt.name, d)
			}
			if res.Ending != tt.ending || res.Class != tt.ending.Class() || info.Retried != 0 {
				r.Errorf("%s: ended %s (%s) after %d retries", tt.name, res.Ending, res.Class, info.Retried)
			}
			switch {
			case tt.code == "" && (res.Error != nil || res.Job == "" || res.State != jobs.StateEnded):
				r.Errorf("%s: %+v", tt.name, res)
			case tt.ending == jobs.Exited && (*res.ExitCode != tt.exit || res.Steps[0].Stdout.Text != "hello\n"):
				r.Errorf("%s: %+v", tt.name, res)
			case tt.code == "":
			case res.Error == nil || res.Error.Code != tt.code || res.Job != "" || !strings.Contains(info.LastErr, string(tt.code)):
				r.Errorf("%s: %+v, %s", tt.name, res, info.LastErr)
			case tt.fault != "" && !strings.Contains(res.Reason, tt.fault+": "):
				r.Errorf("%s: %s", tt.name, res.Reason)
			}
		}
		all := r.wantJobs(4)
		if j := all[0]; j.Tenant != "default" || j.Spec.Priority == nil || *j.Spec.Priority != 5 {
			r.Errorf("admitted %+v", j.Spec)
		}
	})
}

func TestNoRetention(t *testing.T) {
	each(t, func(r *rig) {
		r.bridgeWith(asynqin.Config{KeepResult: time.Minute})
		task := r.run("print hello")
		r.untilGone(task)
		if res := r.kept(task); res.Steps[0].Stdout.Text != "hello\n" || res.Job != r.wantJobs(1)[0].ID {
			r.Errorf("kept %+v", res)
		}
		if ttl := r.plain.TTL(r.Context(), "paddock:result:{"+task.Queue+"}:"+task.ID).Val(); ttl <= 0 || ttl > time.Minute {
			r.Errorf("kept for %s", ttl)
		}
		// A job that failed is archived whatever the retention.
		if info := r.untilState(r.run("exit 1"), asynq.TaskStateArchived); *r.decode(info.Result).ExitCode != 1 {
			r.Errorf("%s", info.Result)
		}
	})
}

func TestSpecs(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		retain := asynq.Retention(time.Hour)
		info := r.untilState(r.enqueue("sandbox:run", `{"language": "python", "source": "1", "priorty": 3}`, retain), asynq.TaskStateCompleted)
		if w := r.decode(info.Result).Warnings; len(w) != 1 || !strings.Contains(w[0], "did you mean priority?") {
			r.Errorf("warnings %q", w)
		}
		for queue, want := range map[string]int{"paddock:critical": 8, "paddock:default": 5, "paddock:low": 2} {
			task := r.run("1", asynq.Queue(queue), retain)
			own := r.enqueue("sandbox:run", `{"language": "python", "source": "1", "priority": 0}`, asynq.Queue(queue), retain)
			for task, want := range map[*asynq.TaskInfo]int{task: want, own: 0} {
				id := r.decode(r.untilState(task, asynq.TaskStateCompleted).Result).Job
				if j, err := r.brain.Await(r.Context(), "default", id); err != nil || *j.Spec.Priority != want {
					r.Errorf("%s: priority %d, want %d, %v", queue, *j.Spec.Priority, want, err)
				}
			}
		}
	})
}

// What the producer names itself is honoured, by the first run.
func TestNamedJobs(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		retain := asynq.Retention(time.Hour)
		id := jobs.NewID()
		named := `{"language": "python", "source": "print once", "id": "` + id + `"}`
		if got := r.decode(r.untilState(r.enqueue("sandbox:run", named, retain), asynq.TaskStateCompleted).Result).Job; got != id {
			r.Errorf("job %s, named %s", got, id)
		}
		keyed := `{"language": "python", "source": "print keyed", "idempotency_key": "k"}`
		first := r.decode(r.untilState(r.enqueue("sandbox:run", keyed, retain), asynq.TaskStateCompleted).Result).Job
		again := r.decode(r.untilState(r.enqueue("sandbox:run", keyed, retain), asynq.TaskStateCompleted).Result).Job
		if first != again {
			r.Errorf("one key, two jobs: %s, %s", first, again)
		}
		info := r.untilState(r.enqueue("sandbox:run", strings.Replace(keyed, "print keyed", "print other", 1)), asynq.TaskStateArchived)
		if res := r.decode(info.Result); res.Error == nil || res.Error.Code != jobs.CodeConflict {
			r.Errorf("one key, two bodies: %+v", res)
		}
		r.wantJobs(2)
	})
}

func TestLargeResult(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		info := r.untilState(r.run("large; print the end", asynq.Retention(time.Hour)), asynq.TaskStateCompleted)
		res := r.decode(info.Result)
		if len(info.Result) > 64<<10 || !res.Cut {
			r.Errorf("%d bytes, cut %t", len(info.Result), res.Cut)
		}
		if len(res.Artifacts) != 1 || res.Artifacts[0].Text != "" || res.Artifacts[0].Size != 60<<10 {
			r.Errorf("artifacts %+v", res.Artifacts)
		}
		words := r.untilState(r.run("words; exit 3", asynq.Retention(time.Hour)), asynq.TaskStateArchived)
		if data, err := r.plain.Get(r.Context(), "paddock:result:{"+words.Queue+"}:"+words.ID).Bytes(); err != nil || len(data) > 64<<10 {
			r.Errorf("%d bytes of a result with long words, %v", len(data), err)
		} else if res := r.decode(data); res.Ending != jobs.Exited || res.ExitCode == nil || *res.ExitCode != 3 || !res.Cut || res.Job == "" {
			r.Errorf("of one with long words: %.300s", data)
		}
		if n := len(res.Steps); n != 9 || res.Steps[n-1].Stdout.Text != "the end\n" || res.Steps[0].Stdout.Len() != 0 || res.Steps[0].Stdout.Bytes != jobs.MaxResultOutput {
			r.Errorf("%d steps, the last: %+v", n, res.Steps[n-1])
		}
	})
}

// Every attempt failed by our own doing: asynq retries, with a new job, and the result is there meanwhile.
func TestInfra(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		task := r.run("infra")
		info := r.untilState(task, asynq.TaskStateRetry)
		res := r.decode(info.Result)
		if res.Class != jobs.ClassInfra || res.State != jobs.StateDead || info.Retried != 1 || !strings.HasPrefix(info.LastErr, "job "+res.Job+" dead: worker_lost") {
			r.Errorf("%+v, retried %d: %s", res, info.Retried, info.LastErr)
		}
		if err := r.inspect.RunTask(task.Queue, task.ID); err != nil { // or asynq does, in its time
			r.Fatal(err)
		}
		r.until("a second job", func() bool { return len(r.brain.all()) == 2 })
		info = r.untilState(task, asynq.TaskStateRetry)
		if again := r.decode(info.Result).Job; again == res.Job || info.Retried != 2 {
			r.Errorf("job %s again, retried %d", again, info.Retried)
		}
		last := r.run("infra", asynq.MaxRetry(0))
		if res := r.decode(r.untilState(last, asynq.TaskStateArchived).Result); res.State != jobs.StateDead {
			r.Errorf("%+v", res)
		}
		r.wantJobs(3)
	})
}

func TestCancel(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		for _, opt := range []asynq.Option{asynq.MaxRetry(25), asynq.MaxRetry(0)} {
			before := len(r.brain.all())
			task := r.run("hold", opt)
			r.until("the job", func() bool { return len(r.brain.all()) == before+1 })
			r.untilState(task, asynq.TaskStateActive)
			// Redis's publications may be lost, and asynq says so: whoever wants to be sure repeats it.
			r.until("the cancel", func() bool {
				if err := r.inspect.CancelProcessing(task.ID); err != nil {
					r.Fatal(err)
				}
				return r.brain.all()[before].CancelRequested
			})
			info := r.untilState(task, asynq.TaskStateArchived)
			if res := r.decode(info.Result); res.Ending != jobs.Canceled || info.Retried != 0 {
				r.Errorf("%v: ended %s, retried %d", opt, res.Ending, info.Retried)
			}
			r.wantJobs(before + 1)
		}
	})
}

// A task's time runs out: the job is canceled before asynq takes the task back, and the retry is another job.
func TestTimeout(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		// Within it the task's job is brought in, on whatever machine; whole seconds count.
		const timeout = 3 * time.Second
		for _, in := range []func() asynq.Option{
			func() asynq.Option { return asynq.Timeout(timeout) },
			func() asynq.Option { return asynq.Deadline(time.Now().Add(timeout + time.Second)) },
		} {
			before, opt := len(r.brain.all()), in()
			task := r.run("hold", opt)
			info := r.untilState(task, asynq.TaskStateRetry)
			if res := r.decode(info.Result); res.Ending != jobs.Canceled || info.Retried != 1 || !strings.Contains(info.LastErr, "deadline") {
				r.Errorf("%v: ended %s, retried %d: %s", opt, res.Ending, info.Retried, info.LastErr)
			}
			if j := r.wantJobs(before + 1)[before]; !j.CancelRequested || !j.State.Terminal() {
				r.Errorf("%v: the job is %s", opt, j.State)
			}
			if err := r.inspect.RunTask(task.Queue, task.ID); err != nil {
				r.Fatal(err)
			}
			if opt.Type() == asynq.TimeoutOpt {
				r.until("a second job", func() bool { return len(r.brain.all()) == before+2 })
			}
			r.until("a second retry", func() bool {
				info, err := r.inspect.GetTaskInfo(task.Queue, task.ID)
				return err == nil && info.Retried == 2
			})
			if opt.Type() == asynq.DeadlineOpt {
				r.wantJobs(before + 1) // it is over for good
			}
		}
		if info := r.untilState(r.run("hold", asynq.Timeout(timeout), asynq.MaxRetry(0)), asynq.TaskStateArchived); r.decode(info.Result).Ending != jobs.Canceled {
			r.Errorf("the last retry: %s", info.Result)
		}
	})
}

func TestUnique(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		unique := asynq.Unique(time.Minute)
		task := r.run("hold", unique)
		r.untilState(task, asynq.TaskStateActive)
		_, err := r.client.Enqueue(asynq.NewTask("sandbox:python", []byte("hold")), asynq.Queue("paddock:default"), unique)
		if !errors.Is(err, asynq.ErrDuplicateTask) {
			r.Errorf("a second one: %v", err)
		}
		r.until("the job", func() bool { return len(r.brain.all()) == 1 })
		r.brain.letGo()
		r.untilGone(task)
		r.run("hold", unique, asynq.ProcessIn(time.Hour)) // the lock is free again
	})
}

func TestScheduled(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		at := time.Now().Add(1500 * time.Millisecond)
		task := r.run("print later", asynq.ProcessAt(at), asynq.Retention(time.Hour))
		r.untilState(task, asynq.TaskStateCompleted)
		if j := r.wantJobs(1)[0]; j.AcceptedAt.Before(at.Truncate(time.Second)) { // asynq counts in seconds
			r.Errorf("ran at %s, scheduled at %s", j.AcceptedAt, at)
		}
	})
}

// An id that asynq gives again is a new task, and so is one that somebody puts back from the archive.
func TestAnotherRun(t *testing.T) {
	each(t, func(r *rig) {
		r.bridge()
		nightly := asynq.TaskID("nightly")
		r.untilGone(r.run("print one", nightly))
		task := r.run("print two", nightly)
		r.untilGone(task)
		if out := r.kept(task).Steps[0].Stdout.Text; out != "two\n" {
			r.Errorf("the result is %q", out)
		}
		failed := r.run("exit 2")
		first := r.decode(r.untilState(failed, asynq.TaskStateArchived).Result).Job
		if err := r.inspect.RunTask(failed.Queue, failed.ID); err != nil {
			r.Fatal(err)
		}
		r.until("a second job", func() bool { return len(r.brain.all()) == 4 })
		if second := r.decode(r.untilState(failed, asynq.TaskStateArchived).Result).Job; second == first {
			r.Error("it was not run again")
		}
		done := r.run("print x", asynq.Retention(time.Hour))
		r.untilState(done, asynq.TaskStateCompleted)
		if err := r.inspect.RunTask(done.Queue, done.ID); err == nil {
			r.until("a job more", func() bool { return len(r.brain.all()) == 6 })
		}
	})
}

// What may be taken later is taken later, and costs none of the task's retries.
func TestRefusedForNow(t *testing.T) {
	each(t, func(r *rig) {
		var mu sync.Mutex
		refused := 0
		r.brain.refuse = func(string, *jobs.Spec) error {
			mu.Lock()
			defer mu.Unlock()
			if refused++; refused <= 3 {
				return &jobs.Error{Code: jobs.CodeQueueFull, Message: "full", RetryAfterMS: 100}
			}
			return nil
		}
		r.bridge()
		info := r.untilState(r.run("1", asynq.MaxRetry(0), asynq.Retention(time.Hour)), asynq.TaskStateCompleted)
		if info.Retried != 0 || refused != 4 {
			r.Errorf("retried %d, refused %d times", info.Retried, refused-1)
		}
	})
}

func TestThousandAtOnce(t *testing.T) {
	each(t, func(r *rig) {
		const n = 1000
		tasks := make([]*asynq.TaskInfo, n)
		for i := range tasks {
			tasks[i] = r.run("sleep 200ms; print "+strings.Repeat("x", i%50), asynq.Retention(time.Hour), asynq.Queue([]string{"paddock:critical", "paddock:default", "paddock:low"}[i%3]))
		}
		began := time.Now()
		r.bridge()
		seen := map[string]bool{}
		for i, task := range tasks {
			res := r.decode(r.stateWithin(time.Minute, task, asynq.TaskStateCompleted).Result)
			if want := strings.Repeat("x", i%50) + "\n"; res.Steps[0].Stdout.Text != want || seen[res.Job] {
				r.Errorf("task %d: job %s printed %q, want %q", i, res.Job, res.Steps[0].Stdout.Text, want)
			}
			seen[res.Job] = true
		}
		r.Logf("%d tasks in %s", n, time.Since(began).Round(time.Millisecond))
		r.wantJobs(n)
	})
}
