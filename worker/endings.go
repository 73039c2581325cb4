package worker

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// This file classifies: once, here, at the worker's edge. Whose doing was it?

// overBy tells how the machine ended, waiting a moment where it is just ending: the agent's connection breaks before the VMM says why.
func (a *attempt) overBy(m *machine) (vmm.Exit, bool) {
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-m.Done():
		return m.Exit(), true
	case <-t.C:
		return vmm.Exit{}, false
	}
}

// fail writes an error into the result as the ending that it is. m is nil where there was no machine.
func (a *attempt) fail(ctx context.Context, m *machine, err error) {
	r := &a.result
	var f *failure
	switch {
	case errors.Is(err, errCanceled):
		r.Ending, r.Reason = jobs.Canceled, "canceled"
		return
	case errors.Is(err, errDropped):
		return // nobody will hear of it
	case ctx.Err() != nil:
		r.Ending, r.Reason = jobs.WorkerLost, "the worker stopped before the job ended"
	case errors.As(err, &f):
		r.Ending, r.Reason = f.ending, f.err.Error()
	case m != nil:
		r.Ending, r.Reason = a.machineFailed(m), err.Error()
	default:
		r.Ending, r.Reason = jobs.VMFailed, err.Error()
	}
	log := zerolog.Ctx(ctx).Error().Err(err).Str("ending", string(r.Ending))
	if m != nil {
		log = log.Str("machine", m.ID())
	}
	log.Msg("attempt failed")
}

// machineFailed tells which part of a machine failed.
func (a *attempt) machineFailed(m *machine) jobs.Ending {
	exit, over := a.overBy(m)
	switch {
	case !over:
		return jobs.AgentLost
	case exit.Guest:
		return jobs.VMExited
	default:
		return jobs.VMFailed
	}
}

// describe writes what the guest says of a program's end into the step's result.
func describe(r *jobs.StepResult, e wire.Exit) {
	r.Usage = jobs.Usage{WallMS: e.WallMS, CPUMS: e.CPUMS, MemoryPeakBytes: e.MemoryPeakBytes, PIDsPeak: e.PIDsPeak}
	r.Limit, r.Signal = e.Limit, e.Signal
	if e.Signal == "" {
		r.ExitCode = &e.Code
	}
	switch e.Limit {
	case wire.LimitWall:
		r.Ending, r.Reason = jobs.TimeLimit, "ran past its wall time limit"
	case wire.LimitCPU:
		r.Ending, r.Reason = jobs.TimeLimit, "used up its cpu time limit"
	case wire.LimitMemory:
		r.Ending, r.Reason = jobs.MemoryLimit, "needed more memory than its limit"
	case wire.LimitStdout, wire.LimitStderr:
		r.Ending, r.Reason = jobs.OutputLimit, "wrote more to "+e.Limit+" than its limit"
	case wire.LimitPIDs:
		r.Ending, r.Reason = jobs.PIDsLimit, "started more processes than its limit"
	case wire.LimitDisk:
		r.Ending, r.Reason = jobs.DiskLimit, "filled its disk"
	case wire.LimitFile:
		r.Ending, r.Reason = jobs.FileLimit, "wrote a file larger than its limit"
	case "":
		r.Ending = jobs.Exited
		if e.Signal != "" {
			r.Ending, r.Reason = jobs.Signaled, "ended by "+e.Signal
		}
	default: // a newer agent's limit: it ended the program all the same
		r.Ending, r.Reason = jobs.Signaled, "ended by the limit "+e.Limit
	}
}

// sum takes a step's result into the job's: the last step decides.
func (a *attempt) sum(s jobs.StepResult) {
	r := &a.result
	r.Ending, r.Limit, r.Reason, r.ExitCode, r.Signal = s.Ending, s.Limit, s.Reason, s.ExitCode, s.Signal
	r.Usage.WallMS += s.Usage.WallMS
	r.Usage.CPUMS += s.Usage.CPUMS
	r.Usage.MemoryPeakBytes = max(r.Usage.MemoryPeakBytes, s.Usage.MemoryPeakBytes)
	r.Usage.PIDsPeak = max(r.Usage.PIDsPeak, s.Usage.PIDsPeak)
	r.Phases.GuestMS += s.Usage.WallMS
}
