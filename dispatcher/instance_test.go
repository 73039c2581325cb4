package dispatcher_test

import (
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// two are two processes of one name; the first has registered.
func (r *rig) two() (a, b *hand) {
	a = &hand{rig: r, name: "host", instance: "1", images: []string{"base"}}
	a.beat()
	return a, &hand{rig: r, name: "host", instance: "2", images: []string{"base"}}
}

func (h *hand) refused(running ...jobs.Held) {
	h.Helper()
	reply, err := h.Beat(h.Context(), h.heartbeat(running...))
	h.wantCode("beat of "+h.instance, jobs.CodeUnavailable, err)
	if err != nil && (!strings.Contains(err.Error(), `"host"`) || !strings.Contains(err.Error(), "--name")) {
		h.Errorf("error %q: want the name, and what to do", err)
	}
	if diff := gocmp.Diff(running, reply.Drop); diff != "" || reply.Session != 0 {
		h.Errorf("session %d, drop (-want +got):\n%s", reply.Session, diff)
	}
}

// A second process of a worker's name does not take the first one's place, and its attempts, while that lives.
func TestNameTaken(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.two()
		j := r.admit(spec())
		l := a.one()
		session := a.session
		for range 30 {
			b.refused()
			a.live(2*time.Second, l.Held)
		}
		if a.session != session || a.report(l, jobs.Exited).Fenced {
			r.Errorf("the session %d became %d", session, a.session)
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// One that was killed is soon succeeded; when it was only away, and comes back, it hears that its attempts are not its own any more.
func TestNameOfOneThatIsSilent(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.two()
		j := r.admit(spec())
		l := a.one()
		a.beat(l.Held)
		time.Sleep(4 * time.Second)
		b.refused()
		time.Sleep(time.Second)
		b.beat()
		if got := b.one(); got.Job != j.ID || got.Attempt != 2 {
			r.Errorf("leased %+v, want the second attempt", got.Held)
		}
		session := b.session
		a.refused(l.Held)
		_, err := a.Lease(r.Context(), a.request(1, time.Second))
		r.wantCode("lease", jobs.CodeForbidden, err)
		if b.beat(); b.session != session {
			r.Errorf("session %d became %d", session, b.session)
		}
	})
}

// One that leaves, and has nothing left, is succeeded at once; as is one by itself, whose answer was lost.
func TestNameOfOneThatLeaves(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.two()
		a.session = 0
		a.beat()
		r.admit(spec())
		l := a.one()
		a.drain() // the lease is on its way
		b.refused()
		a.drain(l.Held)
		b.refused()
		a.report(l, jobs.Exited)
		b.beat()
	})
}
