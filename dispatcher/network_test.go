package dispatcher_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func networked(policy string) *jobs.Spec {
	s := spec()
	s.Network.Policy = policy
	return s
}

// offers is a worker whose machines may have networks.
func (r *rig) offers(name string, networks ...string) *hand {
	r.Helper()
	h := &hand{rig: r, name: name, images: []string{"base"}, networks: networks}
	h.beat()
	return h
}

// TestNetworkedJobsGoToNetworks: also after a restart, when what is known of a job is what the ledger keeps.
func TestNetworkedJobsGoToNetworks(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		without := r.worker("without")
		with := r.offers("with", jobs.NetworkInternet)
		r.admit(networked(jobs.NetworkInternet))
		if got := without.lease(1, 0); len(got) != 0 {
			r.Errorf("a worker without networks got %+v", got)
		}
		if got := with.one(); got.Spec.Network.Policy != jobs.NetworkInternet {
			r.Errorf("network of the lease: %+v", got.Spec.Network)
		}
		_, _, err := r.Admit(r.Context(), "t", networked(jobs.NetworkAllowlist))
		r.wantCode("a policy that nobody offers", jobs.CodeInvalid, err)
		s := networked(jobs.NetworkAllowlist)
		s.Network.Allow = []string{"192.0.2.0/24"}
		_, _, err = r.Admit(r.Context(), "t", s)
		r.wantCode("a policy that nobody offers", jobs.CodeUnsupported, err)
		r.admit(networked(jobs.NetworkNone))
		without.one()
	})
}

// A machine with a network can act until its worker hears of the end, or its lease has run out: nobody else is given its job before, by a drain
// or by who takes a silent worker away.
func TestNetworkedJobsAreNotGivenAwayBefore(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.offers("a", jobs.NetworkInternet), r.offers("b", jobs.NetworkInternet)
		j := r.admit(networked(jobs.NetworkInternet))
		l := a.one()
		if _, err := r.Drain(r.Context(), "a", time.Second); err != nil {
			r.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		r.stands(j.ID, jobs.StateQueued)
		begin := time.Now()
		for range 4 {
			b.beat()
			if got := b.lease(1, 4*time.Second); len(got) > 0 {
				r.Fatalf("given away after %s", time.Since(begin))
			}
		}
		b.live(10*time.Second, l.Held)
		l = b.one()
		b.live(2*time.Second, l.Held)
		time.Sleep(7 * time.Second) // silent, and its lease lasts
		_, err := r.RemoveWorker(r.Context(), "b")
		r.wantCode("removed before its lease has run out", jobs.CodeConflict, err)
	})
}

// One that is not to be tried again is nobody else's, also by a drain: its machine goes on where its worker hears of nobody.
func TestNetworkedJobsThatAreNotTriedAgainAreNotGivenAway(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.offers("a", jobs.NetworkInternet), r.offers("b", jobs.NetworkInternet)
		s := networked(jobs.NetworkInternet)
		s.InfraRetries = new(int)
		j := r.admit(s)
		l := a.one()
		if _, err := r.Drain(r.Context(), "a", 5*time.Second); err != nil {
			r.Fatal(err)
		}
		a.live(4*time.Second, l.Held)
		r.stands(j.ID, jobs.StateLeased)
		a.live(4*time.Second, l.Held)
		r.ended(j.ID, jobs.StateDead, jobs.WorkerLost)
		if got := a.beat(l.Held).Drop; len(got) != 1 {
			r.Errorf("the drained worker is told to drop %v", got)
		}
		b.live(time.Minute)
		if got := b.lease(1, 0); len(got) != 0 {
			r.Errorf("another is given %v", names(got))
		}
	})
}
