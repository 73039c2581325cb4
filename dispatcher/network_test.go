package dispatcher_test

import (
	"testing"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func networked(policy string) *jobs.Spec {
	s := spec()
	s.Network.Policy = policy
	return s
}

// TestNetworkedJobsGoToNetworks: also after a restart, when what is known of a job is what the ledger keeps.
func TestNetworkedJobsGoToNetworks(t *testing.T) {
	bubble(t, dispatcher.Config{}, func(r *rig) {
		without := r.worker("without")
		with := &hand{rig: r, name: "with", images: []string{"base"}, networks: []string{jobs.NetworkInternet}}
		with.beat()
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
