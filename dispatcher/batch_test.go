package dispatcher_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func bodies(list ...string) (l []json.RawMessage) {
	for _, b := range list {
		l = append(l, json.RawMessage(b))
	}
	return l
}

var common = json.RawMessage(`{"image":"base","steps":[{"cmd":"true"}]}`)

func (r *rig) batch(q jobs.BatchRequest) jobs.BatchReply {
	r.Helper()
	reply, err := r.AdmitBatch(r.Context(), "t", &q)
	if err != nil {
		r.Fatal(err)
	}
	return reply
}

func (r *rig) counted(id string, ended, ok int) {
	r.Helper()
	synctest.Wait()
	b, err := r.Batch(r.Context(), "t", id)
	if err != nil || b.Ended != ended || b.OK != ok {
		r.Errorf("batch %+v, %v; want %d ended, %d well", b, err, ended, ok)
	}
	if (b.Ended == b.Total) == b.EndedAt.IsZero() {
		r.Errorf("batch %+v has ended at %v", b, b.EndedAt)
	}
}

// Each job of a batch has its own outcome, and the batch counts them to the last, once.
func TestBatch(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		q := jobs.BatchRequest{
			IdempotencyKey: "k", Defaults: common,
			Jobs: bodies(`{}`, `{"priority":12}`, `{"priority":1}`, `{"image":"cobol"}`, `7`, `{"image":"base","steps":[{"shell":"exit 1"}]}`),
		}
		reply := r.batch(q)
		for i, want := range []jobs.Code{"", jobs.CodeInvalid, "", jobs.CodeInvalid, jobs.CodeInvalid, ""} {
			got := reply.Items[i]
			if code := codeOf(got.Error); code != want || (got.ID == "") != (want != "") {
				r.Errorf("job %d: %+v, want %q", i, got, want)
			}
		}
		if b := reply.Batch; b.Total != 3 || b.Ended != 0 {
			r.Errorf("batch %+v", b)
		}
		again := r.batch(q)
		if !again.Duplicate || again.Batch.ID != reply.Batch.ID || len(again.Items) != 6 || again.Items[0].ID != reply.Items[0].ID {
			r.Errorf("again: %+v", again)
		}
		q.Jobs = q.Jobs[1:]
		_, err := r.AdmitBatch(r.Context(), "t", &q)
		r.wantCode("the key with another body", jobs.CodeConflict, err)

		a.ok(a.one())
		r.counted(reply.Batch.ID, 1, 1)
		r.restart()
		a = r.worker("a")
		a.exits(a.one(), 1)
		r.counted(reply.Batch.ID, 2, 1)
		if finals := r.board.batchEnds(reply.Batch.ID); finals != 0 {
			r.Errorf("%d final events before the end", finals)
		}
		if got := r.job(reply.Items[2].ID); got.Batch != reply.Batch.ID {
			r.Errorf("record %+v", got)
		}
		last := a.one()
		a.report(last, jobs.Signaled)
		a.report(last, jobs.Exited) // fenced, and not counted
		r.counted(reply.Batch.ID, 3, 1)
		if finals := r.board.batchEnds(reply.Batch.ID); finals != 1 {
			r.Errorf("%d final events, want one", finals)
		}
	})
}

