package worker_test

import (
	"context"
	"math"
	"net"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
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

// A guest's exit code is one that a program can have: whoever passes it on as a process's own, as `paddock run` does, passes on no success that was none.
func TestExitCodeThatNoProgramHas(t *testing.T) {
	for code, want := range map[int]int{0: 0, 255: 255, 256: 255, -256: 255, math.MaxInt: 255, math.MinInt: 255} {
		r := newRig(t)
		r.cfg.Driver = inproc.New(func(ctx context.Context, conn net.Conn) {
			converse(ctx, conn, func(ctx context.Context, s *wire.Stream, q *wire.Request) wire.Reply {
				if q.Op == wire.OpExec {
					return wire.Reply{Exit: &wire.Exit{Code: code}}
				}
				return answer(ctx, s, q)
			})
		})
		r.run(t)
		res := r.report(t, r.put(steps([]string{"lie"})).Job).Result
		if res.Ending != jobs.Exited || res.ExitCode == nil || *res.ExitCode != want || *res.Steps[0].ExitCode != want {
			t.Errorf("%d: ended %s with %v, want %d", code, res.Ending, res.ExitCode, want)
		}
	}
}
