package dispatcher_test

import (
	"fmt"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// shift makes the file as it were if the dispatcher that wrote it had had a clock that was ahead.
func (d *disk) shift(ahead time.Duration) {
	d.t.Helper()
	us := ahead.Microseconds()
	for _, q := range []string{
		`UPDATE jobs SET accepted_at = accepted_at + %[1]d, expires_at = expires_at + %[1]d, not_before = not_before + %[1]d WHERE not_before > 0`,
		`UPDATE jobs SET accepted_at = accepted_at + %[1]d, expires_at = expires_at + %[1]d WHERE not_before <= 0`,
		`UPDATE jobs SET leased_at = leased_at + %[1]d WHERE state = 'leased'`,
		`UPDATE workers SET seen = seen + %[1]d`,
	} {
		if _, err := d.db.Exec(fmt.Sprintf(q, us)); err != nil { //nolint:noctx // a file
			d.t.Fatal(err)
		}
	}
}

// What a dispatcher's clock that was wrong has written holds up no job for as long as it was wrong, and ends none, when another with a right
// one leads: neither one that waits, nor one that waits for its next attempt, nor one whose lease was lost on its way.
func TestClockOfAnotherLife(t *testing.T) {
	for _, ahead := range []time.Duration{48 * time.Hour, -48 * time.Hour} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				ttl := spec()
				ttl.QueueTTLMS = (72 * time.Hour).Milliseconds()
				a := r.worker("a")
				again := r.admit(spec())
				a.report(a.one(), jobs.HostResources)
				r.stands(again.ID, jobs.StateQueued)
				lost := r.admit(ttl)
				if got := names(a.lease(1, 0)); len(got) != 1 || got[0] != lost.ID { // and its worker never hears of it
					r.Fatalf("leased %v, want %s", got, lost.ID)
				}
				waits := r.admit(ttl)
				r.kill()
				r.disk.shift(ahead)
				r.start()
				last := r.admit(ttl) // its image is of a worker that is expected
				a = &hand{rig: r, name: "a", images: []string{"base"}, session: a.session}
				a.live(3 * time.Second)
				got := map[string]bool{}
				for range 4 {
					l := a.one()
					got[l.Job] = true
					a.report(l, jobs.Exited)
				}
				if diff := gocmp.Diff(map[string]bool{again.ID: true, lost.ID: true, waits.ID: true, last.ID: true}, got); diff != "" {
					r.Errorf("leased (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A worker whose clock is ahead does not say when its jobs have ended.
func TestReportOfTheFuture(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		now := time.Now()
		a.send(a.one(), jobs.Report{Result: jobs.Result{Ending: jobs.Exited, EndedAt: now.Add(48 * time.Hour)}})
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		if at := r.job(j.ID).EndedAt; at.After(now.Add(time.Minute)) {
			r.Errorf("it ended at %v, and it is %v", at, now)
		}
	})
}
