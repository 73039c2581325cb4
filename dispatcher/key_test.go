package dispatcher_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// keyed is a spec with an idempotency key, of whichever body.
func keyed(key, cmd string) *jobs.Spec {
	return &jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: cmd}}, IdempotencyKey: key}
}

// A client's key is never one that the dispatcher makes: a job that it brings in under such a one does not stand for a schedule's, whether the
// two have the same body or not.
func TestKeyOfASchedule(t *testing.T) {
	for _, cmd := range []string{"true", "false"} {
		t.Run(cmd, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				s := r.put(every("@hourly"))
				mine := r.admit(keyed(fmt.Sprintf("schedule/s/%d", s.NextAt.Unix()), cmd))
				time.Sleep(time.Until(s.NextAt) + 2*time.Second)
				synctest.Wait()
				got := r.schedule()
				if got.LastJob == "" || got.LastJob == mine.ID || got.Missed != 0 || got.LastError != nil || r.count() != 2 {
					r.Errorf("the schedule's last job is %q, missed %d, %v; the client's is %s; %d jobs", got.LastJob, got.Missed, got.LastError, mine.ID, r.count())
				}
			})
		})
	}
}

// The same of a batch's jobs, whether it is a job by itself or one of another batch that has the key.
func TestKeyOfABatch(t *testing.T) {
	batch := func(r *rig, key string, specs ...*jobs.Spec) jobs.BatchReply {
		r.Helper()
		q := &jobs.BatchRequest{IdempotencyKey: key, Atomic: true}
		for _, s := range specs {
			b, err := json.Marshal(s)
			if err != nil {
				r.Fatal(err)
			}
			q.Jobs = append(q.Jobs, b)
		}
		reply, err := r.AdmitBatch(r.Context(), "t", q)
		if err != nil {
			r.Fatalf("batch %q: %v", key, err)
		}
		return reply
	}
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.admit(keyed("batch/nightly/0", "false"))
		r.admit(keyed("batch/nightly/1", "true"))
		batch(r, "", keyed("batch/nightly/2", "true"), keyed("\x01batch/nightly/2", "true"))
		reply := batch(r, "nightly", spec(), spec(), spec())
		for i, item := range reply.Items {
			if item.Duplicate || item.Error != nil {
				r.Errorf("jobs[%d] of the batch: %+v, want one of its own", i, item)
			}
		}
		again := batch(r, "nightly", spec(), spec(), spec())
		for i, item := range again.Items {
			if !item.Duplicate || item.ID != reply.Items[i].ID {
				r.Errorf("jobs[%d] of the batch again: %+v, want %s", i, item, reply.Items[i].ID)
			}
		}
		if got := r.count(); got != 7 {
			r.Errorf("%d jobs, want 7", got)
		}
	})
}

// Keys that look like the dispatcher's are as good as others to the client that has chosen them.
func TestKeysThatLookMade(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		for _, key := range []string{"schedule/s/1", "batch/42/7", "\x01batch/42/7", "\x01\x01batch/42/7", "\x01", "batch/", "schedules"} {
			first := r.admit(keyed(key, "true"))
			if j, duplicate, err := r.Admit(r.Context(), "t", keyed(key, "true")); err != nil || !duplicate || j.ID != first.ID {
				r.Errorf("%s again: %s, duplicate %v, %v", key, j.ID, duplicate, err)
			}
			_, _, err := r.Admit(r.Context(), "t", keyed(key, "false"))
			r.wantCode(key+" with another body", jobs.CodeConflict, err)
		}
	})
}

// What an older dispatcher has stored of such keys is found, for as long as it is remembered.
func TestKeysOfAnOlderDispatcher(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		old := r.admit(keyed("plain", "true"))
		if _, err := r.disk.db.ExecContext(r.Context(), `UPDATE idempotency SET key = 'batch/42/7' WHERE key = 'plain'`); err != nil {
			r.Fatal(err)
		}
		if j, duplicate, err := r.Admit(r.Context(), "t", keyed("batch/42/7", "true")); err != nil || !duplicate || j.ID != old.ID {
			r.Errorf("again: %s, duplicate %v, %v", j.ID, duplicate, err)
		}
		b, err := json.Marshal(keyed("batch/42/7", "true"))
		if err != nil {
			r.Fatal(err)
		}
		for range 2 {
			reply, err := r.AdmitBatch(r.Context(), "t", &jobs.BatchRequest{IdempotencyKey: "k", Jobs: []json.RawMessage{b}})
			if err != nil || !reply.Items[0].Duplicate || reply.Items[0].ID != old.ID {
				r.Errorf("again, in a batch: %+v, %v", reply.Items, err)
			}
		}
		time.Sleep(25 * time.Hour)
		r.admit(keyed("batch/42/7", "true"))
	})
}
