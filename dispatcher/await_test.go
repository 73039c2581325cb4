package dispatcher_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func TestAwait(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		_, err := r.Await(r.Context(), "u", j.ID)
		r.wantCode("another tenant's job", jobs.CodeNotFound, err)
		_, err = r.Await(r.Context(), "t", jobs.NewID())
		r.wantCode("an unknown job", jobs.CodeNotFound, err)
		soon, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if _, err := r.Await(soon, "t", j.ID); !errors.Is(err, context.DeadlineExceeded) {
			r.Errorf("a queued job: %v", err)
		}

		const waiting = 3
		got := make(chan jobs.Job, waiting)
		for range waiting {
			go func() {
				j, err := r.Await(r.Context(), "t", j.ID)
				if err != nil {
					r.Error(err)
				}
				got <- j
			}()
		}
		l := a.one()
		began := time.Now()
		a.report(l, jobs.Exited)
		for range waiting {
			if j := <-got; j.Result == nil || j.Result.Ending != jobs.Exited {
				r.Errorf("awaited %+v", j)
			}
		}
		if took := time.Since(began); took > 0 { // the bubble's clock: it was told, and did not look
			r.Errorf("the end was noticed after %v", took)
		}
		if j, err := r.Await(r.Context(), "t", j.ID); err != nil || j.State != jobs.StateEnded {
			r.Errorf("a job that has ended: %+v, %v", j, err)
		}
	})
}
