package worker_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// A guest that lives and does not end a program in time has the program's verdict; one that falls silent has none, unless root was in it.
func TestGuestDoesNotEndTheProgram(t *testing.T) {
	for _, tt := range []struct {
		name   string
		silent bool
		user   string
		want   jobs.Ending
	}{
		{"it lives", false, "", jobs.TimeLimit},
		{"it says nothing", true, "", jobs.AgentLost},
		{"it says nothing, and root was in it", true, "root", jobs.TimeLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			earnest(t, func(t *testing.T, r *rig) {
				r.cfg.Driver = inproc.New(stuck(tt.silent))
				r.run(t)
				s := limited(steps([]string{"count", "0"}), 10*time.Second, 0)
				s.Steps[0].User = tt.user
				began := time.Now()
				rep := r.report(t, r.put(s).Job)
				if took := time.Since(began); took > 12*time.Second+100*time.Millisecond {
					t.Errorf("ended after %v, its limit of 10 s and more than 2 s", took)
				}
				if res := rep.Result; res.Ending != tt.want || res.Reason == "" || tt.want == jobs.TimeLimit && res.Limit != "wall" {
					t.Errorf("ended %s %s: %s", res.Ending, res.Limit, res.Reason)
				}
			})
		})
	}
}