// Whoever asks again gets the batch with all its jobs, whatever would be said of a new one by now.
func TestBatchAgainWhatWouldBeRefused(t *testing.T) {
	rigged(t, dispatcher.Config{MaxQueued: 3}, func(r *rig) {
		r.worker("a")
		r.worker("b", "rare")
		for _, q := range []jobs.BatchRequest{
			{IdempotencyKey: "k", Defaults: common, Jobs: bodies(`{}`, `{"image":"cobol"}`, `{"image":"rare"}`)},
			{ID: jobs.NewID(), Atomic: true, Defaults: common, Jobs: bodies(`{}`)},
		} {
			reply := r.batch(q)
			time.Sleep(2 * time.Hour) // the image is gone
			r.worker("a")
			again := r.batch(q)
			if !again.Duplicate || again.Batch.ID != reply.Batch.ID {
				r.Errorf("again: %+v, want %s", again.Batch, reply.Batch.ID)
			}
			for i, was := range reply.Items {
				if is := again.Items[i]; is.ID != was.ID || is.Duplicate != (was.ID != "") || codeOf(is.Error) != codeOf(was.Error) {
					r.Errorf("job %d: %+v, want %+v", i, is, was)
				}
			}
		}
		_, err := r.AdmitBatch(r.Context(), "t", &jobs.BatchRequest{Defaults: common, Jobs: bodies(`{}`)})
		r.wantCode("another", jobs.CodeQueueFull, err)
	})
}

// However long the broker takes for how far a batch is, its end is told last.
func TestBatchEndComesLast(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		b := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(`{}`, `{}`)}).Batch
		var told atomic.Int64
		r.board.before(func(op string) error {
			if op == "progress" && told.Add(1) == 1 {
				time.Sleep(5 * time.Second)
			}
			return nil
		})
		a.ok(a.one())
		time.Sleep(time.Second) // it is being told
		a.ok(a.one())
		time.Sleep(10 * time.Second)
		r.counted(b.ID, 2, 2)
		if finals := r.board.batchEnds(b.ID); finals != 1 {
			r.Errorf("%d final events, want one", finals)
		}
	})
}

func codeOf(e *jobs.Error) jobs.Code {
	if e == nil {
		return ""
	}
	return e.Code
}

// An atomic batch is taken whole or not at all.
func TestBatchAtomic(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		q := jobs.BatchRequest{Atomic: true, Defaults: common, Jobs: bodies(`{}`, `{"priority":12}`, `{"image":"cobol"}`)}
		_, err := r.AdmitBatch(r.Context(), "t", &q)
		r.wantCode("a bad one among them", jobs.CodeInvalid, err)
		if got := fmt.Sprint(paths(err)); got != "[jobs[1].priority jobs[2].image]" {
			r.Errorf("faults at %s", got)
		}
		if n := r.count(); n != 0 {
			r.Errorf("%d jobs were taken", n)
		}
		q.Jobs = q.Jobs[:1]
		if reply := r.batch(q); reply.Batch.Total != 1 {
			r.Errorf("%+v", reply)
		}
	})
}

func TestBatchBounds(t *testing.T) {
	rigged(t, dispatcher.Config{Quotas: dispatcher.Quotas{Default: dispatcher.Quota{Queued: 100}}}, func(r *rig) {
		for what, n := range map[string]int{"nothing": 0, "too many": jobs.MaxBatch + 1} {
			_, err := r.AdmitBatch(r.Context(), "t", &jobs.BatchRequest{Defaults: common, Jobs: bodies(make([]string, n)...)})
			r.wantCode(what, jobs.CodeInvalid, err)
		}
		list := make([]string, 101)
		for i := range list {
			list[i] = "{}"
		}
		_, err := r.AdmitBatch(r.Context(), "t", &jobs.BatchRequest{Defaults: common, Jobs: bodies(list...)})
		r.wantCode("more than the quota", jobs.CodeQuota, err)
		r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(list[:100]...)})
		r.quotaError("t")
	})
}

// Jobs of a batch may depend on each other.
func TestBatchPipeline(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		one, two := jobs.NewID(), jobs.NewID()
		reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(
			`{"id":"`+one+`"}`, `{"id":"`+two+`","depends_on":["`+one+`"]}`, `{"depends_on":["`+two+`","`+one+`"]}`, `{"depends_on":["`+jobs.NewID()+`"]}`)})
		if reply.Items[3].Error == nil || reply.Batch.Total != 3 {
			r.Fatalf("%+v", reply)
		}
		for _, want := range []string{one, two, reply.Items[2].ID} {
			l := a.one()
			if l.Job != want {
				r.Fatalf("given %s, want %s", l.Job, want)
			}
			a.idle("the next waits")
			a.ok(l)
		}
		r.counted(reply.Batch.ID, 3, 3)
	})
}

