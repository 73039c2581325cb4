package dispatcher_test

import (
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func ruled(attempts int, rules ...jobs.RetryRule) *jobs.Spec {
	s := spec()
	s.Retry = &jobs.Retry{Attempts: attempts, Rules: rules}
	return s
}

func (h *hand) exits(l jobs.Lease, code int) {
	h.Helper()
	h.send(l, jobs.Report{Result: jobs.Result{Ending: jobs.Exited, ExitCode: &code}})
}

// The first rule that matches decides, within the budget.
func TestRetryRules(t *testing.T) {
	temporary := jobs.RetryRule{ExitCodes: []int{75}, Action: jobs.ActionRetry}
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(ruled(3, jobs.RetryRule{Endings: []jobs.Ending{jobs.Exited}, ExitCodes: []int{3}, Action: jobs.ActionFail}, temporary))
		a.exits(a.one(), 75)
		r.stands(j.ID, jobs.StateQueued)
		r.restart()
		a = r.worker("a")
		a.exits(a.one(), 75)
		l := a.one()
		if l.Attempt != 3 {
			r.Errorf("attempt %d, want 3", l.Attempt)
		}
		a.exits(l, 75) // the last that it may have
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		got := r.job(j.ID)
		if *got.Result.ExitCode != 75 || len(got.Attempts) != 2 || got.Attempts[1].Attempt != 2 || got.Attempts[0].Worker != "a" || got.Attempts[0].Class != jobs.ClassUser {
			r.Errorf("record %+v", got)
		}

		j = r.admit(ruled(3, temporary))
		a.exits(a.one(), 1) // no rule matches
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)

		j = r.admit(ruled(1, temporary)) // no budget
		a.exits(a.one(), 75)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)

		j = r.admit(ruled(1, jobs.RetryRule{Endings: []jobs.Ending{jobs.HostResources}, Action: jobs.ActionFail})) // not even ours
		a.report(a.one(), jobs.HostResources)
		r.ended(j.ID, jobs.StateDead, jobs.HostResources)

		j = r.admit(ruled(2, temporary)) // one budget does not touch the other
		a.report(a.one(), jobs.HostResources)
		a.exits(a.one(), 75)
		a.report(a.one(), jobs.HostResources)
		a.exits(a.one(), 0)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)

		j = r.admit(ruled(5, temporary)) // whoever wants no more gets no more
		l = a.one()
		if _, err := r.Cancel(r.Context(), "t", j.ID); err != nil {
			r.Fatal(err)
		}
		a.exits(l, 75)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A job that ends machines on two workers is not given to a third.
func TestPoison(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		retries := 10
		s := spec()
		s.InfraRetries = &retries
		j := r.admit(s)
		a.report(a.one(), jobs.AgentLost)
		b.report(b.one(), jobs.HostResources) // that is nobody's doing
		b.beat()
		a.drain()
		r.restart()
		b = r.worker("b")
		b.report(b.one(), jobs.VMFailed)
		r.ended(j.ID, jobs.StateDead, jobs.VMFailed)
		if got := r.job(j.ID); !strings.Contains(got.Result.Reason, "a, b") {
			r.Errorf("reason %q names no workers", got.Result.Reason)
		}
		if n := len(r.board.buried(j.ID)); n != 1 {
			r.Errorf("buried %d times", n)
		}
	})
}

// One worker alone proves nothing: the job is tried as often as it may be.
func TestPoisonWantsTwo(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(3))
		for range 3 {
			a.report(a.one(), jobs.VMFailed)
			r.stands(j.ID, jobs.StateQueued)
		}
		a.report(a.one(), jobs.VMFailed)
		r.ended(j.ID, jobs.StateDead, jobs.VMFailed)
	})
}

func TestRedrive(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := retries(0)
		s.IdempotencyKey, s.Labels = "key", map[string]string{"a": "b"}
		dead, dropped := r.admit(s), r.admit(retries(0))
		a.report(a.one(), jobs.HostResources)
		a.report(a.one(), jobs.HostResources)
		r.ended(dead.ID, jobs.StateDead, jobs.HostResources)
		alive := r.admit(spec())
		for what, id := range map[string]string{"an unknown job": jobs.NewID(), "nonsense": "x"} {
			_, err := r.Redrive(r.Context(), "t", id)
			r.wantCode(what, jobs.CodeNotFound, err)
		}
		_, err := r.Redrive(r.Context(), "u", dead.ID)
		r.wantCode("another tenant's", jobs.CodeNotFound, err)
		_, err = r.Redrive(r.Context(), "t", alive.ID)
		r.wantCode("one that lives", jobs.CodeConflict, err)
		a.ok(a.one())

		again, err := r.Redrive(r.Context(), "t", dead.ID)
		if err != nil {
			r.Fatal(err)
		}
		if again.ID == dead.ID || again.RedriveOf != dead.ID || again.Labels["a"] != "b" {
			r.Errorf("the new job is %+v", again)
		}
		if got := r.job(dead.ID); got.RedrivenBy != again.ID {
			r.Errorf("the dead job is redriven by %q", got.RedrivenBy)
		}
		_, err = r.Redrive(r.Context(), "t", dead.ID)
		r.wantCode("a second time", jobs.CodeConflict, err)
		r.restart()
		a = r.worker("a")
		l := a.one()
		a.ok(l)
		r.ended(again.ID, jobs.StateEnded, jobs.Exited)

		if _, err := r.DropDead(r.Context(), "t", dropped.ID); err != nil {
			r.Error(err)
		}
		_, err = r.DropDead(r.Context(), "t", dropped.ID)
		r.wantCode("dropped already", jobs.CodeConflict, err)
		list, err := r.List(r.Context(), "t", jobs.ListRequest{States: []jobs.State{jobs.StateDead}})
		if err != nil || len(list.Jobs) > 1 { // the one that was redriven may still be shown
			r.Errorf("dead are %+v, %v", list.Jobs, err)
		}
		time.Sleep(time.Second)
	})
}
