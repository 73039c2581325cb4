package dispatcher_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// half has the ledger say of its batches that they were not written to their ends.
func (r *rig) half() {
	r.Helper()
	if _, err := r.disk.db.Exec(`UPDATE batches SET incoming = 1`); err != nil {
		r.Fatal(err)
	}
}

// wantWhole checks that a request brings its batch in anew, and that its jobs, and no others, run.
func (r *rig) wantWhole(a *hand, q jobs.BatchRequest) {
	r.Helper()
	reply := r.batch(q)
	if reply.Duplicate || reply.Batch.Total != len(q.Jobs) {
		r.Errorf("again: %+v", reply.Batch)
	}
	var want []string
	for _, i := range reply.Items {
		want = append(want, i.ID)
	}
	var got []string
	for _, l := range a.lease(2*len(want), 0) {
		got = append(got, l.Job)
	}
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		r.Errorf("leased %v, want %v", got, want)
	}
}

// Of a batch that a dispatcher has not written to its end, the next one finds nothing.
func TestBatchHalfWritten(t *testing.T) {
	for _, atomic := range []bool{false, true} {
		t.Run(fmt.Sprint("atomic=", atomic), func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				r.worker("a")
				q := jobs.BatchRequest{IdempotencyKey: "k", Atomic: atomic, Defaults: common, Jobs: bodies(`{}`, `{"idempotency_key":"own"}`)}
				r.batch(q)
				r.kill()
				r.half()
				r.start()
				a := r.worker("a")
				if n := r.count(); n != 0 {
					r.Errorf("%d jobs are left", n)
				}
				r.wantWhole(a, q)
			})
		})
	}
}

// A batch whose writing has failed half-way is removed while the dispatcher goes on; until then who names it is to come again.
func TestBatchFailsHalfway(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.store.after(func(op string) error {
			if op != "admit batch" {
				return nil
			}
			r.half()
			return errDisk
		})
		q := jobs.BatchRequest{IdempotencyKey: "k", Defaults: common, Jobs: bodies(`{}`, `{"idempotency_key":"own"}`)}
		_, err := r.AdmitBatch(r.Context(), "t", &q)
		r.wantCode("the batch", jobs.CodeUnavailable, err)
		r.store.after(nil)
		again := func(what string, err error) {
			r.Helper()
			if e := jobs.ErrorOf(err); e == nil || e.Code != jobs.CodeUnavailable || e.RetryAfterMS == 0 {
				r.Errorf("%s: %+v, want to be told to come again", what, e)
			}
		}
		_, err = r.AdmitBatch(r.Context(), "t", &q)
		again("the batch again", err)
		keyed := spec()
		keyed.IdempotencyKey = "own"
		_, _, err = r.Admit(r.Context(), "t", keyed)
		again("a job of it", err)
		other := jobs.BatchRequest{Atomic: true, Defaults: common, Jobs: bodies(`{"idempotency_key":"own"}`)}
		_, err = r.AdmitBatch(r.Context(), "t", &other)
		again("an atomic batch with a job of it", err)
		other.Atomic = false
		other.Jobs = append(other.Jobs, common)
		if reply := r.batch(other); reply.Items[0].Error == nil || reply.Items[0].Error.RetryAfterMS == 0 || reply.Items[1].Error != nil {
			r.Errorf("a batch with a job of it: %+v", reply.Items)
		} else if l := a.one(); l.Job != reply.Items[1].ID {
			r.Errorf("leased %s, want %s", l.Job, reply.Items[1].ID)
		}
		time.Sleep(2 * time.Second) // it looks
		r.wantWhole(a, q)
	})
}

// A batch that was written, and of which the answer was lost, is there, once.
func TestBatchAnswerLost(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.loseAnswer("admit batch")
		q := jobs.BatchRequest{IdempotencyKey: "k", Defaults: common, Jobs: bodies(`{}`, `{}`)}
		_, err := r.AdmitBatch(r.Context(), "t", &q)
		r.wantCode("the batch", jobs.CodeUnavailable, err)
		time.Sleep(2 * time.Second) // it looks
		reply := r.batch(q)
		if !reply.Duplicate {
			r.Errorf("again: %+v", reply)
		}
		for _, l := range a.lease(3, 0) {
			a.ok(l)
		}
		r.counted(reply.Batch.ID, 2, 2)
	})
}

// The jobs of a batch that is put before the matcher bit by bit have their places in the queue once.
func TestBatchPlaces(t *testing.T) {
	const n = 600
	quota := dispatcher.Quota{Queued: n}
	rigged(t, dispatcher.Config{MaxQueued: n + 1, Quotas: dispatcher.Quotas{Default: quota}}, func(r *rig) {
		a := r.worker("a")
		r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(slices.Repeat([]string{`{}`}, n)...)})
		synctest.Wait()
		r.quotaError("t")
		if _, _, err := r.Admit(r.Context(), "u", spec()); err != nil {
			r.Error("one of another tenant's:", err)
		}
		_, _, err := r.Admit(r.Context(), "u", spec())
		r.wantCode("one more", jobs.CodeQueueFull, err)
		for range 2 { // one of each tenant's
			a.ok(a.one())
		}
		synctest.Wait()
		r.admit(spec())
		r.quotaError("t")
	})
}