func TestBatchCancel(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(`{}`, `{}`, `{}`)})
		other := r.admit(spec())
		a.ok(a.one())
		l := a.one()
		if n, err := r.CancelBatch(r.Context(), "t", reply.Batch.ID); n != 2 || err != nil {
			r.Errorf("%d canceled, %v", n, err)
		}
		if got := a.beat(l.Held).Cancel; len(got) != 1 {
			r.Errorf("the worker is told to cancel %v", got)
		}
		a.report(l, jobs.Canceled)
		r.counted(reply.Batch.ID, 3, 1)
		r.stands(other.ID, jobs.StateQueued)
		_, err := r.CancelBatch(r.Context(), "u", reply.Batch.ID)
		r.wantCode("another tenant's", jobs.CodeNotFound, err)
	})
}

// Jobs of a batch that wait for each other in a circle never could run, and neither could who waits for them.
func TestBatchCircle(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		one, two, three := jobs.NewID(), jobs.NewID(), jobs.NewID()
		reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(
			`{"id":"`+one+`","depends_on":["`+two+`"]}`, `{"id":"`+two+`","depends_on":["`+one+`"]}`, `{"id":"`+three+`"}`,
			`{"depends_on":["`+one+`","`+three+`"]}`, `{"depends_on":["`+three+`"]}`)})
		for i, refused := range []bool{true, true, false, true, false} {
			if got := reply.Items[i]; (got.Error != nil) != refused {
				r.Errorf("job %d: %+v", i, got)
			}
		}
		if reply.Batch.Total != 2 {
			r.Errorf("batch %+v", reply.Batch)
		}
	})
}

// A batch that comes again says of a job that was refused the first time that it was, though it could be taken now; and one of which nothing is new
// ends at once.
func TestBatchAgain(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		q := jobs.BatchRequest{IdempotencyKey: "k", Defaults: common, Jobs: bodies(`{}`, `{"image":"python"}`, `{}`)}
		first := r.batch(q)
		r.worker("b", "base", "python")
		again := r.batch(q)
		for i, want := range []string{first.Items[0].ID, "", first.Items[2].ID} {
			if got := again.Items[i]; got.ID != want || (got.Error == nil) != (want != "") {
				r.Errorf("job %d: %+v, want %q", i, got, want)
			}
		}
		same := jobs.BatchRequest{Defaults: common, Jobs: bodies(`{"idempotency_key":"x"}`)}
		r.batch(same)
		if reply := r.batch(same); !reply.Items[0].Duplicate || reply.Batch.EndedAt.IsZero() {
			r.Errorf("nothing new: %+v", reply)
		} else if synctest.Wait(); r.board.batchEnds(reply.Batch.ID) != 1 {
			r.Error("its end is not told")
		}
	})
}

// A batch that is refused because workers have not been heard of yet, who may take it, may be sent again.
func TestBatchTooSoon(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		r.worker("b", "other")
		r.restartWithoutOffers()
		r.worker("b", "other")
		body, err := spec().Encode()
		if err != nil {
			r.Fatal(err)
		}
		for _, q := range []struct {
			jobs  []json.RawMessage
			again bool
		}{{[]json.RawMessage{body}, true}, {[]json.RawMessage{body, []byte(`{}`)}, false}} {
			_, err := r.AdmitBatch(r.Context(), "t", &jobs.BatchRequest{Jobs: q.jobs, Atomic: true})
			if e := jobs.ErrorOf(err); e == nil || (e.RetryAfterMS > 0) != q.again {
				r.Errorf("%s: %+v, want to be told to come again: %v", q.jobs, e, q.again)
			}
		}
	})
}
