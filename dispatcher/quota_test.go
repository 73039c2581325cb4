package dispatcher_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// quotaError gives the refusal of one more job of a tenant.
func (r *rig) quotaError(tenant string) *jobs.Error {
	r.Helper()
	_, _, err := r.Admit(r.Context(), tenant, spec())
	e, ok := errors.AsType[*jobs.Error](err)
	if !ok || e.Code != jobs.CodeQuota {
		r.Fatalf("one job more of %s: %v, want %s", tenant, err, jobs.CodeQuota)
	}
	return e
}

func TestQuotaQueued(t *testing.T) {
	quotas := dispatcher.Quotas{Default: dispatcher.Quota{Queued: 2}, Tenants: map[string]dispatcher.Quota{"large": {}}}
	rigged(t, dispatcher.Config{Quotas: quotas}, func(r *rig) {
		r.worker("a")
		first, second := r.admit(spec()), r.admit(spec())
		if e := r.quotaError("t"); e.RetryAfterMS <= 0 {
			r.Errorf("%+v does not say when to come again", e)
		}
		for range 5 { // others have quotas of their own
			if _, _, err := r.Admit(r.Context(), "large", spec()); err != nil {
				r.Fatal(err)
			}
		}
		r.restart()
		a := r.worker("a")
		r.quotaError("t")
		if _, err := r.Cancel(r.Context(), "t", second.ID); err != nil {
			r.Fatal(err)
		}
		third := r.admit(spec()) // in the place of the one that was canceled
		r.quotaError("t")
		var leased []jobs.Lease
		for len(leased) < 7 {
			leased = append(leased, a.one())
		}
		r.admit(spec()) // what runs does not wait
		for _, l := range leased {
			if l.Job == first.ID {
				a.report(l, jobs.VMFailed) // it waits again, and is over the quota: that is no reason to lose it
			}
		}
		r.stands(first.ID, jobs.StateQueued)
		r.admitted("t", third.ID)
		r.quotaError("t")
	})
}

// admitted checks that a job is there.
func (r *rig) admitted(tenant, id string) {
	r.Helper()
	if _, err := r.Get(r.Context(), tenant, id); err != nil {
		r.Error(err)
	}
}

func TestQuotaBytes(t *testing.T) {
	rigged(t, dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{QueuedBytes: 1000}}}, func(r *rig) {
		body, err := spec().Encode()
		if err != nil {
			r.Fatal(err)
		}
		for range 1000 / len(body) {
			r.admit(spec())
		}
		r.quotaError("t")
	})
}

func TestQuotaRate(t *testing.T) {
	rigged(t, dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{PerSecond: 2, Burst: 4}}}, func(r *rig) {
		for range 4 {
			r.admit(spec())
		}
		e := r.quotaError("t")
		if wait := time.Duration(e.RetryAfterMS) * time.Millisecond; wait < 400*time.Millisecond || wait > 500*time.Millisecond {
			r.Errorf("told to come again after %v, want half a second", wait)
		}
		time.Sleep(time.Duration(e.RetryAfterMS+1) * time.Millisecond)
		r.admit(spec()) // just when it was told
		r.quotaError("t")
		time.Sleep(2 * time.Second)
		for range 4 {
			r.admit(spec())
		}
		r.quotaError("t")
	})
}

// Of tenants and workers that have gone nothing is kept in memory, once what they may do is what anybody may.
func TestWhoHasGoneIsForgotten(t *testing.T) {
	rigged(t, dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{PerSecond: 0.01, Burst: 2}}}, func(r *rig) {
		for n := range 10 {
			tenant, worker := fmt.Sprint("t", n), fmt.Sprint("w", n)
			r.worker(worker)
			if _, err := r.Uncordon(r.Context(), worker); err != nil {
				r.Fatal(err)
			}
			j, _, err := r.Admit(r.Context(), tenant, spec())
			if err != nil {
				r.Fatal(err)
			}
			if _, err := r.Cancel(r.Context(), tenant, j.ID); err != nil {
				r.Fatal(err)
			}
		}
		time.Sleep(90 * time.Second)
		if n := r.Accounts(); n != 10 {
			r.Errorf("the rates of %d tenants are remembered, of 10 that may not submit as many again", n)
		}
		time.Sleep(2 * time.Hour)
		if n, m := r.Accounts(), r.Flags(); n != 0 || m != 0 {
			r.Errorf("something is remembered of %d tenants and of %d workers", n, m)
		}
	})
}

// A refusal takes nothing from what is left.
func TestQuotaRefusalIsFree(t *testing.T) {
	rigged(t, dispatcher.Config{MaxQueued: 1, Quotas: dispatcher.Quotas{Default: dispatcher.Quota{PerSecond: 1, Burst: 2}}}, func(r *rig) {
		j := r.admit(spec())
		for range 10 {
			_, _, err := r.Admit(r.Context(), "t", spec())
			r.wantCode("a full queue", jobs.CodeQueueFull, err)
		}
		if _, err := r.Cancel(r.Context(), "t", j.ID); err != nil {
			r.Fatal(err)
		}
		r.admit(spec())
	})
}

// What is larger than a tenant may ever have is refused, and not for a while only. What runs never exceeds the quota.
func TestQuotaRunning(t *testing.T) {
	rigged(t, dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{Running: 2, VCPUs: 3}}}, func(r *rig) {
		sized := func(vcpus int) *jobs.Spec {
			s := spec()
			s.Resources.VCPUs = vcpus
			return s
		}
		a := r.worker("a")
		_, _, err := r.Admit(r.Context(), "t", sized(4))
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeQuota || e.RetryAfterMS != 0 {
			r.Errorf("four processors of three: %v", err)
		}
		r.admit(sized(2))
		r.admit(sized(2))
		r.admit(sized(1))
		r.admit(sized(1))
		one, two := a.one(), a.one()
		if got := one.Spec.Resources.VCPUs + two.Spec.Resources.VCPUs; got != 3 {
			r.Fatalf("%d processors are given", got)
		}
		a.idle("two run, which may")
		r.restart()
		a = r.worker("a")
		a.beat(one.Held, two.Held)
		a.idle("two run, after a restart")
		a.ok(two)
		if l := a.one(); l.Spec.Resources.VCPUs != 1 {
			r.Errorf("given %d processors", l.Spec.Resources.VCPUs)
		}
		a.idle("two run again")
	})
}

// Of the jobs that share a key as many run as they say.
func TestConcurrencyKey(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		keyed := func(key string) *jobs.Spec {
			s := spec()
			s.Concurrency = jobs.Concurrency{Key: key}
			return s
		}
		first, second, other := r.admit(keyed("k")), r.admit(keyed("k")), r.admit(keyed("l"))
		l := a.one()
		if m := a.one(); l.Job != first.ID || m.Job != other.ID {
			r.Fatalf("given %s and %s", l.Job, m.Job)
		}
		a.idle("the key is taken")
		r.restart()
		a = r.worker("a")
		a.beat(l.Held)
		a.idle("the key is taken, after a restart")
		a.report(l, jobs.Exited)
		if m := a.one(); m.Job != second.ID {
			r.Errorf("given %s", m.Job)
		}
	})
}
